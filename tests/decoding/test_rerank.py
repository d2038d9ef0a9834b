import numpy as np
import pytest
import torch

from genrec_rl.decoding.recommender import BeamRecommender
from genrec_rl.decoding.rerank import Reranker
from genrec_rl.errors import ConfigError
from genrec_rl.types import NO_ITEM, Rollouts
from reward_models.scripted import Constant
from tests.fixtures import make_context

CONTEXTS = [make_context([0, 4]), make_context([7])]


class Proposes:
    """Stands in for a policy: items 0 to 3 and an invalid SID, with known log-probabilities."""

    def recommend(self, contexts, *, k, constrained):
        rows = torch.tensor([[3, 1, NO_ITEM, 2]] * len(contexts))[:, :k]
        log_probs = torch.tensor([[-1.0, -2.0, -2.5, -3.0]] * len(contexts))[:, :k]
        return Rollouts(rows[..., None].repeat(1, 1, 3), rows, log_probs)


class ByRow(Constant):
    """Scores item i with i / 4."""

    def score(self, contexts, candidates):
        return candidates / 4


def rerank(weight) -> Rollouts:
    return Reranker(Proposes(), ByRow(0.5), weight=weight).recommend(CONTEXTS, k=4, constrained=False)


def test_score_is_log_probability_plus_weighted_log_odds():
    # log-odds: item 3 log 3, item 1 -log 3, item 2 0
    found = rerank(1.0)
    assert found.rows_PG[0].tolist() == [3, 2, 1, NO_ITEM]
    expected = [-1 + np.log(3), -3, -2 - np.log(3)]
    assert found.log_probs_PG[0, :3].tolist() == pytest.approx(expected, rel=1e-5)
    assert found.sids_PGL[:, :, 0].equal(found.rows_PG)


def test_weight_zero_keeps_the_policys_order():
    assert rerank(0.0).rows_PG[1].tolist() == [3, 1, NO_ITEM, 2]


def test_constant_reward_changes_nothing(policy, catalog):
    recommender = BeamRecommender(policy, catalog=catalog)
    plain = recommender.recommend(CONTEXTS, k=5, constrained=True)
    found = Reranker(recommender, Constant(0.25), weight=4.0).recommend(CONTEXTS, k=5, constrained=True)
    assert found.rows_PG.equal(plain.rows_PG)


@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_weight_that_is_negative_or_no_number_is_refused(weight):
    with pytest.raises(ConfigError, match=f"weight {weight}"):
        Reranker(Proposes(), Constant(0.5), weight=weight)
