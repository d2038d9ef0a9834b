import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec_rl.data.pages import DAY, assign_pages, build_pages, parse_page_rule
from genrec_rl.data.split import PageSplit, history_rule, isolate_last_items, refuse_leakage, split_pages
from genrec_rl.errors import ConfigError, DataError

ITEMS = pl.DataFrame({"item_id": list("ABCDEF"), "title": list("abcdef")})
COLUMNS = ["user_id", "item_id", "timestamp", "action", "request_id"]


def log(*rows):
    return pl.LazyFrame(list(rows), schema=COLUMNS, orient="row")


def split_ids(pages, **settings):
    split = split_pages(pages, **settings)
    return [pages.request_ids[part].tolist() for part in (split.train, split.valid, split.test)]


def clicks(user, times, action="click"):
    return [(user, "ABCDEF"[i % 6], t, action, f"{user}{t}") for i, t in enumerate(times)]


def test_last_page_with_a_positive_is_test_and_the_one_before_is_valid():
    rows = [*clicks("u", [1, 2, 3, 4]), ("u", "A", 5, "expose", "u5")]
    pages = build_pages(log(*rows), ITEMS)
    assert split_ids(pages, protocol="leave_last_page_out") == [["u1", "u2"], ["u3"], ["u4"]]


def test_two_pages_give_no_valid_and_one_page_trains():
    pages = build_pages(log(*clicks("u", [1, 2]), *clicks("v", [1])), ITEMS)
    assert split_ids(pages, protocol="leave_last_page_out") == [["u1", "v1"], [], ["u2"]]


def test_held_out_pages_need_a_history():
    """Three pages of one second: none may see another, so none can be asked about and all train."""
    rows = [("u", item, 7, "click", f"q{item}") for item in "ABC"]
    pages = build_pages(log(*rows), ITEMS)
    assert split_ids(pages, protocol="leave_last_page_out") == [["qA", "qB", "qC"], [], []]


def test_pages_without_a_positive_are_dropped_and_counted():
    rows = [("u", "F", 0, "expose", "u0"), *clicks("u", [1, 2, 3])]
    pages = build_pages(log(*rows), ITEMS)
    assert split_pages(pages, protocol="leave_last_page_out").n_dropped == 1
    kept = split_pages(pages, protocol="leave_last_page_out", drop_empty=False)
    assert (kept.train.tolist(), kept.n_dropped) == ([0, 1], 0)


def test_nothing_after_a_held_out_page_trains():
    rows = [*clicks("u", [1, 2, 3]), ("u", "F", 4, "expose", "u4")]
    pages = build_pages(log(*rows), ITEMS)
    assert split_ids(pages, protocol="leave_last_page_out", drop_empty=False)[0] == ["u1"]


def test_time_cut_counts_days_back_from_the_last_page():
    end = 10 * DAY
    times = [end - 3 * DAY, end - 2 * DAY, end - 2 * DAY + 1, end - DAY, end - DAY + 1, end]
    pages = build_pages(log(*clicks("u", times)), ITEMS)
    ids = [f"u{t}" for t in times]
    assert split_ids(pages, protocol="time") == [ids[:2], ids[2:4], ids[4:]]


def test_page_with_a_click_across_the_cut_neither_trains_nor_validates():
    end = 10 * DAY
    rows = [
        *clicks("u", [1, end - DAY - 5, end]),
        ("v", "A", end - 2 * DAY, "expose", "late"),
        ("v", "A", end - 2 * DAY + 9, "click", "late"),
        ("w", "A", end - 2 * DAY, "click", "before"),
        ("w", "B", end - DAY, "expose", "later"),
        ("w", "B", end - DAY + 9, "click", "later"),
    ]
    pages = build_pages(log(*rows), ITEMS)
    assert split_ids(pages, protocol="time") == [["u1", "before"], [f"u{end - DAY - 5}"], [f"u{end}"]]


def test_leave_one_out_holds_out_single_items_in_order():
    """All on one day, as on Amazon Beauty: the history runs up to the item before, of the same second too."""
    events = log(*[("u", item, 7, "order", "day") for item in "ABCD"])
    pages = build_pages(isolate_last_items(events), ITEMS, history="order")
    split = split_pages(pages, protocol="leave_one_out")
    test, valid, train = (pages.example(int(part[0])) for part in (split.test, split.valid, split.train))
    assert (test.items.tolist(), test.context.history.tolist()) == ([3], [0, 1, 2])
    assert (valid.items.tolist(), valid.context.history.tolist()) == ([2], [0, 1])
    assert (train.items.tolist(), train.context.history.tolist()) == ([0, 1], [])
    assert pages.request_ids.tolist() == ["day", "day#second_last", "day#last"]


def test_leave_one_out_moves_the_exposure_of_a_held_out_item_along():
    rows = [("u", item, 1, "expose", "q") for item in "ABCD"]
    rows += [("u", "D", 5, "click", "q"), ("u", "B", 6, "click", "q"), ("u", "A", 7, "click", "q"),
             ("u", "B", 8, "order", "q")]  # fmt: skip
    pages = build_pages(isolate_last_items(log(*rows)), ITEMS, history="order")
    assert split_ids(pages, protocol="leave_one_out") == [["q"], ["q#second_last"], ["q#last"]]
    assert [pages.example(p).items.tolist() for p in range(3)] == [[3, 2], [1], [0]]
    assert pages.example(2).context.history.tolist() == [3, 1]


