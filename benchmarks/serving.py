"""What do micro-batches and beams that follow the load buy a service, below and above what it can answer?

    python benchmarks/serving.py --json benchmarks/results/serving.json          (needs `make demo`; also draws plots)
    python benchmarks/serving.py --rates 5 50 --seconds 2                        (shorter)

``recipes/serve.py`` runs in a process of its own, 1 thread, cache off; clients send test histories at a fixed rate,
whether or not earlier ones are answered. Latency is that of answered requests, seen by the client, which shares the
machine. What narrower searches cost is measured apart, on the test pages.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from rich.table import Table

from benchmarks.harness import Benchmark, BenchmarkSettings, parse, plot_growth
from genrec_rl import metrics
from genrec_rl.data.store import Dataset
from genrec_rl.decoding.serving.counters import percentiles_ms
from genrec_rl.decoding.serving.load import level_widths
from genrec_rl.evaluation.policies import BeamOptions, load_recommender, open_catalogue
from genrec_rl.sids.catalog import Catalog
from genrec_rl.tracking import console

SERVICE = Path(__file__).parents[1] / "recipes" / "serve.py"
START_S, PAUSE_S, K = 180, 2.0, 10
FIXED, ONE_BY_ONE = ("--widths", "50", "--base_width", "50"), ("--batch_size", "1")
CONTENDERS: dict[str, tuple[str, ...]] = {
    "batches and controller": (),
    "batches, 50 wide": FIXED,
    "one by one, controller": ONE_BY_ONE,
    "one by one, 50 wide": (*FIXED, *ONE_BY_ONE),
}

SEARCHES = (
    *((16, growing, width) for growing in (False, True) for width in (80, 50, 35, 20)),
    *((1, True, width) for width in (80, 50, 20)),
)
"""Requests together, whether widths grow, and the final width; the first is what others are held against."""


@dataclass
class Settings(BenchmarkSettings):
    """What is served, and how hard it is asked."""

    policy_dir: str = field(default="runs/demo/sft", metadata={"help": "policy to serve"})
    data_dir: str = field(default="runs/demo/data", metadata={"help": "prepared data"})
    sid_dir: str = field(default="runs/demo/sids", metadata={"help": "catalogue"})
    rates: list[float] = field(
        default_factory=lambda: [5.0, 10.0, 20.0, 40.0, 80.0], metadata={"help": "requests sent a second"}
    )
    seconds: float = field(default=4.0, metadata={"help": "how long each rate is sent"})
    requests: int = field(default=300, metadata={"help": "test pages: their histories are sent"})


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request: HTTP status, seconds, and the beams that it was searched with (0 if it was not)."""

    status: int
    seconds: float
    width: int


@dataclass(frozen=True, slots=True)
class Row:
    """One contender at one rate; ``per_second`` counts answers, and ``refused`` is the share of 503."""

    contender: str
    rate: float
    per_second: float
    p50_ms: float | None
    p99_ms: float | None
    refused: float
    mean_width: float | None
    other: int


def main() -> None:
    settings = parse(Settings)
    bench = Benchmark(__doc__, settings)
    dataset, catalog = open_catalogue(settings.data_dir, settings.sid_dir)
    quality = measure_widths(dataset, catalog, settings)
    bodies = [
        {"history": [dataset.item_ids[row] for row in example.context.history], "k": K}
        for example in dataset.examples("test")[: settings.requests]
    ]
    rows, capacities = [], {}
    for contender, words in CONTENDERS.items():
        with serving(settings, words) as url:
            capacities[contender] = httpx.get(f"{url}/health").json()["capacity"]
            for rate in settings.rates:
                rows.append(asyncio.run(ask(url, bodies, contender, rate=rate, seconds=settings.seconds)))
                console.print(rows[-1])
    print_rows("Under load", [asdict(row) for row in rows])
    print_rows("What narrow searches cost", quality)
    if settings.json:
        path = Path(settings.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = bench.facts() | {"cases": [asdict(row) for row in rows], "widths": quality, "capacities": capacities}
        facts["load_average"] = os.getloadavg()  # where it is above the cores, latencies are the machine's
        path.write_text(json.dumps(facts, indent=1) + "\n")
        draw(rows, path)


def measure_widths(dataset: Dataset, catalog: Catalog, settings: Settings) -> list[dict[str, Any]]:
    """Compare searches with the widest: CPU seconds a request, shared items of the first ten, HR@10."""
    recommender = load_recommender(Path(settings.policy_dir), catalog=catalog, options=BeamOptions())
    examples = dataset.examples("test")[: settings.requests]
    contexts, positives = [e.context for e in examples], [e.positives for e in examples]
    recommender.propose(contexts[:16], widths=(80,) * catalog.n_levels, constrained=True)
    rows, widest = [], None
    for batch, growing, width in SEARCHES:
        recommender.batch_size = batch
        widths = level_widths(width, catalog.n_levels, growing=growing)
        begun = time.process_time()
        found = recommender.propose(contexts, widths=widths, constrained=True).rows_PG.numpy()[:, :K]
        seconds = time.process_time() - begun
        widest = found if widest is None else widest
        shared = np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(found, widest, strict=True)])
        hits = float(metrics.hit_rate(found, positives, k=K).mean())
        row = {"batch": batch, "widths": list(widths), "cpu_ms": 1000 * seconds / len(contexts)}
        rows.append(row | {"shared@10": float(shared), "hr@10": hits})
    return rows


