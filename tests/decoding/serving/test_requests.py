import dataclasses

import polars as pl
import pytest
from pydantic import ValidationError

from genrec_rl.data.events import SourceTables
from genrec_rl.data.pages import DAY
from genrec_rl.data.store import load_dataset, write_dataset
from genrec_rl.decoding.serving.requests import BadRequest, RecommendBody, RequestReader, shortened

NOW = 100 * DAY + 5
ITEMS = pl.DataFrame({"item_id": [10, 20, 30, 40], "title": ["a", "b", "c", "d"]})
ROWS = [
    (1, 10, 10, "click"), (1, 20, 500, "order"), (1, 40, 501, "expose"), (1, 30, 900, "click"),
    (2, 20, 10, "click"), (2, 30, 400, "order"), (2, 10, 900, "click"), (3, 40, 5, "expose"),
]  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    events = pl.LazyFrame(ROWS, schema=["user_id", "item_id", "timestamp", "action"], orient="row")
    tables = SourceTables(name="toy", events=events, items=ITEMS, page_rule="gap:60s", note="A toy.")
    write_dataset(tables, folder / "data")
    return load_dataset(folder / "data")


@pytest.fixture
def reader(dataset):
    return RequestReader(dataset, max_k=3, max_items=4, settings_key="policy", now=lambda: NOW)


def read(reader, **body):
    return reader.read(RecommendBody(**body))


def history(ask):
    return ask.context.history.tolist()


def test_known_user_brings_all_clicked_and_ordered_items_those_of_the_test_page_too(reader):
    ask = read(reader, user_id=1)
    assert history(ask) == [0, 1, 2]
    assert ask.context.history_times.tolist() == [10, 500, 900]
    assert ask.context.time == NOW


def test_each_user_has_a_history_of_their_own(reader):
    assert history(read(reader, user_id="2")) == [1, 2, 0]
    assert history(read(reader, user_id=3)) == []


def test_known_user_at_an_earlier_time_brings_what_came_before_it(reader):
    assert history(read(reader, user_id=1, time=900)) == [0, 1]


def test_known_user_of_a_log_from_the_future_is_asked_after_it(dataset):
    early = RequestReader(dataset, max_k=3, max_items=4, settings_key="", now=lambda: 3.0)
    assert early.read(RecommendBody(user_id=1)).context.time == 901


def test_items_are_found_as_number_or_text_and_unknown_ones_are_counted(reader):
    ask = read(reader, history=[10, "30", 99, "x"], exclude=[20, "y"])
    assert history(ask) == [0, 2]
    assert ask.unknown_items == 3
    assert ask.excluded == {1}


