import dataclasses
import hashlib
import json

import numpy as np
import polars as pl
import pytest

from genrec_rl.data.events import SourceTables
from genrec_rl.data.store import load_dataset, write_dataset
from genrec_rl.errors import ConfigError, DataError

ITEMS = pl.DataFrame({"item_id": list("ABCD"), "title": ["a", "b", "c", "d"], "price": [1.0, 2.0, 3.0, 4.0]})
ROWS = [
    ("u", "A", 10, "click"), ("u", "B", 11, "order"), ("u", "C", 500, "click"), ("u", "D", 501, "expose"),
    ("u", "A", 900, "click"), ("v", "B", 10, "click"), ("v", "C", 400, "expose"), ("v", "D", 900, "order"),
]  # fmt: skip


def tables(rows=ROWS, items=ITEMS, **changes):
    events = pl.LazyFrame(rows, schema=["user_id", "item_id", "timestamp", "action"], orient="row")
    return dataclasses.replace(
        SourceTables(name="toy", events=events, items=items, page_rule="gap:60s", note="A toy."), **changes
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_card_holds_the_counts_of_the_toy_log(tmp_path):
    card = write_dataset(tables(), tmp_path / "data")
    found = {name: value for name, value in dataclasses.asdict(card).items() if name != "sha256"}
    assert found == {
        "source": "toy",
        "page": "A page is one user's sitting (events at most 1 minute apart); no request was logged. A toy.",
        "page_rule": "gap:60s",
        "split": "leave_last_page_out",
        "users": 2,
        "items": 4,
        "events": 8,
        "pages": 6,
        "items_per_page": 1.3333,
        "positives_per_page": 1.0,
        "share_several_positives": 0.1667,
        "share_without_positive": 0.1667,
        "train_pages": 2,
        "valid_pages": 1,
        "test_pages": 2,
        "dropped_pages": 1,
        "value": None,
        "exposed_is_taken": False,
    }
    written = json.loads((tmp_path / "data" / "dataset.json").read_text())
    assert written | {"value": None, "exposed_is_taken": False} == dataclasses.asdict(card)
    assert not {"value", "exposed_is_taken"} & set(written)


def test_that_exposed_is_taken_comes_back(tmp_path):
    write_dataset(tables(), tmp_path / "shown")
    write_dataset(tables(exposed_is_taken=True), tmp_path / "rated")
    shown, rated = (load_dataset(tmp_path / name) for name in ("shown", "rated"))
    assert (shown.card.exposed_is_taken, rated.card.exposed_is_taken) == (False, True)
    assert [e.context.disliked.tolist() for e in shown.examples("test")] == [[], []]
    assert [e.context.disliked.tolist() for e in rated.examples("test")] == [[3], [2]]


def test_loading_gives_back_what_was_written(tmp_path):
    card = write_dataset(tables(), tmp_path)
    data = load_dataset(tmp_path)
    assert data.card == card
    assert data.items.equals(ITEMS)
    assert (data.titles, data.item_ids, data.n_items) == (list("abcd"), list("ABCD"), 4)
    test = data.examples("test")
    assert [(e.context.user_id, e.items.tolist(), e.context.history.tolist()) for e in test] == [
        ("u", [0], [0, 1, 2]),
        ("v", [3], [1]),
    ]
    assert data.examples("test", max_history=2)[0].context.history.tolist() == [1, 2]
    events = pl.read_parquet(tmp_path / "events.parquet")
    assert events["request_id"].to_list() == ["u:0", "u:0", "u:1", "u:1", "u:2", "v:0", "v:1", "v:2"]


@pytest.mark.parametrize("word", ["no", "true", 1, None])
def test_a_card_that_says_neither_true_nor_false_is_refused(tmp_path, word):
    write_dataset(tables(exposed_is_taken=True), tmp_path)
    card = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(card | {"exposed_is_taken": word}))
    with pytest.raises(DataError, match=r"exposed_is_taken is .*; write true or false"):
        load_dataset(tmp_path)


def test_popularity_counts_training_pages_only(tmp_path):
    write_dataset(tables(), tmp_path)
    assert load_dataset(tmp_path).popularity.tolist() == [1, 2, 0, 0]


def valued(values, **changes):
    source = tables(**changes)
    column = pl.Series("value", values)
    return dataclasses.replace(source, events=source.events.with_columns(column), value_note="Value: money.")


def test_values_reach_examples_and_the_card(tmp_path):
    card = write_dataset(valued([1.0, 2, 3, 4, 5, 6, 7, 8]), tmp_path)
    data = load_dataset(tmp_path)
    assert data.card == card
    assert (card.value.meaning, card.value.total) == ("Value: money.", 9.0)  # of u:0, A and B, and of v:0, B
    assert data.item_values.tolist() == [1, 8, 0, 0]
    assert card.value.top_1_percent == pytest.approx(8 / 9, abs=1e-4)
    assert [example.positive_values.tolist() for example in data.examples("test")] == [[5], [8]]


