import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec_rl.decoding.serving.load import (
    LoadState,
    WidthPlan,
    capacity_factor,
    largest_capacity,
    level_widths,
    quantise,
    start,
    step,
)
from genrec_rl.errors import ConfigError

PLAN = WidthPlan((20, 50, 80), base=50, capacity=16, smoothing_s=2.0, hysteresis=0.5)
LOADS = st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 60)), min_size=1, max_size=30)


@st.composite
def plans(draw):
    widths = tuple(sorted(draw(st.sets(st.integers(1, 512), min_size=1, max_size=6))))
    return WidthPlan(
        widths,
        base=draw(st.integers(widths[0], widths[-1])),
        capacity=draw(st.floats(0.5, 100)),
        smoothing_s=draw(st.sampled_from([0.0, 0.1, 1.0, 10.0])),
        hysteresis=draw(st.floats(0, 0.99)),
    )


def follow(plan, loads):
    state, now, widths = start(plan, now=0.0), 0.0, []
    for load, passed in loads:
        now += passed
        state = step(plan, state, load=load, now=now)
        widths.append(state.width)
    return widths


@pytest.mark.parametrize(("load", "expected"), [(0, 1.6), (8, 1.6), (10, 1.6), (16, 1.0), (32, 0.5), (400, 0.4)])
def test_factor_is_capacity_over_load_between_floor_and_cap(load, expected):
    assert capacity_factor(PLAN, load) == pytest.approx(expected)


def test_factor_comes_back_by_the_time_that_passed():
    # from F = 0.5 towards f = 16 / 16 = 1; after tau ln 2 half of the way
    state = step(PLAN, LoadState(0.5, 20, 0.0), load=16, now=2.0 * 0.6931471805599453)
    assert state.factor == pytest.approx(0.75)


def test_factor_falls_at_once():
    assert step(PLAN, LoadState(1.6, 80, 0.0), load=32, now=0.0) == LoadState(0.5, 20, 0.0)


def test_two_looks_at_a_load_are_one_after_the_same_time():
    one = step(PLAN, start(PLAN, now=0.0), load=10, now=3.0)
    two = step(PLAN, step(PLAN, start(PLAN, now=0.0), load=10, now=1.0), load=10, now=3.0)
    assert one.factor == pytest.approx(two.factor)


@pytest.mark.parametrize(
    ("width", "wanted", "expected"),
    # half-way between 20 and 50 is 35, the band around it 15 wide: 27.5 to 42.5; between 50 and 80, 57.5 to 72.5
    [
        (50, 43, 50), (50, 28, 50), (50, 27, 20), (20, 42, 20), (20, 43, 50),
        (50, 72, 50), (50, 73, 80), (80, 58, 80), (80, 57, 50), (80, 20, 20), (20, 80, 80),
    ],
)  # fmt: skip
def test_width_changes_beyond_the_band_around_half_way(width, wanted, expected):
    assert quantise(PLAN, width, wanted=wanted) == expected


def test_overload_sheds_width_and_calm_gives_it_back():
    loads = [(16, 1.0)] * 3 + [(64, 1.0)] * 8 + [(2, 1.0)] * 8
    widths = follow(PLAN, loads)
    assert widths[:3] == [50, 50, 50]
    assert widths[10] == 20
    assert widths[-1] == 80


def test_clock_that_goes_back_counts_as_standing_still():
    state = LoadState(1.0, 50, 10.0)
    assert step(PLAN, state, load=2, now=3.0) == state


@settings(max_examples=40)
@given(plans(), LOADS)
def test_width_is_always_one_of_the_plans(plan, loads):
    assert set(follow(plan, loads)) <= set(plan.widths)


@settings(max_examples=40)
@given(plans(), LOADS, st.lists(st.floats(0, 1e6), min_size=30, max_size=30))
def test_higher_loads_never_search_wider(plan, loads, more):
    heavier = [(load + extra, passed) for (load, passed), extra in zip(loads, more, strict=False)]
    assert all(a >= b for a, b in zip(follow(plan, loads), follow(plan, heavier), strict=True))


@settings(max_examples=40)
@given(plans(), st.integers(0, 5), st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_nothing_flaps_within_the_band(plan, step_at, places):
    """Whatever is wanted inside one band, the width changes at most once, at the first look."""
    if len(plan.widths) < 2:
        return
    narrow, wide = list(pairwise(plan.widths))[step_at % (len(plan.widths) - 1)]
    middle, half = (narrow + wide) / 2, plan.hysteresis * (wide - narrow) / 2
    width, seen = plan.widths[0], []
    for place in places:
        width = quantise(plan, width, wanted=middle - half + 2 * half * place * (1 - 1e-9))
        seen.append(width)
    assert len(set(seen)) == 1


@settings(max_examples=40)
@given(plans())
def test_steady_idle_and_steady_crush_reach_cap_and_floor(plan):
    assert follow(plan, [(0, 60.0)] * 5)[-1] == plan.cap
    assert follow(plan, [(1e9, 60.0)] * 5)[-1] == plan.floor


def test_a_single_width_never_changes():
    alone = WidthPlan((50,), base=50, capacity=1)
    assert largest_capacity(alone, max_queue=1) == math.inf
    assert set(follow(alone, [(0, 1.0), (1e6, 9.0)])) == {50}


def test_levels_double_as_in_the_paper():
    assert level_widths(512, 3) == (128, 256, 512)


@pytest.mark.parametrize(("width", "expected"), [(50, (13, 25, 50)), (1, (1, 1, 1)), (3, (1, 2, 3))])
def test_halves_are_rounded_up(width, expected):
    assert level_widths(width, 3) == expected


def test_levels_that_do_not_grow_are_equal():
    assert level_widths(50, 3, growing=False) == (50, 50, 50)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"widths": ()}, r"widths \[\] must ascend"),
        ({"widths": (50, 20)}, "must ascend"),
        ({"widths": (0, 50)}, "at least 1"),
        ({"base": 90}, r"base_width 90 must lie in 20\.\.80"),
        ({"capacity": 0}, "capacity 0"),
        ({"capacity": float("nan")}, "capacity nan"),
        ({"smoothing_s": -1}, "smoothing_s -1"),
        ({"hysteresis": 1}, "hysteresis 1"),
        ({"hysteresis": float("nan")}, "hysteresis nan"),
    ],
)
def test_settings_out_of_range_are_refused(changed, message):
    settings = {"widths": (20, 50, 80), "base": 50, "capacity": 16} | changed
    with pytest.raises(ConfigError, match=message):
        WidthPlan(**settings)
