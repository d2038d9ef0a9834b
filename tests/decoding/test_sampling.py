import numpy as np
import pytest
import torch

from genrec_rl.decoding.beam_search import BeamPlan
from genrec_rl.decoding.sampling import sample_from
from genrec_rl.errors import ConfigError, RolloutError
from genrec_rl.models.trunk import read_trunk
from genrec_rl.types import NO_ITEM
from tests.fixtures import make_context
from tests.models.test_prefix_tree import one_by_one

HISTORIES = ([0, 4, 7], [])


def draw(policy, width, *, trie=None, normalisation="vocabulary", seed=0, histories=HISTORIES):
    prompts = [policy.prompts.prompt(make_context(history)) for history in histories]
    with torch.no_grad():
        trunk = read_trunk(policy.model, *policy.prompts.batch(prompts))
        found = sample_from(policy.model, trunk, vocab=policy.vocab, plan=BeamPlan((width,) * 3, normalisation),
                            trie=trie, generator=torch.Generator().manual_seed(seed))  # fmt: skip
    return prompts, found


def test_log_probs_are_those_of_teacher_forcing(policy):
    prompts, found = draw(policy, 6)
    expected = one_by_one(policy.model, prompts, found.tokens_BWL).sum(-1)
    assert torch.allclose(found.log_probs_BW, expected, atol=1e-4)


def test_first_tokens_come_as_often_as_the_policy_says(policy):
    n = 4000
    prompts, found = draw(policy, n, histories=HISTORIES[:1])
    chances = policy.model(torch.tensor(prompts[0])[None]).logits[0, -1].softmax(-1)
    shares = torch.bincount(found.tokens_BWL[0, :, 0], minlength=len(chances)) / n
    assert (shares - chances).abs().max() < 5 * (0.25 / n) ** 0.5


def test_likely_answers_repeat(policy, catalog):
    _, found = draw(policy, 200, trie=catalog.trie)
    assert len(found.tokens_BWL[0].unique(dim=0)) <= catalog.n_items < 200


@pytest.mark.parametrize("normalisation", ["vocabulary", "level", "children"])
def test_a_trie_makes_every_draw_an_item(policy, catalog, normalisation):
    _, found = draw(policy, 50, trie=catalog.trie, normalisation=normalisation)
    rows = catalog.rows_of(policy.vocab.codes(found.tokens_BWL))
    assert (rows != NO_ITEM).all()
    assert torch.isfinite(found.log_probs_BW).all()


def test_over_children_shares_of_items_are_their_probabilities(policy, catalog):
    n = 4000
    _, found = draw(policy, n, trie=catalog.trie, normalisation="children", histories=HISTORIES[:1])
    rows = catalog.rows_of(policy.vocab.codes(found.tokens_BWL))[0].numpy()
    chance = np.zeros(catalog.n_items)
    chance[rows] = found.log_probs_BW[0].exp().numpy()
    assert chance.sum() == pytest.approx(1, abs=0.02)
    assert np.abs(np.bincount(rows, minlength=catalog.n_items) / n - chance).max() < 5 * (0.25 / n) ** 0.5


def test_draws_repeat_with_the_seed_only(policy):
    first, same, other = (draw(policy, 8, seed=seed)[1].tokens_BWL for seed in (0, 0, 1))
    assert first.equal(same)
    assert not first.equal(other)


def test_broken_weights_and_widths_that_differ_are_refused(policy):
    prompts = policy.prompts.batch([policy.prompts.prompt(make_context([1]))])
    with torch.no_grad():
        trunk = read_trunk(policy.model, *prompts)
        with pytest.raises(ConfigError, match="draws have one width"):
            sample_from(
                policy.model, trunk, vocab=policy.vocab, plan=BeamPlan((2, 4, 4)), generator=torch.Generator()
            )
        trunk.logits_BV.fill_(torch.nan)
        with pytest.raises(RolloutError, match="NaN log-probabilities at SID level 0"):
            sample_from(policy.model, trunk, vocab=policy.vocab, plan=BeamPlan((4,) * 3), generator=torch.Generator())