def test_unknown_protocol_offers_the_nearest():
    pages = build_pages(log(*clicks("u", [1])), ITEMS)
    with pytest.raises(ConfigError, match=r"'leave_last_page' is none of .*did you mean 'leave_last_page_out'"):
        split_pages(pages, protocol="leave_last_page")


def indices(*pages):
    return np.array(pages, dtype=np.int64)


@pytest.mark.parametrize(
    ("split", "reason"),
    [
        (PageSplit(indices(0, 1), indices(1), indices(3), 0), "page u2 is in train and valid"),
        (
            PageSplit(indices(0, 3), indices(1), indices(2), 0),
            r"page u4 \(and 0 more\): its history holds valid or test",
        ),
        (PageSplit(indices(0), indices(3), indices(2), 0), "its history holds test items"),
    ],
)
def test_leaking_division_is_refused(split, reason):
    pages = build_pages(log(*clicks("u", [1, 2, 3, 4])), ITEMS)
    with pytest.raises(DataError, match=reason):
        refuse_leakage(pages, split)


@pytest.mark.parametrize("action", ["click", "expose"])
def test_history_with_the_page_itself_or_later_events_is_refused(action):
    rows = [*clicks("u", [1, 2]), *clicks("u", [3], action), *clicks("u", [4])]
    pages = build_pages(log(*rows), ITEMS)
    pages.history_end[2] = 3
    with pytest.raises(DataError, match=r"page u3 \(and 0 more\): its history holds its own or later events"):
        refuse_leakage(pages, PageSplit(indices(0), indices(1), indices(2), 0))


def test_dislikes_of_later_events_are_refused():
    rows = [*clicks("u", [1]), *clicks("u", [2]), *clicks("u", [3]), *clicks("u", [4], "expose")]
    pages = build_pages(log(*rows), ITEMS, exposed_is_taken=True)
    split = PageSplit(indices(0), indices(1), indices(2), 0)
    refuse_leakage(pages, split)
    pages.disliked.end[2] = 1
    with pytest.raises(DataError, match=r"page u3 \(and 0 more\): its dislikes hold later events"):
        refuse_leakage(pages, split)


EVENT = st.tuples(
    st.sampled_from("xyz"),
    st.sampled_from("ABCDEF"),
    st.integers(0, 6 * DAY).map(lambda t: t // 997 * 997),
    st.sampled_from(["expose", "click", "order"]),
)
FEW = settings(max_examples=60, deadline=None)
LOGS = st.lists(EVENT, min_size=1, max_size=50, unique=True)


def divided(rows, rule, protocol):
    events = pl.LazyFrame(rows, schema=COLUMNS[:4], orient="row")
    events = assign_pages(events, parse_page_rule(rule))
    if protocol == "leave_one_out":
        events = isolate_last_items(events)
    pages = build_pages(events, ITEMS, history=history_rule(protocol))
    return pages, split_pages(pages, protocol=protocol)


PROTOCOLS = st.sampled_from(["leave_last_page_out", "leave_one_out", "time"])
RULES = st.sampled_from(["same_day", "gap:1h", "session:5h:3"])


@FEW
@given(LOGS, RULES, PROTOCOLS)
def test_splits_are_disjoint_and_held_out_pages_have_history_and_positives(rows, rule, protocol):
    pages, split = divided(rows, rule, protocol)
    parts = [set(part.tolist()) for part in (split.train, split.valid, split.test)]
    assert sum(map(len, parts)) == len(set.union(*parts))
    held_out = np.concatenate([split.valid, split.test])
    assert pages.has_history[held_out].all()
    assert pages.has_positive[held_out].all()
    assert pages.has_positive[split.train].all()


@FEW
@given(LOGS, RULES, PROTOCOLS)
def test_no_held_out_item_event_is_in_an_earlier_history(rows, rule, protocol):
    pages, split = divided(rows, rule, protocol)
    held_out = set(split.valid.tolist()) | set(split.test.tolist())
    for p in split.train:
        assert held_out.isdisjoint(pages.example(int(p)).context.history_pages.tolist())
    for p in split.valid:
        assert set(split.test.tolist()).isdisjoint(pages.example(int(p)).context.history_pages.tolist())


@FEW
@given(LOGS, RULES)
def test_each_user_has_at_most_one_page_of_each_held_out_kind(rows, rule):
    for protocol in ("leave_last_page_out", "leave_one_out"):
        pages, split = divided(rows, rule, protocol)
        for part in (split.valid, split.test):
            assert len(set(pages.user_ids[part].tolist())) == len(part)


@FEW
@given(LOGS)
def test_isolating_keeps_every_event(rows):
    events = assign_pages(pl.LazyFrame(rows, schema=COLUMNS[:4], orient="row"), parse_page_rule("same_day"))
    isolated = isolate_last_items(events).collect()
    assert sorted(isolated.drop("request_id").rows()) == sorted(rows)
