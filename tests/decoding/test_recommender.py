import numpy as np
import pytest
import torch

from genrec_rl.decoding.recommender import BeamRecommender
from genrec_rl.errors import ConfigError, RolloutError
from genrec_rl.types import NO_ITEM
from tests.fixtures import make_context, make_policy

HISTORIES = ([0, 4, 7], [5], [])


def contexts_of(histories=HISTORIES):
    return [make_context(history) for history in histories]


def test_constrained_beams_are_valid_and_distinct(policy, catalog):
    rows = BeamRecommender(policy, catalog=catalog).recommend(contexts_of(), k=12, constrained=True).rows_PG
    assert (rows != NO_ITEM).all()
    assert all(len(row.unique()) == 12 for row in rows)


def test_free_beams_may_invent_sids_and_keep_their_rank(policy, catalog):
    rollouts = BeamRecommender(policy, catalog=catalog).recommend([make_context([0])], k=40, constrained=False)
    assert not rollouts.is_valid_PG.all()
    assert (rollouts.log_probs_PG.diff() <= 0).all()


def test_answers_come_in_the_order_of_the_requests_whatever_the_batch(policy, catalog):
    contexts = contexts_of(([5], [0, 4, 7, 3, 2], [], [1, 2], [9]))
    alone = [BeamRecommender(policy, catalog=catalog).recommend([c], k=4, constrained=True) for c in contexts]
    for batch_size in (1, 2, 64):
        recommender = BeamRecommender(policy, catalog=catalog, batch_size=batch_size)
        together = recommender.recommend(contexts, k=4, constrained=True)
        assert together.rows_PG.tolist() == [one.rows_PG[0].tolist() for one in alone]
        expected = torch.cat([one.log_probs_PG for one in alone])
        assert torch.allclose(together.log_probs_PG, expected, atol=1e-5)


def test_one_free_sample_follows_the_policys_probabilities(policy, catalog):
    """2,000 equal requests, one free draw each: an item comes as often as its probability says."""
    context = make_context([0])
    over_codes = {"catalog": catalog, "normalisation": "level"}
    items = BeamRecommender(policy, **over_codes).recommend([context], k=12, constrained=True)
    sampler = BeamRecommender(policy, **over_codes, sample_seed=0)
    drawn = sampler.recommend([context] * 2000, k=1, constrained=False)
    expected = items.log_probs_PG.exp().sum()
    assert 0.1 < expected < 0.9
    assert abs(drawn.is_valid_PG.float().mean() - expected) < 4 * (expected * (1 - expected) / 2000).sqrt()


def test_a_sample_is_its_seeds(policy, catalog):
    def draw(seed):
        sampler = BeamRecommender(policy, catalog=catalog, sample_seed=seed)
        return sampler.recommend(contexts_of(), k=8, constrained=True).rows_PG.tolist()

    assert draw(0) == draw(0) != draw(1)


def test_samples_go_on_from_call_to_call(policy, catalog):
    sampler = BeamRecommender(policy, catalog=catalog, sample_seed=0)
    first, second = (sampler.recommend(contexts_of(), k=8, constrained=True).rows_PG for _ in range(2))
    assert first.tolist() != second.tolist()


def test_policy_is_asked_as_it_was_trained(policy, catalog):
    assert BeamRecommender(policy, catalog=catalog).normalisation == "vocabulary"
    assert BeamRecommender(make_policy(catalog, softmax="children"), catalog=catalog).normalisation == "children"


def test_no_request_gets_no_answer(policy, catalog):
    rollouts = BeamRecommender(policy, catalog=catalog).recommend([], k=4, constrained=True)
    assert rollouts.rows_PG.shape == (0, 4)
    assert rollouts.sids_PGL.shape == (0, 4, 3)


def test_recommending_leaves_training_mode_as_it_was(policy, catalog):
    policy.model.train()
    BeamRecommender(policy, catalog=catalog).recommend([make_context([0])], k=2, constrained=True)
    assert policy.model.training


def test_an_error_gives_the_training_mode_back(policy, catalog):
    policy.model.train()
    with pytest.raises(RolloutError):
        BeamRecommender(policy, catalog=catalog, beam_widths=[1, 1, 12]).recommend(
            contexts_of(), k=12, constrained=True
        )
    assert policy.model.training


