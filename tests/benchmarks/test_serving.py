import asyncio

import httpx
import pytest

from benchmarks import serving
from benchmarks.serving import Outcome, ask, summarise


def test_latencies_and_widths_are_of_answers_and_rates_of_all():
    outcomes = [Outcome(200, 0.010, 20), Outcome(200, 0.030, 50), Outcome(503, 9.0, 0), Outcome(500, 9.0, 0)]
    row = summarise("ours", 4.0, outcomes, seconds=0.5)
    assert (row.per_second, row.p50_ms, row.mean_width) == (4.0, 20.0, 35.0)
    assert (row.refused, row.other) == (0.25, 1)


def test_nobody_answered_has_no_latency():
    row = summarise("ours", 4.0, [Outcome(503, 0.1, 0)], seconds=1.0)
    assert (row.p50_ms, row.p99_ms, row.mean_width, row.refused) == (None, None, None, 1.0)


def test_requests_are_sent_whether_or_not_earlier_ones_are_answered():
    waiting, together = [], []

    async def answer(request):
        waiting.append(request)
        together.append(len(waiting))
        if len(together) > 3:  # the first three find out whether it answers at all
            await asyncio.sleep(0.2)
        waiting.remove(request)
        return httpx.Response(200, json={"width": 50})

    transport = httpx.MockTransport(answer)
    row = asyncio.run(ask("http://service", [{"k": 1}] * 3, "ours", rate=400.0, seconds=0.05, transport=transport))
    assert len(together) == 3 + 20
    assert max(together) == 20
    assert (row.refused, row.mean_width) == (0.0, 50.0)


def test_a_service_that_ends_is_an_error():
    class Ended:
        def poll(self):
            return 2

    with pytest.raises(SystemExit, match="did not start"):
        serving.wait_until_healthy("http://127.0.0.1:9", Ended())


def test_a_broken_connection_is_counted_apart():
    def refuse(request):
        raise httpx.ReadError("gone")

    transport = httpx.MockTransport(refuse)
    row = asyncio.run(ask("http://service", [{"k": 1}], "ours", rate=400.0, seconds=0.01, transport=transport))
    assert (row.other, row.refused, row.p50_ms) == (4, 0.0, None)
