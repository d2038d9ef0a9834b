import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec_rl.data.pages import PageRule, assign_pages, build_pages, parse_page_rule
from genrec_rl.errors import ConfigError
from genrec_rl.types import Action

ITEMS = pl.DataFrame({"item_id": list("ABCDEF"), "title": list("abcdef")})
A, B, C, D = 0, 1, 2, 3
EXPOSE, CLICK, ORDER = Action


def log(*rows, columns=("user_id", "item_id", "timestamp", "action", "request_id")):
    return pl.LazyFrame(list(rows), schema=list(columns), orient="row")


def request_ids(times, rule):
    frame = pl.LazyFrame({"user_id": ["u"] * len(times), "timestamp": times})
    return assign_pages(frame, parse_page_rule(rule)).collect()["request_id"].to_list()


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("request_id", PageRule("request_id")),
        ("same_day", PageRule("same_day")),
        ("gap:60s", PageRule("gap", gap=60)),
        ("gap:2h", PageRule("gap", gap=7_200)),
        ("session:30m:10", PageRule("gap", gap=1_800, size=10)),
        ("session:1d:3", PageRule("gap", gap=86_400, size=3)),
    ],
)
def test_page_rule_is_read_with_its_unit(text, rule):
    assert parse_page_rule(text) == rule


@pytest.mark.parametrize("text", ["", "sameday", "gap:60", "gap:s", "gap:60s:10", "session:30m", "session:30m:0"])
def test_unknown_page_rule_names_the_forms(text):
    with pytest.raises(ConfigError, match=r"is none of request_id, same_day, gap:60s, session:30m:10"):
        parse_page_rule(text)


def test_rules_say_what_a_page_is():
    assert "30 minutes apart, cut after every 10 events" in parse_page_rule("session:30m:10").meaning
    assert "one day (UTC)" in parse_page_rule("same_day").meaning
    assert "one logged request" in parse_page_rule("request_id").meaning
    assert "90 seconds apart)" in parse_page_rule("gap:90s").meaning


def test_same_day_breaks_at_midnight_utc():
    assert request_ids([0, 86_399, 86_400, 200_000], "same_day") == ["u:0", "u:0", "u:1", "u:2"]


def test_gap_breaks_only_above_the_limit():
    assert request_ids([0, 60, 121, 122], "gap:60s") == ["u:0", "u:0", "u:1", "u:1"]


def test_session_is_cut_and_the_cut_starts_anew_after_a_gap():
    assert request_ids([0, 1, 2, 100, 101, 102], "session:1m:2") == ["u:0", "u:0", "u:1", "u:2", "u:2", "u:3"]


def test_users_never_share_a_derived_page():
    frame = pl.LazyFrame({"user_id": [2, 1, 2], "timestamp": [5, 5, 5]})
    pages = assign_pages(frame, parse_page_rule("same_day")).collect()
    assert pages.rows() == [(1, 5, "1:0"), (2, 5, "2:0"), (2, 5, "2:0")]


def test_request_rule_needs_the_column():
    with pytest.raises(ConfigError, match=r"needs a request_id column in events; add it or choose one of same_day"):
        request_ids([1], "request_id")


def test_page_orders_by_intensity_then_time():
    pages = build_pages(
        log(
            ("u", "A", 10, "expose", "q"),
            ("u", "B", 10, "expose", "q"),
            ("u", "C", 11, "click", "q"),
            ("u", "D", 12, "order", "q"),
            ("u", "E", 13, "click", "q"),
            ("u", "F", 14, "order", "q"),
        ),
        ITEMS,
    )
    page = pages.example(0)
    assert page.items.tolist() == [3, 5, 2, 4, 0, 1]
    assert page.actions.tolist() == [ORDER, ORDER, CLICK, CLICK, EXPOSE, EXPOSE]
    assert page.positives.tolist() == [3, 5, 2, 4]


def test_position_breaks_ties_in_time():
    columns = ("user_id", "item_id", "timestamp", "action", "request_id", "position")
    pages = build_pages(
        log(("u", "A", 10, "click", "q", 2), ("u", "B", 10, "click", "q", 1), ("u", "C", 9, "click", "q", 3),
            columns=columns), ITEMS)  # fmt: skip
    assert pages.items.tolist() == [C, B, A]


def test_item_keeps_its_strongest_action_once():
    pages = build_pages(
        log(
            ("u", "A", 10, "expose", "q"),
            ("u", "B", 10, "expose", "q"),
            ("u", "A", 11, "order", "q"),
            ("u", "A", 12, "click", "q"),
        ),
        ITEMS,
    )
    assert (pages.items.tolist(), pages.actions.tolist()) == ([A, B], [ORDER, EXPOSE])
    assert pages.history_items.tolist() == [A]


