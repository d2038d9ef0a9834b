import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec_rl.decoding.beam_search import BeamPlan, beam_search
from genrec_rl.errors import ConfigError, RolloutError
from genrec_rl.models.trunk import Branches
from genrec_rl.sids.trie import SidTrie
from tests.fixtures import CODES, make_catalog, make_context, make_policy
from tests.models.test_prefix_tree import one_by_one

HISTORIES = ([0, 4, 7], [5], [])


def prompts_of(policy, histories=HISTORIES):
    prompts = [policy.prompts.prompt(make_context(history)) for history in histories]
    return prompts, *policy.prompts.batch(prompts)


def search(policy, ids, is_prompt, *widths, how=None, **kwargs):
    """Search with one width for all levels, or one each."""
    widths = widths * policy.vocab.n_levels if len(widths) == 1 else widths
    plan = BeamPlan(widths, **(how or {}))
    return beam_search(policy.model, ids, is_prompt, vocab=policy.vocab, plan=plan, **kwargs)


def test_free_beams_equal_transformers_generate(policy):
    _, ids, is_prompt = prompts_of(policy)
    tokens, scores = beam_search(
        policy.model, ids, is_prompt, vocab=policy.vocab, plan=BeamPlan((7,) * policy.vocab.n_levels)
    )
    policy.model.generation_config.eos_token_id = None
    reference = policy.model.generate(
        ids, attention_mask=is_prompt.long(), num_beams=7, num_return_sequences=7, max_new_tokens=3, do_sample=False,
        length_penalty=0.0, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    assert tokens.flatten(0, 1).equal(reference.sequences[:, ids.shape[1] :])
    assert torch.allclose(scores.flatten(), reference.sequences_scores, atol=1e-5)


def test_constrained_beams_equal_transformers_generate_with_a_prefix_function(policy, catalog):
    _, ids, is_prompt = prompts_of(policy)
    all_tokens = policy.vocab.token_ids(torch.from_numpy(CODES).long()).tolist()

    def allowed(_, sequence):
        done = sequence[ids.shape[1] :].tolist()
        return sorted({sid[len(done)] for sid in all_tokens if sid[: len(done)] == done})

    tokens, scores = beam_search(
        policy.model,
        ids,
        is_prompt,
        vocab=policy.vocab,
        plan=BeamPlan((4,) * policy.vocab.n_levels),
        trie=catalog.trie,
    )
    policy.model.generation_config.eos_token_id = None
    reference = policy.model.generate(
        ids, attention_mask=is_prompt.long(), num_beams=4, num_return_sequences=4, max_new_tokens=3, do_sample=False,
        length_penalty=0.0, prefix_allowed_tokens_fn=allowed, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    assert tokens.flatten(0, 1).equal(reference.sequences[:, ids.shape[1] :])
    assert torch.allclose(scores.flatten(), reference.sequences_scores, atol=1e-5)


def test_wide_constrained_search_ranks_the_whole_catalogue_by_teacher_forcing(policy, catalog):
    prompts, ids, is_prompt = prompts_of(policy)
    tokens, scores = beam_search(
        policy.model,
        ids,
        is_prompt,
        vocab=policy.vocab,
        plan=BeamPlan((50,) * policy.vocab.n_levels),
        trie=catalog.trie,
    )
    everything = policy.vocab.token_ids(torch.from_numpy(CODES).long()).expand(len(prompts), -1, -1)
    exact = one_by_one(policy.model, prompts, everything).sum(-1)
    assert tokens.shape == (3, len(CODES), 3)
    assert torch.allclose(scores, exact.sort(dim=1, descending=True).values, atol=1e-5)


def test_free_search_over_everything_is_exhaustive():
    catalog = make_catalog(np.array([[0, 1], [1, 0]]), (2, 2))
    policy = make_policy(catalog)
    prompt = policy.prompts.prompt(make_context([1]))
    ids, is_prompt = policy.prompts.batch([prompt])
    n_vocab = policy.model.config.vocab_size
    _, scores = beam_search(
        policy.model, ids, is_prompt, vocab=policy.vocab, plan=BeamPlan((n_vocab**2,) * policy.vocab.n_levels)
    )
    every = torch.tensor(list(itertools.product(range(n_vocab), repeat=2)))[None]
    exact = one_by_one(policy.model, [prompt], every).sum(-1)
    assert torch.allclose(scores, exact.sort(dim=1, descending=True).values, atol=1e-5)


def test_padding_and_neighbours_change_nothing(policy, catalog):
    _, ids, is_prompt = prompts_of(policy)
    _, together = beam_search(
        policy.model,
        ids,
        is_prompt,
        vocab=policy.vocab,
        plan=BeamPlan((5,) * policy.vocab.n_levels),
        trie=catalog.trie,
    )
    alone, is_token = policy.prompts.batch([policy.prompts.prompt(make_context([5]))])
    _, single = beam_search(
        policy.model,
        alone,
        is_token,
        vocab=policy.vocab,
        plan=BeamPlan((5,) * policy.vocab.n_levels),
        trie=catalog.trie,
    )
    assert torch.allclose(together[1], single[0], atol=1e-5)


def test_dead_places_are_marked_and_last(policy, catalog):
    """Two beams of level 0 lead to 3 to 7 items: the others of 12 places are dead."""
    _, ids, is_prompt = prompts_of(policy)
    tokens, scores = search(policy, ids, is_prompt, 2, 12, 12, trie=catalog.trie)
    alive = scores > -torch.inf
    first_codes = [set(tokens[b, alive[b], 0].tolist()) for b in range(3)]
    items_of = policy.vocab.level_starts[0] + CODES[:, 0]
    n_items = [sum(code in codes for code in items_of) for codes in first_codes]
    assert alive.sum(1).tolist() == n_items
    assert tokens.shape[1] == max(n_items)
    assert (tokens[~alive] == policy.vocab.pad_id).all()
    assert (alive.int().diff(dim=1) <= 0).all()


def test_probabilities_over_real_children_sum_to_one_over_the_catalogue(policy, catalog):
    _, ids, is_prompt = prompts_of(policy)
    how = {"normalisation": "children"}
    found = search(policy, ids, is_prompt, catalog.trie.n_sids, trie=catalog.trie, how=how)
    assert torch.allclose(found.log_probs_BW.exp().sum(1), torch.ones(len(ids)), atol=1e-5)


@pytest.mark.parametrize("lazy_layers", [None, 1])
@pytest.mark.parametrize("widths", [(12,), (3, 2, 5), (4, 8, 8)])
@pytest.mark.parametrize("is_drawn", [False, True])
def test_beams_whose_end_is_certain_need_no_reading(catalog, monkeypatch, lazy_layers, widths, is_drawn):
    policy = make_policy(catalog, lazy_layers=lazy_layers)
    _, ids, is_prompt = prompts_of(policy)
    found = []
    for reads_all in (False, True):
        if reads_all:
            monkeypatch.setattr(SidTrie, "is_certain", lambda _, __, nodes: torch.zeros_like(nodes, dtype=torch.bool))
        noise = {"generator": torch.Generator().manual_seed(0)} if is_drawn else {}
        how = {"normalisation": "children"}
        found.append(search(policy, ids, is_prompt, *widths, how=how, trie=catalog.trie, **noise))
    assert found[0].tokens_BWL.equal(found[1].tokens_BWL)
    assert torch.allclose(found[0].log_probs_BW, found[1].log_probs_BW, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.tuples(*[st.integers(0, 2)] * 4), min_size=2, max_size=20, unique=True),
    widths=st.tuples(*[st.integers(1, 6)] * 4),
)
def test_of_any_catalogue_the_same_beams_are_found_without_reading_certain_ends(rows, widths):
    """Open beams then lie in any places, and go on from others of which some were not read."""
    catalog = make_catalog(np.array(rows), (3, 3, 3, 3))
    policy = make_policy(catalog)
    _, ids, is_prompt = prompts_of(policy, [[0], [], [1, 0]])
    how = {"normalisation": "children"}
    found = search(policy, ids, is_prompt, *widths, how=how, trie=catalog.trie)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SidTrie, "is_certain", lambda _, __, nodes: torch.zeros_like(nodes, dtype=torch.bool))
        expected = search(policy, ids, is_prompt, *widths, how=how, trie=catalog.trie)
    assert found.tokens_BWL.equal(expected.tokens_BWL)
    assert torch.allclose(found.log_probs_BW, expected.log_probs_BW, atol=1e-5)