def test_history_without_times_lies_on_days_of_its_own_up_to_yesterday(reader):
    context = read(reader, history=[10, 20, 30]).context
    assert (context.history_times // DAY).tolist() == [97, 98, 99]
    assert context.history_pages.tolist() == [0, 1, 2]


def test_history_of_a_day_is_a_page(reader):
    context = read(reader, history=[10, 20, 30], history_times=[DAY + 1, DAY + 2, 2 * DAY], time=3 * DAY).context
    assert context.history_times.tolist() == [DAY + 1, DAY + 2, 2 * DAY]
    assert context.history_pages.tolist() == [0, 0, 1]


def test_a_new_user_is_an_empty_history(reader):
    assert history(read(reader, history=[])) == []


def test_seen_items_are_excluded_on_demand(reader):
    assert read(reader, history=[10, 20], exclude=[40], exclude_seen=True).excluded == {0, 1, 3}
    assert read(reader, history=[10, 20]).excluded == frozenset()


def test_what_known_users_disliked_is_excluded_with_what_they_liked(tmp_path):
    events = pl.LazyFrame(ROWS, schema=["user_id", "item_id", "timestamp", "action"], orient="row")
    rated = SourceTables(
        name="toy", events=events, items=ITEMS, page_rule="gap:60s", note="A toy.", exposed_is_taken=True
    )
    write_dataset(rated, tmp_path)
    reader = RequestReader(load_dataset(tmp_path), max_k=3, max_items=4, settings_key="policy", now=lambda: NOW)
    assert read(reader, user_id=1, exclude_seen=True).excluded == {0, 1, 2, 3}
    assert read(reader, user_id=1, exclude_seen=True, time=501).excluded == {0, 1}
    assert read(reader, user_id=3, exclude_seen=True).excluded == {3}
    assert history(read(reader, user_id=3)) == []


def test_k_left_out_is_ten_or_as_many_as_may_be_asked_for(reader, dataset):
    assert read(reader, history=[]).k == 3
    assert RequestReader(dataset, max_k=20, max_items=4, settings_key="").read(RecommendBody(history=[])).k == 10


def test_equal_requests_share_a_key(reader):
    known, mixed = read(reader, history=[10, 20]), read(reader, history=["10", 98, 20, 99])
    assert known.key == mixed.key
    assert known.context.history_times.tolist() == mixed.context.history_times.tolist()
    assert known.context.history_pages.tolist() == mixed.context.history_pages.tolist()
    assert read(reader, user_id=1).key == read(reader, user_id="1").key


@pytest.mark.parametrize(
    "other",
    [
        {"history": [20, 10]}, {"k": 2}, {"exclude": [30]}, {"exclude_seen": True}, {"time": 7 * DAY},
        {"history_times": [1, 2]}, {"history_times": [1, 3]},
    ],
)  # fmt: skip
def test_whatever_changes_an_answer_changes_the_key(reader, other):
    plain = {"history": [10, 20], "k": 3}
    assert read(reader, **plain).key != read(reader, **plain | other).key
    assert hash(read(reader, **plain | other).key)


def test_another_policy_another_user_and_another_day_are_other_keys(reader, dataset):
    other_policy = RequestReader(dataset, max_k=3, max_items=4, settings_key="other", now=lambda: NOW)
    tomorrow = RequestReader(dataset, max_k=3, max_items=4, settings_key="policy", now=lambda: NOW + DAY)
    plain = RecommendBody(history=[10, 20, 30], k=3)
    keys = {one.read(plain).key for one in (reader, other_policy, tomorrow)}
    assert len(keys | {read(reader, user_id=1, k=3).key}) == 4


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "either user_id or history"),
        ({"user_id": 1, "history": [10]}, "either user_id or history"),
        ({"history": [10], "k": 0}, "k is 0; ask for 1 to 3"),
        ({"history": [10], "k": 4}, "k is 4; ask for 1 to 3"),
        ({"history": [10] * 5}, "history holds 5 items, at most 4"),
        ({"history": [], "exclude": [10] * 5}, "exclude holds 5 items"),
        ({"user_id": 1, "history_times": [1]}, "history_times needs a history"),
        ({"history": [10], "history_times": []}, "0 history_times for 1"),
        ({"history": [10, 20], "history_times": [2, 1]}, "go back in time"),
        ({"history": [10], "history_times": [9], "time": 9}, "not before the request's time 9"),
    ],
)
def test_what_contradicts_itself_or_a_limit_is_refused(reader, body, message):
    with pytest.raises(BadRequest, match=message) as refusal:
        read(reader, **({"k": 3} | body))
    assert refusal.value.status == 422


def test_unknown_user_is_not_found(reader):
    with pytest.raises(BadRequest, match="user '7' is not in the data") as refusal:
        read(reader, user_id=7, k=3)
    assert refusal.value.status == 404


@pytest.mark.parametrize(
    "body", [{"hist": [1]}, {"history": [True]}, {"history": [1.5]}, {"k": "3"}, {"time": -1}, {"time": 10**12}]
)
def test_wrong_types_and_unknown_keys_are_refused(body):
    with pytest.raises(ValidationError):
        RecommendBody(**body)


def test_asks_are_compared_by_key_alone(reader):
    ask = read(reader, history=[10])
    assert ask != dataclasses.replace(ask)


def test_a_refusal_repeats_a_line_of_the_request_at_most():
    assert shortened("x" * 80) == "x" * 80
    assert shortened("x" * 81) == "x" * 80 + "..."