@contextmanager
def serving(settings: Settings, words: Sequence[str]) -> Iterator[str]:
    """Run the service until the block ends, and give its address once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = ["--policy_dir", settings.policy_dir, "--data_dir", settings.data_dir, "--sid_dir", settings.sid_dir]
    command = [sys.executable, str(SERVICE), *folders, "--port", str(port), "--threads", "1", "--cache_size", "0"]
    environment = os.environ | {"PYTHONPATH": str(SERVICE.parents[1]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, *words], env=environment, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_healthy(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def wait_until_healthy(url: str, process: subprocess.Popen) -> None:
    """Return when the service answers.

    Raises:
        SystemExit: when it ended, or has not answered for too long.
    """
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx.get(f"{url}/health").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            time.sleep(0.25)
    raise SystemExit(f"the service did not start within {START_S} s; its message is above")


async def ask(
    url: str,
    bodies: Sequence[dict[str, Any]],
    contender: str,
    *,
    rate: float,
    seconds: float,
    transport: httpx.AsyncBaseTransport | None = None,
) -> Row:
    """Send requests at a fixed rate for a while, and return what came of all of them."""
    limits = httpx.Limits(max_connections=None, keepalive_expiry=2)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits, transport=transport) as client:
        for body in bodies[:3]:
            await send(client, body)
        await asyncio.sleep(PAUSE_S if transport is None else 0)
        begun = time.perf_counter()
        tasks = []
        for i in range(max(round(rate * seconds), 1)):
            await asyncio.sleep(max(begun + i / rate - time.perf_counter(), 0))
            tasks.append(asyncio.create_task(send(client, bodies[i % len(bodies)])))
        outcomes = await asyncio.gather(*tasks)
        return summarise(contender, rate, outcomes, seconds=time.perf_counter() - begun)


async def send(client: httpx.AsyncClient, body: dict[str, Any]) -> Outcome:
    """Send one request and time its answer; status 0 is a connection that broke."""
    begun = time.perf_counter()
    try:
        response = await client.post("/recommend", json=body)
    except httpx.TransportError:
        return Outcome(0, time.perf_counter() - begun, 0)
    seconds = time.perf_counter() - begun
    is_answered = response.status_code == httpx.codes.OK
    return Outcome(response.status_code, seconds, response.json()["width"] if is_answered else 0)


def summarise(contender: str, rate: float, outcomes: Sequence[Outcome], *, seconds: float) -> Row:
    """Return latencies and widths of the answered requests, and the share of refused ones."""
    answered = [outcome for outcome in outcomes if outcome.status == httpx.codes.OK]
    statuses = Counter(outcome.status for outcome in outcomes)
    n_refused = statuses[int(httpx.codes.SERVICE_UNAVAILABLE)]
    p50, p99 = percentiles_ms([outcome.seconds for outcome in answered], (50, 99))
    return Row(
        contender=contender,
        rate=rate,
        per_second=len(answered) / seconds,
        p50_ms=p50,
        p99_ms=p99,
        refused=n_refused / len(outcomes),
        mean_width=float(np.mean([outcome.width for outcome in answered])) if answered else None,
        other=len(outcomes) - len(answered) - n_refused,
    )


def print_rows(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as a table."""
    table = Table(*rows[0], title=title, title_justify="left")
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the latencies of the answered requests over the rate of all."""
    for name in ("p50_ms", "p99_ms"):
        curves: dict[str, dict[float, float]] = {contender: {} for contender in CONTENDERS}
        for row in rows:
            if (latency := getattr(row, name)) is not None:
                curves[row.contender][row.rate] = latency
        label = f"{name.removesuffix('_ms')} latency of answered requests, ms"
        file = path.with_name(f"{path.stem}_{name.removesuffix('_ms')}.png")
        plot_growth(file, "A service under load", "requests sent a second", label, curves)


if __name__ == "__main__":
    main()