def test_only_beams_that_may_go_several_ways_are_read(policy, catalog, monkeypatch):
    """Of twelve SIDs four first codes begin two to four each; of ten pairs [0, 0] and [1, 1] begin two."""
    _, ids, is_prompt = prompts_of(policy)
    read = []
    plain = Branches.read
    monkeypatch.setattr(Branches, "read", lambda self, *a, **k: read.append(self.n_branches) or plain(self, *a, **k))
    search(policy, ids, is_prompt, 12, trie=catalog.trie)
    search(policy, ids, is_prompt, 12, trie=catalog.trie, how={"normalisation": "children"})
    assert read == [4, 10, 4, 2]


def test_siblings_keep_their_ratio_over_real_children(policy, catalog):
    _, ids, is_prompt = prompts_of(policy)
    by_level, by_children = (
        search(policy, ids, is_prompt, catalog.trie.n_sids, trie=catalog.trie, how={"normalisation": kind})
        for kind in ("level", "children")
    )
    for row in range(len(ids)):
        level, children = (
            {tuple(sid): p for sid, p in zip(b.tokens_BWL[row].tolist(), b.log_probs_BW[row].tolist(), strict=True)}
            for b in (by_level, by_children)
        )
        for a, b in itertools.combinations(level, 2):
            if a[:2] == b[:2]:
                assert children[a] - children[b] == pytest.approx(level[a] - level[b], abs=1e-4)