def test_history_is_clicked_and_ordered_strictly_before_the_page():
    pages = build_pages(
        log(
            ("u", "A", 10, "click", "p"),
            ("u", "B", 11, "expose", "p"),
            ("u", "C", 20, "order", "q"),
            ("u", "D", 20, "expose", "r"),
            ("u", "E", 21, "click", "r"),
            ("v", "F", 99, "click", "s"),
        ),
        ITEMS,
    )
    histories = [pages.example(p).context.history.tolist() for p in range(4)]
    assert pages.request_ids.tolist() == ["p", "q", "r", "s"]
    assert histories == [[], [A], [A], []]
    assert pages.example(2).context.history_times.tolist() == [10]
    assert pages.example(2).context.history_pages.tolist() == [0]
    assert pages.times.tolist() == [10, 20, 20, 99]


def test_interleaved_requests_see_only_what_had_happened():
    pages = build_pages(
        log(
            ("u", "A", 10, "click", "p"),
            ("u", "B", 15, "expose", "q"),
            ("u", "C", 16, "click", "p"),
            ("u", "B", 17, "click", "q"),
        ),
        ITEMS,
    )
    assert pages.example(1).context.history.tolist() == [A]


def test_history_by_order_sees_earlier_items_of_the_same_second():
    rows = log(("u", "A", 10, "click", "p"), ("u", "B", 10, "click", "q"), ("u", "C", 10, "click", "r"))
    by_order = build_pages(rows, ITEMS, history="order")
    by_time = build_pages(rows, ITEMS)
    assert [by_order.example(p).context.history.tolist() for p in range(3)] == [[], [A], [A, B]]
    assert not by_time.has_history.any()


RATED = (
    ("u", "A", 10, "expose", "p"), ("u", "B", 10, "click", "p"), ("u", "C", 20, "expose", "q"),
    ("u", "D", 20, "expose", "q"), ("u", "A", 20, "expose", "q"), ("u", "E", 30, "click", "r"),
    ("v", "F", 5, "expose", "s"), ("v", "B", 9, "order", "t"),
)  # fmt: skip


def disliked(pages):
    return [pages.example(p, max_history=1).context.disliked.tolist() for p in range(len(pages))]


def test_what_was_taken_and_not_liked_is_known_strictly_before_a_page_and_never_cut():
    pages = build_pages(log(*RATED), ITEMS, exposed_is_taken=True)
    assert pages.request_ids.tolist() == ["p", "q", "r", "s", "t"]
    assert disliked(pages) == [[], [A], [A, C, D, A], [], [5]]


def test_what_was_only_shown_is_not_disliked():
    assert disliked(build_pages(log(*RATED), ITEMS)) == [[]] * 5


def test_by_order_earlier_dislikes_of_the_same_second_are_known():
    rows = (("u", "A", 10, "expose", "p"), ("u", "B", 10, "click", "q"), ("u", "C", 10, "expose", "q"))
    by_time, by_order = (
        build_pages(log(*rows), ITEMS, history=rule, exposed_is_taken=True) for rule in ("time", "order")
    )
    assert (disliked(by_time), disliked(by_order)) == ([[], []], [[], [A]])


@pytest.mark.parametrize("rule", ["time", "order"])
def test_what_was_shown_and_then_taken_is_no_dislike(rule):
    rows = (("u", "A", 10, "click", "p"), ("u", "C", 30, "expose", "q"), ("u", "C", 31, "order", "q"),
            ("u", "B", 40, "click", "r"))  # fmt: skip
    assert disliked(build_pages(log(*rows), ITEMS, history=rule, exposed_is_taken=True)) == [[], [], []]


def test_a_users_dislikes_are_found_up_to_a_time():
    found = build_pages(log(*RATED), ITEMS, exposed_is_taken=True).disliked
    assert [found.of_user(0, 2, time=time).tolist() for time in (10, 11, 99)] == [[], [A], [A, C, D, A]]
    assert [found.of_user(3, 4, time=time).tolist() for time in (5, 99)] == [[], [5]]


def test_max_history_keeps_the_newest():
    pages = build_pages(log(*[("u", item, t, "click", f"q{t}") for t, item in enumerate("ABCD")]), ITEMS)
    context = pages.example(3, max_history=2).context
    assert (context.history.tolist(), context.history_pages.tolist()) == ([B, C], [1, 2])
    view = pages.select(np.array([3, 1]), max_history=1)
    assert [example.context.history.tolist() for example in view] == [[C], [A]]
    assert (len(view), len(view[1:]), view[-1].request_id) == (2, 1, "q1")


def test_masks_per_page():
    pages = build_pages(
        log(("u", "A", 1, "expose", "p"), ("u", "B", 2, "click", "q"), ("u", "C", 3, "order", "q"),
            ("v", "C", 3, "expose", "r")), ITEMS)  # fmt: skip
    assert pages.positives_per_page.tolist() == [0, 2, 0]
    assert pages.has_positive.tolist() == [False, True, False]
    assert pages.starts_user.tolist() == [True, False, True]