def test_values_of_0_are_as_good_as_none(tmp_path):
    card = write_dataset(valued([0.0] * 8), tmp_path)
    assert card.value is None
    assert load_dataset(tmp_path).pages.values is None


def test_folder_prepared_before_values_is_loaded_whatever_a_column_of_that_name_holds(tmp_path):
    write_dataset(tables(), tmp_path)
    events = pl.read_parquet(tmp_path / "events.parquet").with_columns(value=pl.lit("dear"))
    events.write_parquet(tmp_path / "events.parquet")
    card = json.loads((tmp_path / "dataset.json").read_text())
    card["sha256"]["events.parquet"] = hashlib.sha256((tmp_path / "events.parquet").read_bytes()).hexdigest()
    (tmp_path / "dataset.json").write_text(json.dumps(card))
    data = load_dataset(tmp_path)
    assert data.pages.values is None
    assert data.item_values is None


def test_card_with_other_facts_of_value_is_refused(tmp_path):
    write_dataset(valued([1.0] * 8), tmp_path)
    card = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(card | {"value": {"total": 1}}))
    with pytest.raises(DataError, match="differs in gini, meaning"):
        load_dataset(tmp_path)


def test_fingerprint_depends_on_ids_and_their_order(tmp_path):
    write_dataset(tables(), tmp_path / "a")
    write_dataset(tables(items=ITEMS.reverse()), tmp_path / "b")
    write_dataset(tables(items=ITEMS.with_columns(title=pl.lit("x"))), tmp_path / "c")
    a, b, c = (load_dataset(tmp_path / name).items_fingerprint for name in "abc")
    assert a != b
    assert a == c


def test_leave_one_out_is_written_and_said(tmp_path):
    card = write_dataset(tables(), tmp_path, split="leave_one_out")
    data = load_dataset(tmp_path)
    assert "stand on pages of their own" in card.page
    assert data.pages.request_ids[data.split.test].tolist() == ["u:2#last", "v:2#last"]
    assert data.examples("valid")[0].context.history.tolist() == [0, 1]


def test_truth_is_written_and_removed_by_the_next_source(tmp_path):
    write_dataset(tables(truth={"x": np.arange(3)}), tmp_path)
    with np.load(tmp_path / "truth.npz") as truth:
        assert truth["x"].tolist() == [0, 1, 2]
    write_dataset(tables(), tmp_path)
    assert not (tmp_path / "truth.npz").exists()


@pytest.mark.parametrize(
    ("source", "settings", "error"),
    [
        (tables(rows=[*ROWS, ("u", "Z", 1, "click")]), {}, DataError),
        (tables(items=ITEMS.with_columns(item_id=pl.lit("A"))), {}, DataError),
        (tables(rows=ROWS[:2]), {}, DataError),
        (tables(), {"split": "time"}, DataError),
        (tables(), {"page_rule": "request_id"}, ConfigError),
        (tables(), {"page_rule": "hourly"}, ConfigError),
        (tables(), {"split": "random"}, ConfigError),
    ],
)
def test_a_refusal_leaves_the_old_data_set_untouched(tmp_path, source, settings, error):
    folder = tmp_path / "data"
    write_dataset(tables(), folder)
    before = contents(folder)
    with pytest.raises(error):
        write_dataset(source, folder, **settings)
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_refusal_makes_no_folder(tmp_path):
    with pytest.raises(DataError):
        write_dataset(tables(rows=[("u", "Z", 1, "click")]), tmp_path / "deep" / "data")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_split_names_the_protocol(tmp_path):
    with pytest.raises(DataError, match="split 'time' leaves 0 pages for train, valid of 6 pages, at least 1"):
        write_dataset(tables(), tmp_path / "data", split="time")


def test_missing_data_set_names_the_command(tmp_path):
    with pytest.raises(ConfigError, match=r"no data set in .*make it with `python recipes/prepare\.py --output_dir"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("name", ["events.parquet", "items.parquet"])
def test_a_changed_table_is_refused(tmp_path, name):
    write_dataset(tables(), tmp_path)
    table = pl.read_parquet(tmp_path / name)
    table.reverse().write_parquet(tmp_path / name)
    with pytest.raises(DataError, match=rf"{name} is not the table that dataset\.json describes; prepare"):
        load_dataset(tmp_path)


def test_a_card_of_another_version_is_refused(tmp_path):
    write_dataset(tables(), tmp_path)
    card = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(card | {"novel": 1}))
    with pytest.raises(DataError, match="differs in novel from this version's card"):
        load_dataset(tmp_path)