def test_level_normalisation_sums_to_one_over_the_levels_codes(policy):
    catalog = make_catalog(np.array([[a, b] for a in range(4) for b in range(4)]), (4, 4))
    policy = make_policy(catalog)
    ids, is_prompt = policy.prompts.batch([policy.prompts.prompt(make_context([1]))])
    how = {"normalisation": "level"}
    tokens, scores = search(policy, ids, is_prompt, 16, how=how, trie=catalog.trie)
    assert scores.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    free, free_scores = search(policy, ids, is_prompt, 16, how=how)
    assert free.equal(tokens)
    assert free_scores.equal(scores)


def test_gumbel_beams_are_distinct_items_with_their_own_log_probabilities(policy, catalog):
    _, ids, is_prompt = prompts_of(policy)
    best, exact = search(policy, ids, is_prompt, 12, trie=catalog.trie)
    drawn, scores = search(policy, ids, is_prompt, 5, trie=catalog.trie, generator=torch.Generator().manual_seed(0))
    for b in range(3):
        known = {tuple(sid): score for sid, score in zip(best[b].tolist(), exact[b].tolist(), strict=True)}
        found = [tuple(sid) for sid in drawn[b].tolist()]
        assert len(set(found)) == 5
        assert scores[b].tolist() == pytest.approx([known[sid] for sid in found], abs=1e-5)
    assert not drawn.equal(best[:, :5])


def test_logits_in_parts_change_nothing(policy, catalog, monkeypatch):
    _, ids, is_prompt = prompts_of(policy)
    whole = search(policy, ids, is_prompt, 7, trie=catalog.trie)
    monkeypatch.setattr("genrec_rl.decoding.beam_search.LOGITS_AT_ONCE", 1)
    parts = search(policy, ids, is_prompt, 7, trie=catalog.trie)
    assert parts[0].equal(whole[0])
    assert torch.allclose(parts[1], whole[1], atol=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bfloat16_finds_nearly_the_same_scores(policy, catalog, attention):
    _, ids, is_prompt = prompts_of(policy)
    _, exact = search(policy, ids, is_prompt, 12, trie=catalog.trie)
    policy.model.set_attn_implementation(attention)
    policy.model.to(torch.bfloat16)
    _, scores = search(policy, ids, is_prompt, 12, trie=catalog.trie)
    assert scores.dtype == torch.float32
    assert torch.allclose(scores, exact, atol=0.2)


def test_broken_weights_are_named(policy, catalog):
    _, ids, is_prompt = prompts_of(policy)
    with torch.no_grad():
        policy.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(RolloutError, match="SID level 0"):
        search(policy, ids, is_prompt, 2, trie=catalog.trie)


def test_plan_of_another_depth_is_refused(policy):
    _, ids, is_prompt = prompts_of(policy)
    with pytest.raises(ConfigError, match="for 2 levels of 3"):
        search(policy, ids, is_prompt, 4, 4)


@pytest.mark.parametrize("free", [False, True])
def test_a_cut_of_at_least_the_next_width_changes_nothing(policy, catalog, free):
    _, ids, is_prompt = prompts_of(policy)
    trie = None if free else catalog.trie
    whole = search(policy, ids, is_prompt, 3, 5, 7, trie=trie)
    cut = search(policy, ids, is_prompt, 3, 5, 7, trie=trie, how={"per_beam": 7})
    assert cut.tokens_BWL.equal(whole.tokens_BWL)
    assert cut.log_probs_BW.equal(whole.log_probs_BW)


@pytest.mark.parametrize("free", [False, True])
def test_of_one_beam_only_its_best_continuations_go_on(policy, catalog, free):
    _, ids, is_prompt = prompts_of(policy)
    trie = None if free else catalog.trie
    tokens, scores = search(policy, ids, is_prompt, 4, trie=trie, how={"per_beam": 1})
    whole, _ = search(policy, ids, is_prompt, 50, trie=trie)
    for b in range(len(ids)):
        alive = tokens[b, scores[b] > -torch.inf].tolist()
        assert len({sid[0] for sid in alive}) == len(alive) == 4
        for sid in alive:  # each goes on with its prefix's best code of all
            rivals = [s for s in whole[b].tolist() if s[:2] == sid[:2]]
            assert rivals[0] == sid
    assert (scores.diff(dim=1) <= 0).all()


def test_cut_of_a_sample_is_refused(policy):
    _, ids, is_prompt = prompts_of(policy)
    with pytest.raises(ConfigError, match=r"per_beam 4: a cut .* is no sample"):
        search(policy, ids, is_prompt, 4, how={"per_beam": 4}, generator=torch.Generator())


def test_cut_that_cannot_fill_the_next_level_is_refused():
    with pytest.raises(ConfigError, match=r"per_beam 1: 2 beams .* next level's 4; at least 2 are needed"):
        BeamPlan((2, 4, 4), per_beam=1)


@pytest.mark.parametrize(("widths", "how", "message"), [
    ((4,), {"per_beam": 0}, "per_beam is 0"),
    ((0, 4, 4), {}, "at least 1"), ((), {}, "at least 1"), ((4,), {"normalisation": "row"}, "level, children"),
])  # fmt: skip
def test_impossible_plans_are_refused(widths, how, message):
    with pytest.raises(ConfigError, match=message):
        BeamPlan(widths, **how)