EVENT = st.tuples(
    st.sampled_from("xyz"),
    st.sampled_from("ABCDEF"),
    st.integers(0, 3 * 86_400).map(lambda t: t // 997 * 997),
    st.sampled_from(["expose", "click", "order"]),
)
FEW = settings(max_examples=60, deadline=None)
LOGS = st.lists(EVENT, min_size=1, max_size=40, unique=True)
RULES = st.sampled_from(["same_day", "gap:0s", "gap:1h", "session:5h:3", "session:30m:1"])


def paged(rows, rule):
    return assign_pages(log(*rows, columns=("user_id", "item_id", "timestamp", "action")), parse_page_rule(rule))


@FEW
@given(LOGS, RULES)
def test_page_rules_partition_the_events_of_each_user(rows, rule):
    events = paged(rows, rule).collect()
    assert sorted(events.drop("request_id").rows()) == sorted(rows)
    assert events["request_id"].null_count() == 0
    pages = events.group_by("request_id").agg(
        pl.col("user_id").n_unique(),
        pl.col("user_id").first().alias("user"),
        pl.col("timestamp").min().alias("first"),
        pl.col("timestamp").max().alias("last"),
    )
    assert (pages["user_id"] == 1).all()
    for _, of_user in pages.sort("first", "last").group_by("user", maintain_order=True):
        assert (of_user["last"].to_numpy()[:-1] <= of_user["first"].to_numpy()[1:]).all()


@FEW
@given(LOGS, RULES, st.sampled_from(["time", "order"]))
def test_no_history_event_lies_in_its_pages_future(rows, rule, history):
    pages = build_pages(paged(rows, rule), ITEMS, history=history)
    for p in range(len(pages)):
        context = pages.example(p).context
        assert p not in context.history_pages
        if history == "time":
            assert (context.history_times < context.time).all()
        assert (context.history_times <= context.time).all()
        assert (np.diff(context.history_times) >= 0).all()
        assert (pages.user_ids[context.history_pages] == context.user_id).all()


@FEW
@given(LOGS, RULES)
def test_pages_hold_each_item_once_at_its_strongest_in_falling_intensity(rows, rule):
    events = paged(rows, rule)
    pages = build_pages(events, ITEMS)
    strength = {"expose": 1, "click": 2, "order": 3}
    expected = {}
    for _, item, _, action, request in events.collect().rows():
        key = (request, ord(item) - ord("A"))
        expected[key] = max(expected.get(key, 0), strength[action])
    found = {}
    for p in range(len(pages)):
        example = pages.example(p)
        assert (np.diff(example.actions) <= 0).all()
        pairs = zip(example.items.tolist(), example.actions.tolist(), strict=True)
        found |= {(example.request_id, item): action for item, action in pairs}
    assert found == expected
    assert len(pages.items) == len(expected)


VALUED = ("user_id", "item_id", "timestamp", "action", "request_id", "value")


def test_item_is_worth_its_most_valued_event_of_the_page():
    events = log(
        ("u", "A", 1, "expose", "q", 2.0), ("u", "A", 2, "click", "q", 0.5), ("u", "B", 3, "order", "q", 1.0),
        ("u", "A", 9, "click", "r", 7.0), columns=VALUED,
    )  # fmt: skip
    pages = build_pages(events, ITEMS)
    assert pages.items.tolist() == [B, A, A]
    assert pages.values.tolist() == [1.0, 2.0, 7.0]
    assert pages.example(0).positive_values.tolist() == [1.0, 2.0]


def test_values_change_nothing_else():
    plain = log(("u", "A", 1, "click", "q"), ("u", "B", 2, "order", "q"), ("u", "C", 3, "expose", "r"))
    without, with_them = build_pages(plain, ITEMS), build_pages(plain.with_columns(value=pl.lit(2.0)), ITEMS)
    assert without.values is None
    assert without.example(0).values is None
    for name in ("items", "actions", "item_offsets", "history_items", "history_start", "history_end", "times"):
        np.testing.assert_array_equal(getattr(without, name), getattr(with_them, name))


def test_history_items_are_found_on_their_own_pages():
    events = log(
        ("u", "A", 1, "click", "q"), ("u", "B", 2, "order", "q"), ("u", "D", 3, "expose", "q"),
        ("u", "A", 8, "order", "r"), ("u", "C", 9, "click", "r"), ("v", "A", 5, "click", "s"),
    )  # fmt: skip
    pages = build_pages(events, ITEMS)
    places = pages.item_places()
    assert places.tolist() == [1, 0, 3, 4, 5]  # page q in target order: B, A, D
    np.testing.assert_array_equal(pages.items[places], pages.history_items)
    np.testing.assert_array_equal(pages.item_pages[places], pages.history_pages)
