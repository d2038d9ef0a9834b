import numpy as np
import pytest
import torch

from genrec_rl.data.values import ValueBuckets
from genrec_rl.decoding.expected_value import ValueReranker, expected_values
from genrec_rl.decoding.recommender import BeamRecommender
from genrec_rl.errors import ConfigError
from genrec_rl.models.prompts import PromptGrammar
from genrec_rl.types import NO_ITEM
from tests.fixtures import make_context, make_policy

MEANS = (0.0, 1.5, 40.0)
CONTEXTS = [make_context([0, 4, 7]), make_context([3])]
ROWS = np.array([[5, 0, 11, NO_ITEM], [1, 1, 2, 8]])


def make_valued(catalog, **grammar):
    return make_policy(
        catalog, values=ValueBuckets((np.log1p(2.0),), MEANS), grammar=PromptGrammar(**grammar) if grammar else None
    )


@pytest.mark.parametrize("grammar", [{}, {"merge": False}, {"page_items": "merged"}], ids=str)
def test_expected_value_is_the_buckets_mean_by_their_probabilities_behind_the_item(catalog, grammar):
    policy = make_valued(catalog, **grammar)
    found = expected_values(policy, CONTEXTS, ROWS, batch_size=1)
    tokens = policy.vocab.value_tokens
    for p, context in enumerate(CONTEXTS):
        for g, row in enumerate(ROWS[p]):
            if row == NO_ITEM:
                assert found[p, g] == 0
                continue
            ids = np.concatenate([policy.prompts.prompt(context), policy.prompts.read_answer(np.array([row]))])
            logits = policy.model(torch.from_numpy(ids)[None]).logits[0, -1, tokens.start : tokens.stop]
            expected = (logits.softmax(-1) @ torch.tensor(MEANS)).item()
            assert found[p, g].item() == pytest.approx(expected, rel=1e-4)


def test_batches_change_nothing_and_no_request_is_no_row(catalog):
    policy = make_valued(catalog)
    one, two = (expected_values(policy, CONTEXTS, ROWS, batch_size=size) for size in (1, 2))
    assert torch.allclose(one, two, rtol=1e-4)
    assert expected_values(policy, [], ROWS[:0]).shape == (0, 4)


def test_score_is_log_probability_plus_weighted_log1p_of_the_expected_value(catalog):
    policy = make_valued(catalog)
    recommender = BeamRecommender(policy, catalog=catalog)
    plain = recommender.recommend(CONTEXTS, k=6, constrained=True)
    found = ValueReranker(recommender, weight=3.0).recommend(CONTEXTS, k=6, constrained=True)
    worth = expected_values(policy, CONTEXTS, plain.rows_PG.numpy())
    scores, order = (plain.log_probs_PG + 3 * worth.log1p()).sort(descending=True, stable=True)
    assert torch.allclose(found.log_probs_PG, scores, rtol=1e-5)
    assert found.rows_PG.equal(plain.rows_PG.gather(1, order))
    assert not found.rows_PG.equal(plain.rows_PG)


def test_beams_are_the_items_levels_long_with_value_tokens_too(catalog):
    recommender = BeamRecommender(make_valued(catalog), catalog=catalog)
    for constrained in (True, False):
        assert recommender.recommend(CONTEXTS, k=5, constrained=constrained).sids_PGL.shape == (2, 5, 3)


def test_policy_without_value_tokens_is_refused(policy, catalog):
    with pytest.raises(ConfigError, match="n_value_buckets"):
        expected_values(policy, CONTEXTS, ROWS)
    with pytest.raises(ConfigError, match="n_value_buckets"):
        ValueReranker(BeamRecommender(policy, catalog=catalog), weight=1.0)


@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_weight_that_is_negative_or_no_number_is_refused(catalog, weight):
    with pytest.raises(ConfigError, match=f"weight {weight}"):
        ValueReranker(BeamRecommender(make_valued(catalog), catalog=catalog), weight=weight)
