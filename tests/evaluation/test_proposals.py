import numpy as np
import pytest

from genrec_rl.errors import ConfigError
from genrec_rl.evaluation import proposals
from genrec_rl.evaluation.proposals import ProposalSettings, propose
from genrec_rl.tracking import finish_stage
from genrec_rl.types import Rollouts
from tests.fixtures import make_example

PARTS = [[make_example([0], [1]), make_example([2], [3])], [make_example([4], [5])]]


@pytest.fixture
def asked(monkeypatch):
    """Stand in for loading a policy, and note how it was asked."""
    import torch

    noted = {}

    class Policy:
        def recommend(self, contexts, *, k, constrained):
            assert constrained
            rows = torch.tensor([[int(context.history[-1])] * k for context in contexts])
            return Rollouts(rows[..., None], rows, torch.zeros(rows.shape))

    def load(folder, *, catalog, options):
        noted["options"] = options
        return Policy()

    monkeypatch.setattr(proposals, "load_recommender", load)
    return noted


def finished(folder, **settings):
    folder.mkdir()
    finish_stage(folder, stage="sft", settings=settings, inputs={}, seconds=0)
    return str(folder)


def test_each_part_has_its_own_proposals(tmp_path, asked):
    settings = ProposalSettings(finished(tmp_path / "sft"), beams=2, continue_page=True)
    found = propose(settings, PARTS, catalog=None, made_from={})
    assert [rows.tolist() for rows in found] == [[[0, 0], [2, 2]], [[4, 4]]]
    assert all(isinstance(rows, np.ndarray) for rows in found)
    assert asked["options"].continue_page


def test_a_policy_that_learnt_validation_pages_is_refused(tmp_path, asked):
    settings = ProposalSettings(finished(tmp_path / "sft", learn_valid=True))
    with pytest.raises(ConfigError, match="learnt the validation pages"):
        propose(settings, PARTS, catalog=None, made_from={})


def test_no_policy_is_refused():
    with pytest.raises(ConfigError, match="policy_dir is not set"):
        propose(ProposalSettings(), PARTS, catalog=None, made_from={})
    assert ProposalSettings().inputs == {}