def test_free_answers_that_run_short_are_named(policy, catalog):
    recommender = BeamRecommender(policy, catalog=catalog, beam_widths=[1, 1, 50], normalisation="level")
    with pytest.raises(RolloutError, match="with 4 of 50 answers"):
        recommender.recommend(contexts_of(), k=50, constrained=False)


def test_no_widths_at_all_are_refused(policy, catalog):
    with pytest.raises(ConfigError, match="at least 1"):
        BeamRecommender(policy, catalog=catalog, beam_widths=[]).recommend(contexts_of(), k=5, constrained=True)


def test_widths_must_end_with_what_is_asked_for(policy, catalog):
    recommender = BeamRecommender(policy, catalog=catalog, beam_widths=[2, 4, 8])
    with pytest.raises(ConfigError, match="end with 8, but 10"):
        recommender.recommend(contexts_of(), k=10, constrained=True)


def test_cut_that_leaves_too_few_items_is_named(policy, catalog):
    recommender = BeamRecommender(policy, catalog=catalog, per_beam=1)
    with pytest.raises(RolloutError, match=r"of 8 answers.*or raise per_beam, which is 1"):
        recommender.recommend(contexts_of(), k=8, constrained=True)


def test_widths_that_leave_too_few_items_are_named(policy, catalog):
    recommender = BeamRecommender(policy, catalog=catalog, beam_widths=[1, 12, 12])
    with pytest.raises(RolloutError, match=r"of 12 answers.*widen the first levels"):
        recommender.recommend(contexts_of(), k=12, constrained=True)


def test_narrow_first_levels_keep_the_best_of_what_they_saw(policy, catalog):
    wide = BeamRecommender(policy, catalog=catalog).recommend(contexts_of(), k=12, constrained=True)
    narrow = BeamRecommender(policy, catalog=catalog, beam_widths=[1, 2, 2])
    found = narrow.recommend(contexts_of(), k=2, constrained=True)
    for p in range(len(HISTORIES)):
        known = dict(zip(wide.rows_PG[p].tolist(), wide.log_probs_PG[p].tolist(), strict=True))
        assert np.allclose([known[row] for row in found.rows_PG[p].tolist()], found.log_probs_PG[p], atol=1e-5)
        assert len(set(catalog.codes[found.rows_PG[p].numpy(), 0])) == 1


def test_empty_batches_are_refused(policy, catalog):
    with pytest.raises(ConfigError, match="batch_size is 0"):
        BeamRecommender(policy, catalog=catalog, batch_size=0)


def test_proposals_that_run_short_end_in_no_item(policy, catalog):
    recommender = BeamRecommender(policy, catalog=catalog, batch_size=1)
    found = recommender.propose(contexts_of(), widths=[1, 12, 12], constrained=True)
    counts = found.is_valid_PG.sum(1)
    assert counts.min() < found.rows_PG.shape[1] == counts.max() < 12
    for rows, log_probs, n in zip(found.rows_PG, found.log_probs_PG, counts, strict=True):
        assert (rows[n:] == NO_ITEM).all()
        assert (log_probs[n:] == -torch.inf).all()


def test_proposals_as_wide_everywhere_are_the_recommendation(policy, catalog):
    recommender = BeamRecommender(policy, catalog=catalog)
    proposed = recommender.propose(contexts_of(), widths=[5, 5, 5], constrained=True)
    recommended = recommender.recommend(contexts_of(), k=5, constrained=True)
    assert proposed.rows_PG.equal(recommended.rows_PG)
    assert proposed.log_probs_PG.equal(recommended.log_probs_PG)


@pytest.mark.parametrize(
    ("target", "is_refused"), [("running", True), ("item", True), ("page+running", False), ("", False)]
)
def test_a_policy_that_was_not_taught_pages_continues_none(catalog, target, is_refused):
    policy = make_policy(catalog)
    policy.model.config.target = target
    if not is_refused:
        BeamRecommender(policy, catalog=catalog, continue_page=True)
        return
    with pytest.raises(ConfigError, match=f"continue_page: target {target}, .*--target page"):
        BeamRecommender(policy, catalog=catalog, continue_page=True)
