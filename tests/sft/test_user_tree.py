import dataclasses

import numpy as np
import pytest
import torch

from genrec_rl.data.pages import DAY, PageTable
from genrec_rl.errors import ConfigError
from genrec_rl.models.prefix_tree import TRUNK
from genrec_rl.models.prompts import PromptGrammar
from genrec_rl.sft.rows import IGNORED, build_rows, training_row
from genrec_rl.sft.targets import answers_of
from genrec_rl.sft.user_tree import ROOM, TreeCollator, branches, build_trees, cut_windows, share_rows, tree_row
from genrec_rl.types import Action
from tests.fixtures import make_policy


def make_table(users: list[list[list[int]]]) -> PageTable:
    """Every user's pages, each a list of clicked items, two a day; the history is all items of earlier pages."""
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
        history_times=np.arange(len(items)) * (DAY // 2),
        history_pages=np.repeat(np.arange(len(rows)), [len(page) for _, page in rows]).astype(np.int32),
        history_start=np.array(starts),
        history_end=np.array(ends),
    )


def with_values(table, values, actions=None):
    values = None if values is None else np.asarray(values, float)
    changes = {} if actions is None else {"actions": np.array(actions, np.int8)}
    return dataclasses.replace(table, values=values, **changes)


def answers(table=None, chosen=None, *, target="page"):
    table = TABLE if table is None else table
    return answers_of(table, np.arange(len(table)) if chosen is None else chosen, target=target, max_items=10)


TABLE = make_table([[[0, 1], [2], [3, 4, 5]], [[6], [7, 8]], [[9]]])


def loss_of(model, batch) -> torch.Tensor:
    batch = dict(batch)
    labels = batch.pop("shift_labels")
    batch.pop("labels")
    scores = model(**batch).logits.log_softmax(-1)
    return -scores.gather(2, labels.clamp(min=0)[..., None])[..., 0][labels >= 0].sum()


