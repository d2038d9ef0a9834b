import numpy as np
import pytest
import torch

from genrec_rl.data.pages import PageTable
from genrec_rl.errors import ConfigError
from genrec_rl.models.prompts import PromptGrammar
from genrec_rl.sft.rows import build_rows
from genrec_rl.sft.user_tree import TreeCollator, build_trees, cut_windows
from genrec_rl.types import Action
from tests.fixtures import make_policy


def make_table(users: list[list[list[int]]]) -> PageTable:
    """Every user's pages, each a list of clicked items; the history is all items of the user's earlier pages."""
    rows = [(user, page) for user, pages in enumerate(users) for page in pages]
    items = [item for _, page in rows for item in page]
    starts, ends, begin = [], [], 0
    for pages in users:
        done = 0
        for page in pages:
            starts.append(begin)
            ends.append(begin + done)
            done += len(page)
        begin += done
    return PageTable(
        request_ids=np.array([f"r{i}" for i in range(len(rows))]),
        user_ids=np.array([f"u{user}" for user, _ in rows]),
        times=np.arange(len(rows)),
        item_offsets=np.cumsum([0, *(len(page) for _, page in rows)]),
        items=np.array(items, np.int32),
        actions=np.full(len(items), Action.CLICK, np.int8),
        history_items=np.array(items, np.int32),
        history_times=np.arange(len(items)),
        history_pages=np.repeat(np.arange(len(rows)), [len(page) for _, page in rows]).astype(np.int32),
        history_start=np.array(starts),
        history_end=np.array(ends),
    )


TABLE = make_table([[[0, 1], [2], [3, 4, 5]], [[6], [7, 8]], [[9]]])


def loss_of(model, batch) -> torch.Tensor:
    batch = dict(batch)
    labels = batch.pop("shift_labels")
    batch.pop("labels")
    scores = model(**batch).logits.log_softmax(-1)
    return -scores.gather(2, labels.clamp(min=0)[..., None])[..., 0][labels >= 0].sum()


@pytest.mark.parametrize("grammar", [{}, {"merge": False}, {"separator": "none"}], ids=str)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_tree_has_the_loss_and_gradient_of_one_row_a_page(catalog, grammar, attention):
    policy = make_policy(catalog, grammar=PromptGrammar(**grammar))
    policy.model.set_attn_implementation(attention)
    pages = np.arange(len(TABLE))
    rows = build_rows(TABLE.select(pages), policy.prompts, target="page", max_items=10)
    expected = sum(
        -policy.model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)[i - 1, token]
        for row in rows
        for i, token in enumerate(row["labels"])
        if token >= 0
    )
    collate = TreeCollator(policy.model, pad_id=policy.vocab.pad_id)
    trees = build_trees(TABLE, pages, policy.prompts, max_items=10)
    found = loss_of(policy.model, collate(list(trees)))
    weights = list(policy.model.parameters())
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for a, b in zip(torch.autograd.grad(found, weights), torch.autograd.grad(expected, weights), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def test_window_holds_one_user_and_all_pages_that_fit():
    windows = cut_windows(TABLE, np.arange(6), max_history=50)
    assert [(w.start, w.end, w.pages.tolist()) for w in windows] == [(0, 3, [0, 1, 2]), (6, 7, [3, 4]), (9, 9, [5])]


def test_long_history_is_cut_with_half_of_it_kept():
    table = make_table([[[i % 12] for i in range(12)]])
    windows = cut_windows(table, np.arange(12), max_history=4)
    assert sorted(page for window in windows for page in window.pages) == list(range(12))
    for window in windows:
        assert window.end - window.start <= 4
        for page in window.pages:
            assert table.history_end[page] - window.start >= min(2, table.history_end[page])


def test_pages_left_out_are_not_supervised_but_stay_in_the_history():
    windows = cut_windows(TABLE, np.array([0, 2]), max_history=50)
    assert [(w.start, w.end, w.pages.tolist()) for w in windows] == [(0, 3, [0, 2])]


def test_page_separators_are_refused(catalog):
    policy = make_policy(catalog, grammar=PromptGrammar(separator="page"))
    with pytest.raises(ConfigError, match="packing_pages: none"):
        build_trees(TABLE, np.arange(6), policy.prompts, max_items=10)
