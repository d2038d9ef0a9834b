from datetime import UTC, datetime

import polars as pl
import pytest

from genrec_rl.data.events import (
    SourceTables,
    check_events,
    check_items,
    check_tables,
    read_events,
    read_items,
    shuffle_ties,
)
from genrec_rl.data.pages import sort_events
from genrec_rl.errors import DataError

EVENTS = {"user_id": ["a", "a"], "item_id": [1, 2], "timestamp": [10, 20], "action": ["click", "order"]}
REQUESTS = EVENTS | {"request_id": ["q", "r"], "position": [0, 0]}
ITEMS = {"item_id": [1, 2], "title": ["one", "two"]}


def events(**columns):
    return pl.LazyFrame(REQUESTS | columns)


def without(column):
    return pl.LazyFrame({name: values for name, values in EVENTS.items() if name != column})


def test_good_events_pass_unchanged():
    assert check_events(events()).collect().to_dict(as_series=False) == REQUESTS


def test_zoned_timestamp_becomes_utc_seconds():
    moment = datetime(2024, 1, 1, 0, 0, 5, tzinfo=UTC)
    frame = events(timestamp=[moment, moment]).with_columns(pl.col("timestamp").dt.convert_time_zone("Asia/Tokyo"))
    assert check_events(frame).collect()["timestamp"].to_list() == [1_704_067_205] * 2


def test_small_integers_and_categoricals_become_the_contract_types():
    frame = events().with_columns(
        pl.col("item_id").cast(pl.UInt16), pl.col("user_id").cast(pl.Categorical), pl.col("position").cast(pl.Int8)
    )
    schema = check_events(frame).collect_schema()
    assert (schema["item_id"], schema["user_id"], schema["position"]) == (pl.Int64, pl.String, pl.Int64)


def test_integer_request_ids_become_strings():
    assert check_events(events(request_id=[7, 8])).collect()["request_id"].to_list() == ["7", "8"]


def test_values_of_any_number_become_floats():
    assert check_events(events(value=[0, 7])).collect()["value"].to_list() == [0.0, 7.0]


@pytest.mark.parametrize(
    ("frame", "parts"),
    [
        (without("user_id"), ["events", "column 'user_id' is missing", "add"]),
        (without("action").with_columns(actions=pl.lit("click")), ["'action' is missing", "did you mean 'actions'"]),
        (events(user_id=[0.5, 1.5]), ["events", "user_id is Float64", "string or int64", "cast"]),
        (events(timestamp=["x", "y"]), ["timestamp is String", "int64 seconds UTC"]),
        (events(position=["x", "y"]), ["position is String", "an integer"]),
        (events(value=["x", "y"]), ["value is String", "a number"]),
        (events(value=[1.0, None]), ["events row 1", "value is null"]),
        (events(value=[1.0, -0.5]), ["events row 1", "value -0.5", "at least 0"]),
        (events(value=[float("nan"), 1.0]), ["events row 0", "value nan", "finite"]),
        (events(value=[1.0, float("inf")]), ["events row 1", "value inf", "finite"]),
        (events(action=[1, 2]), ["action is Int64", "string"]),
        (events(timestamp=[datetime(2024, 1, 1)] * 2), ["timestamp", "without a time zone", "attach"]),  # noqa: DTZ001
        (events(timestamp=[10, 1_700_000_000_000]), ["events row 1", "1700000000000", "divide milliseconds by 1000"]),
        (events(user_id=["a", None]), ["events row 1", "user_id is null", "remove the row"]),
        (events(item_id=[None, 2]), ["events row 0", "item_id is null"]),
        (events(timestamp=[10, None]), ["events row 1", "timestamp is null"]),
        (events(action=["click", None]), ["events row 1", "action is null"]),
        (events(request_id=["q", None]), ["events row 1", "request_id is null"]),
        (events(position=[0, None]), ["events row 1", "position is null"]),
        (
            events(action=["click", "clik"]),
            ["events row 1", "'clik'", "expose, click, order", "did you mean 'click'"],
        ),
        (
            pl.LazyFrame({name: values * 2 for name, values in REQUESTS.items()}),
            ["events rows 0 and 2", "request_id, item_id, action", "'q', 1, 'click'", "keep one row"],
        ),
        (
            pl.LazyFrame({name: values * 2 for name, values in EVENTS.items()}),
            ["events rows 0 and 2", "timestamp", "keep one row"],
        ),
        (events(user_id=["a", "b"], request_id=["q", "q"]), ["request_id 'q'", "2 users, limit 1", "unique"]),
        (events().head(0), ["events: 0 rows", "at least 1"]),
    ],
)
def test_bad_events_are_refused_by_table_row_value_and_remedy(frame, parts):
    with pytest.raises(DataError) as refusal:
        check_events(frame)
    for part in parts:
        assert part in str(refusal.value)