@pytest.mark.parametrize(
    "grammar", [{}, {"merge": False}, {"separator": "none"}, {"separator": "day"}, {"page_items": "merged"}], ids=str
)
@pytest.mark.parametrize("target", ["page", "item", "running", "page+running"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_tree_has_the_loss_and_gradient_of_one_row_an_answer(catalog, grammar, target, attention):
    policy = make_policy(catalog, grammar=PromptGrammar(**grammar))
    policy.model.set_attn_implementation(attention)
    rows = build_rows(answers(target=target), policy.prompts)
    expected = sum(
        -policy.model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)[i - 1, token]
        for row in rows
        for i, token in enumerate(row["labels"])
        if token >= 0
    )
    collate = TreeCollator(policy.model, pad_id=policy.vocab.pad_id)
    trees = build_trees(answers(target=target), policy.prompts)
    batch = collate(list(trees))
    assert len(batch["input_ids"]) < len(trees)  # users share rows
    found = loss_of(policy.model, batch)
    weights = list(policy.model.parameters())
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for a, b in zip(torch.autograd.grad(found, weights), torch.autograd.grad(expected, weights), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_windows_that_share_rows_have_the_loss_and_gradient_of_one_window_a_batch(catalog, attention):
    policy = make_policy(catalog)
    policy.model.set_attn_implementation(attention)
    table = make_table([[[(user + i) % 12 for i in range(user % 3 + 1)], [user], [5, 6]] for user in range(9)])
    windows = list(build_trees(answers(table), policy.prompts))
    collate = TreeCollator(policy.model, pad_id=policy.vocab.pad_id)
    batch = collate(windows)
    assert batch["input_ids"].shape[0] < len(windows)
    weights = list(policy.model.parameters())
    found = loss_of(policy.model, batch)
    expected = sum(loss_of(policy.model, collate([window])) for window in windows)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    for a, b in zip(torch.autograd.grad(found, weights), torch.autograd.grad(expected, weights), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def test_head_gets_the_places_with_a_label_only(policy):
    windows = list(build_trees(answers(), policy.prompts))
    batch = TreeCollator(policy.model, pad_id=policy.vocab.pad_id)(windows)
    assert batch["shift_labels"].shape == batch["kept_places"].unsqueeze(0).shape == (1, 3 * 10)
    assert (batch["shift_labels"] >= 0).all()


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [
        ([10, 5, 5, 4], [[0, 3], [1, 2]]),  # 2 x 14 places; three rows of 10 would be 30
        ([4, 10, 5, 5], [[1, 0], [2, 3]]),
        ([10, 9, 9], [[0], [1], [2]]),  # two rows would be 18 wide, more than 15
        ([10, 4, 4, 4, 4, 4], [[0], [1, 3, 5], [2, 4]]),  # 3 x 12; four rows of 10 would be 40
        ([7], [[0]]),
    ],
)
def test_rows_are_shared_with_the_fewest_places(lengths, rows):
    assert share_rows(lengths) == rows


def test_every_window_lies_in_one_row_of_bounded_width():
    rng = np.random.default_rng(0)
    for n in range(1, 40):
        lengths = rng.integers(1, 300, n).tolist()
        rows = share_rows(lengths)
        widths = [sum(lengths[i] for i in row) for row in rows]
        assert sorted(i for row in rows for i in row) == list(range(n))
        assert max(widths) <= ROOM * max(lengths)
        assert len(rows) * max(widths) <= n * max(lengths)


def test_first_token_of_an_answer_is_predicted_by_the_trunk_and_once_only(policy):
    (row, *_) = build_trees(answers(target="item"), policy.prompts)
    is_trunk = row["owner"] == TRUNK
    # Histories: none, [0 1], [0 1 2] for answers 0 and 1, 2, and 3 to 5: three places, six answers.
    assert (row["shift_labels"][is_trunk] != IGNORED).sum() == 3
    assert np.bincount(row["owner"][~is_trunk]).tolist() == [2, 3, 2, 2, 3, 3]


def test_window_holds_one_user_and_all_answers_that_fit():
    windows = cut_windows(answers(), max_history=50)
    assert [(w.start, w.end, list(w.answers)) for w in windows] == [(0, 3, [0, 1, 2]), (6, 7, [3, 4]), (9, 9, [5])]


def test_window_of_running_answers_reaches_into_the_last_page():
    windows = cut_windows(answers(target="running"), max_history=50)
    assert [(w.start, w.end) for w in windows] == [(0, 5), (6, 8), (9, 9)]


@pytest.mark.parametrize("target", ["page", "running", "page+running"])
def test_long_history_is_cut_with_half_of_it_kept(target):
    taught = answers(make_table([[[i % 12, 3] for i in range(12)]]), target=target)
    windows = cut_windows(taught, max_history=4)
    assert [i for window in windows for i in window.answers] == list(range(len(taught)))
    for window in windows:
        assert window.end - window.start <= 4
        for i in window.answers:
            assert window.start + min(2, taught.knows[i]) <= taught.knows[i] <= window.end


def test_pages_left_out_are_not_supervised_but_stay_in_the_history():
    windows = cut_windows(answers(chosen=np.array([0, 2])), max_history=50)
    assert [(w.start, w.end, list(w.answers)) for w in windows] == [(0, 3, [0, 1])]


def test_rows_are_written_once_and_cannot_be_changed(policy, monkeypatch):
    trees = build_trees(answers(), policy.prompts)
    first = trees[0]
    monkeypatch.setattr("genrec_rl.sft.user_tree.tree_row", None)
    assert trees[0]["input_ids"].tolist() == first["input_ids"].tolist()
    with pytest.raises(ValueError, match="read-only"):
        first["input_ids"][0] = 7


def test_page_separators_are_refused(catalog):
    policy = make_policy(catalog, grammar=PromptGrammar(separator="page"))
    with pytest.raises(ConfigError, match="packing_pages: none"):
        build_trees(answers(), policy.prompts)


@pytest.mark.parametrize("target", ["page", "item", "running", "page+running"])
@pytest.mark.parametrize("separator", ["item", "day"])
def test_tree_of_kept_items_has_the_loss_of_one_row_an_answer_of_the_kept_items(catalog, target, separator):
    policy = make_policy(catalog, grammar=PromptGrammar(separator=separator))
    taught = answers(make_table([[[0, 1], [2], [3, 4, 5]]]), target=target)
    (window,) = cut_windows(taught, max_history=50)
    kept = np.array([True, False, True, False, True])[: window.end - window.start]
    expected = 0.0
    for i in range(len(taught)):
        context = taught.context(i, max_history=50)
        row = training_row(policy.prompts, context.only(kept[: len(context.history)]), taught.items(i))
        scores = policy.model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        expected -= sum(scores[s - 1, token].item() for s, token in enumerate(row["labels"]) if token != IGNORED)
    row = tree_row(taught, window, policy.prompts, branches(taught, policy.prompts), kept)
    batch = TreeCollator(policy.model, pad_id=policy.vocab.pad_id)([row])
    assert loss_of(policy.model, batch).item() == pytest.approx(expected, rel=1e-5)


def test_history_dropout_leaves_out_other_items_each_time_and_no_answer(policy):
    taught = answers(make_table([[[i % 12] for i in range(20)]]), target="running")
    (window,) = build_trees(taught, policy.prompts)
    trees = build_trees(taught, policy.prompts, history_dropout=0.5)
    torch.manual_seed(0)
    first, second = trees[0], trees[0]
    for thinned in (first, second):
        assert (thinned["shift_labels"] != IGNORED).sum() == (window["shift_labels"] != IGNORED).sum()
        assert (thinned["owner"] == TRUNK).sum() < (window["owner"] == TRUNK).sum()
    assert not np.array_equal(first["input_ids"], second["input_ids"])
    torch.manual_seed(0)
    assert np.array_equal(trees[0]["input_ids"], first["input_ids"])
