import numpy as np
import pytest
import torch

from genrec_rl.sft.rows import IGNORED
from genrec_rl.sft.siblings import Siblings, sibling_nll
from genrec_rl.sft.user_tree import TreeCollator, build_trees
from tests.fixtures import CODES
from tests.sft.test_user_tree import answers

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
