import pytest

from genrec_rl.config import protocol_members
from genrec_rl.rewards.gates import EmbeddingGate, SidPrefixGate, ValidGate
from genrec_rl.rewards.protocol import Gate, RewardModel
from reward_models.scripted import Constant, Popularity
from reward_models.sim import SIM


def test_a_reward_model_is_these_four_members():
    # CONTRIBUTING and third parties rely on the list: a new member breaks every reward model out there
    assert protocol_members(RewardModel) == ["fingerprint", "from_pretrained", "save_pretrained", "score"]


def test_a_gate_is_these_two_members():
    assert protocol_members(Gate) == ["similarity", "tau"]


@pytest.mark.parametrize("cls", [SIM, Constant, Popularity])
def test_our_reward_models_have_every_member(cls):
    assert all(name in vars(cls) for name in protocol_members(RewardModel))


@pytest.mark.parametrize("cls", [EmbeddingGate, SidPrefixGate, ValidGate])
def test_our_gates_have_every_member(cls):
    assert all(getattr(cls, name) is not getattr(Gate, name) for name in protocol_members(Gate))


def test_a_class_that_inherits_nothing_can_implement_the_protocol():
    class Mine:
        fingerprint = "0"

        def score(self, contexts, candidates): ...
        def save_pretrained(self, path): ...
        @classmethod
        def from_pretrained(cls, path): ...

    assert isinstance(Mine(), RewardModel)
    del Mine.score
    assert not isinstance(Mine(), RewardModel)