def test_one_item_may_be_shown_and_clicked_in_one_request():
    frame = events(item_id=[1, 1], request_id=["q", "q"], action=["expose", "click"])
    assert len(check_events(frame).collect()) == 2


@pytest.mark.parametrize(
    ("columns", "parts"),
    [
        ({"title": None}, ["items", "column 'title' is missing"]),
        ({"item_id": [1.0, 2.0]}, ["items", "item_id is Float64"]),
        ({"title": [1, 2]}, ["items", "title is Int64"]),
        ({"item_id": [1, None]}, ["items row 1", "item_id is null"]),
        ({"title": [None, "b"]}, ["items row 0", "title is null", "fill it"]),
        ({"item_id": [2, 2]}, ["items rows 0 and 1", "item_id 2 occurs twice"]),
        ({"item_id": [], "title": []}, ["items: 0 rows"]),
        ({"embedding": ["x", "y"]}, ["embedding is String", "list<float32>"]),
        ({"embedding": [[1.0, 2.0], [3.0]]}, ["items row 1", "embedding", "2 wide"]),
        ({"embedding": [[1.0], [float("nan")]]}, ["items row 1", "non-finite"]),
        ({"embedding": [[1.0], None]}, ["items row 1", "embedding is null"]),
        ({"embedding": [[1.0], [None]]}, ["items row 1", "embedding is null"]),
    ],
)
def test_bad_items_are_refused_by_table_row_value_and_remedy(columns, parts):
    table = {name: values for name, values in (ITEMS | columns).items() if values is not None}
    schema = {"item_id": pl.Int64, "title": pl.String} if table["item_id"] == [] else None
    with pytest.raises(DataError) as refusal:
        check_items(pl.DataFrame(table, schema=schema))
    for part in parts:
        assert part in str(refusal.value)


def test_good_items_pass_with_embedding():
    items = pl.DataFrame(ITEMS | {"embedding": [[1.0, 0.0], [0.0, 1.0]]})
    assert check_items(items).equals(items)


def test_event_on_an_unknown_item_names_row_and_item():
    with pytest.raises(DataError, match=r"events row 1: item_id 3 is not in items; add its row"):
        check_tables(events(item_id=[1, 3]), pl.DataFrame(ITEMS))


def test_ids_of_two_types_are_refused():
    with pytest.raises(DataError, match=r"events: item_id is Int64 but items: item_id is String; cast"):
        check_tables(events(), pl.DataFrame(ITEMS | {"item_id": ["1", "2"]}))


@pytest.mark.parametrize("read", [read_events, read_items])
@pytest.mark.parametrize("content", [None, b"", b"PAR1 not parquet", "half"])
def test_missing_truncated_or_foreign_file_is_named(tmp_path, read, content):
    path = tmp_path / "table.parquet"
    if content == "half":
        events().collect().write_parquet(path)
        content = path.read_bytes()[:-20]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"table\.parquet: (no such file|truncated, corrupt)"):
        read(path)


def in_order(seed):
    """Two users, two seconds each, five events a second, in the order they stand in after the shuffle."""
    frame = pl.LazyFrame(
        {"user_id": ["a"] * 10 + ["b"] * 10, "timestamp": ([1] * 5 + [2] * 5) * 2, "item_id": range(20)}
    )
    tables = SourceTables("made", frame, pl.DataFrame(), "same_day", "Made.")
    return sort_events(shuffle_ties(tables, seed=seed).events).collect()["item_id"].to_list()


def test_shuffled_ties_stay_in_their_user_and_second():
    order = in_order(0)
    assert [set(order[i : i + 5]) for i in range(0, 20, 5)] == [set(range(i, i + 5)) for i in range(0, 20, 5)]


def test_shuffled_ties_follow_the_seed():
    assert in_order(0) == in_order(0) != in_order(1)
    assert in_order(0) != list(range(20))
