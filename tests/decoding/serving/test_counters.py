import pytest

from genrec_rl.decoding.serving.counters import Counters, percentiles_ms


def test_percentiles_are_of_milliseconds():
    assert percentiles_ms([0.001, 0.002, 0.003], (50, 100)) == [2.0, 3.0]


def test_percentiles_of_nothing_are_missing():
    assert percentiles_ms([], (50, 99)) == [None, None]


def test_counts_begin_at_zero_and_add_up():
    counters = Counters()
    assert set(counters.snapshot().values()) == {0, None}
    counters.add("shed", 3)
    counters.add("searches", 2)
    counters.add("searched", 6)
    counters.took(0.004)
    seen = counters.snapshot()
    assert (seen["shed"], seen["mean_batch"], seen["answered"], seen["latency_p99_ms"]) == (3, 3.0, 1, 4.0)


def test_unknown_count_is_refused():
    with pytest.raises(KeyError, match="no count 'answred'"):
        Counters().add("answred")
