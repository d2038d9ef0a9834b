import numpy as np
import pytest
import torch

from genrec_rl.models.prompts import PromptGrammar
from genrec_rl.sft.rows import IGNORED
from genrec_rl.sft.siblings import Siblings, sibling_nll
from genrec_rl.sft.user_tree import TreeCollator, build_trees
from tests.fixtures import CODES, make_policy
from tests.sft.test_user_tree import answers
from tests.sft.test_worth import BUCKETS, worth

LEVELS = CODES.shape[1]


def by_hand(row: int, level: int) -> set[int]:
    """Codes that follow an item's first ``level`` codes in the catalogue."""
    return set(CODES[(CODES[:, :level] == CODES[row, :level]).all(1), level].tolist())


def test_allowed_tokens_are_the_prefixs_children(catalog, policy):
    siblings = Siblings(catalog, policy.vocab)
    for level, start in enumerate(policy.vocab.level_starts):
        allowed = siblings.of(torch.from_numpy(siblings.nodes[:, level]))
        for row in range(catalog.n_items):
            assert {t - start for t in allowed[row].nonzero().flatten().tolist()} == by_hand(row, level)


def test_codes_behind_the_last_choice_are_certain(catalog, policy):
    n_open = Siblings(catalog, policy.vocab).n_open
    for row in range(catalog.n_items):
        choices = [level for level in range(LEVELS) if len(by_hand(row, level)) > 1]
        assert n_open[row] == max(choices, default=-1) + 1


def test_probability_is_shared_by_the_allowed_tokens_alone():
    logits = torch.tensor([[1.0, 5.0, 2.0, 9.0]])
    allowed = torch.tensor([[True, False, True]])
    expected = -np.log(np.exp(2) / (np.exp(1) + np.exp(2)))
    assert sibling_nll(logits, torch.tensor([2]), allowed).item() == pytest.approx(expected)
    assert sibling_nll(logits, torch.tensor([1]), torch.tensor([[False, True, False]])).item() == 0


@pytest.mark.parametrize("target", ["page", "item", "running", "page+running"])
def test_trimmed_trees_have_the_loss_of_whole_items_among_the_catalogues(catalog, policy, target):
    """The product of a SID's probabilities over children is the item's; certain codes change nothing."""
    taught = answers(target=target)
    siblings = Siblings(catalog, policy.vocab)
    collate = TreeCollator(policy.model, pad_id=policy.vocab.pad_id, siblings=siblings)
    batch = collate(list(build_trees(taught, policy.prompts, siblings)))
    allowed, labels = batch.pop("allowed"), batch.pop("labels")[0]
    batch.pop("shift_labels")
    found = sibling_nll(policy.model(**batch).logits[0], labels, allowed).sum()
    expected = 0.0
    for i in range(len(taught)):
        items = taught.items(i)
        prompt = policy.prompts.prompt(taught.context(i, max_history=50))
        answer = policy.prompts.answer(items)
        logits = policy.model(torch.from_numpy(np.concatenate([prompt, answer]))[None]).logits[0]
        for step, (row, level) in enumerate((row, level) for row in items for level in range(LEVELS)):
            start = policy.vocab.level_starts[level]
            scores = {code: logits[len(prompt) - 1 + step, start + code] for code in by_hand(row, level)}
            expected -= scores[int(CODES[row, level])] - torch.stack(list(scores.values())).logsumexp(0)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_only_open_codes_have_labels(catalog, policy):
    siblings = Siblings(catalog, policy.vocab)
    taught = answers(target="running")
    labels = sum(int((row["shift_labels"] != IGNORED).sum()) for row in build_trees(taught, policy.prompts, siblings))
    assert labels == sum(int(siblings.n_open[taught.items(i)[0]]) for i in range(len(taught)))
    assert labels < LEVELS * len(taught)


@pytest.mark.parametrize("page_items", ["codes", "merged"])
@pytest.mark.parametrize("target", ["item", "running"])
def test_value_is_chosen_among_the_buckets_behind_the_whole_item(catalog, target, page_items):
    policy = make_policy(catalog, values=BUCKETS, grammar=PromptGrammar(page_items=page_items))
    known = worth(policy, target=target, user=1.0)
    siblings = Siblings(catalog, policy.vocab)
    collate = TreeCollator(policy.model, pad_id=policy.vocab.pad_id, siblings=siblings)
    batch = collate(list(build_trees(known.answers, policy.prompts, siblings, known)))
    allowed, labels, weights = batch.pop("allowed"), batch.pop("labels")[0], batch.pop("weights")[0]
    batch.pop("shift_labels")
    is_value = labels >= policy.vocab.value_tokens.start
    assert is_value.sum() == 10
    assert (allowed[is_value].sum(1) == 3).all()
    assert not allowed[~is_value][:, policy.vocab.value_tokens.start :].any()
    nll = sibling_nll(policy.model(**batch).logits[0], labels, allowed)
    found = (nll * weights)[is_value].sum()
    expected = 0.0
    for i in range(len(known.answers)):
        prompt = policy.prompts.prompt(known.answers.context(i, max_history=50))
        read = policy.prompts.read_answer(known.answers.items(i))
        logits = policy.model(torch.from_numpy(np.concatenate([prompt, read]))[None]).logits[0, -1]
        (token,) = known.value_tokens(i)
        tokens = policy.vocab.value_tokens
        scores = logits[tokens.start : tokens.stop].log_softmax(-1)
        expected -= float(known.token_weights(i, n_levels=3)[-1]) * scores[token - tokens.start]
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_codes_that_are_certain_have_no_label_before_a_value_either(catalog):
    policy = make_policy(catalog, values=BUCKETS)
    known = worth(policy)
    siblings = Siblings(catalog, policy.vocab)
    rows = build_trees(known.answers, policy.prompts, siblings, known)
    labels = sum(int((row["shift_labels"] != IGNORED).sum()) for row in rows)
    assert labels == 10 + sum(int(siblings.n_open[known.answers.items(i)[0]]) for i in range(10))
