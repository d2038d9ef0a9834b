"""How fast does SIM score candidates, and how does the cost grow with the history and the candidates?

    python benchmarks/reward_scoring.py --json benchmarks/results/reward_scoring.json
    python benchmarks/reward_scoring.py --sweep true --json benchmarks/results/reward_scoring.json

naive    every (user, candidate) pair is a row with its own copy of the history, through the same weights. It is
         spared what a frozen model can know beforehand: item vectors are looked up, not encoded.
network  ``SIMNetwork.forward``, the pass that training uses: a history once for all candidates, attention over all of
         it with a mask.
shared   ``SIM.score`` without a cache: the user's side once per call.
cached   ``SIM.score`` where the user's side is known from an earlier step. This is ours.

The goals stand on soft search. ``network`` and ``naive`` in a hard case search by key too, so its ratios compare like
with like. "demo" is the shape of ``make demo``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from harness import Benchmark, BenchmarkSettings, Contender, Measured, parse, plot_growth
from torch import Tensor
from torch.nn import functional

from genrec_rl.types import Context
from reward_models.sim import SIM
from reward_models.sim.model import Histories, ItemTables, Search, SIMConfig, SIMNetwork

CPU = torch.device("cpu")
YEAR = 365 * 24 * 3600
NAIVE_CELLS, NETWORK_CELLS = 1 << 16, 2_000_000
"""Behaviours read at once: of naive the fastest that was found, of network as scoring did it before."""
LENGTHS, CANDIDATES = (50, 200, 1_000, 3_000, 10_000), (4, 16, 64, 256, 1_024)


@dataclass
class Settings(BenchmarkSettings):
    """Sizes; the default measures the goals."""

    n_items: int = field(default=100_000, metadata={"help": "items of the catalogue"})
    n_candidates: int = field(default=64, metadata={"help": "candidates of a user"})
    dim: int = field(default=64, metadata={"help": "size of item vectors"})
    n_heads: int = field(default=4, metadata={"help": "attention heads"})


@dataclass(frozen=True)
class Case:
    """A model with and without cache, users, and their candidates."""

    cached: SIM
    shared: SIM
    item_vectors_nD: Tensor
    contexts: list[Context]
    rows_PG: np.ndarray


def make_case(config: SIMConfig, *, users: int, candidates: int, settings: Settings) -> Case:
    """Random weights and distinct items; the calibration spreads the scores, so that a difference shows."""
    rng = np.random.default_rng(settings.seed)
    torch.manual_seed(settings.seed)
    codes = torch.from_numpy(rng.integers(0, 256, (settings.n_items, 3)))
    vectors = torch.from_numpy(rng.standard_normal((settings.n_items, 256), dtype=np.float32))
    network = SIMNetwork(ItemTables(codes, vectors, codes[:, 0].clone()), config)
    contexts = []
    for p in range(users):
        n = config.max_history
        times = np.sort(rng.integers(0, YEAR, n))
        contexts.append(Context(f"u{p}", YEAR, rng.permutation(settings.n_items)[:n], times, np.arange(n)))
    rows_PG = rng.integers(0, settings.n_items, (users, candidates))
    logits = SIM(network, catalog_fingerprint="-", cache_mb=0).logits(contexts, rows_PG)
    slope = 1 / float(logits.std())
    calibration = {"slope": slope, "intercept": -slope * float(logits.mean())}
    cached, shared = (SIM(network, catalog_fingerprint="-", cache_mb=size, **calibration) for size in (256, 0))
    with torch.inference_mode():
        return Case(cached, shared, network.items(torch.arange(settings.n_items)), contexts, rows_PG)


@torch.inference_mode()
def score_by_network(case: Case) -> np.ndarray:
    network, (n_users, n_candidates) = case.cached.network, case.rows_PG.shape
    max_history = network.config.max_history
    size = max(1, NETWORK_CELLS // (n_candidates * max_history))
    parts = []
    for start in range(0, n_users, size):
        histories = Histories.pack(case.contexts[start : start + size], max_history=max_history, device=CPU)
        parts.append(network(histories, torch.from_numpy(case.rows_PG[start : start + size])).esu_PG)
    return _calibrate(case, torch.cat(parts))


@torch.inference_mode()
def score_naively(case: Case) -> np.ndarray:
    network, (n_users, n_candidates) = case.cached.network, case.rows_PG.shape
    histories = Histories.pack(case.contexts, max_history=network.config.max_history, device=CPU)
    size = max(1, NAIVE_CELLS // histories.rows_PN.shape[1])
    users = torch.arange(n_users).repeat_interleave(n_candidates).split(size)
    candidates = torch.from_numpy(case.rows_PG).flatten().split(size)
    logits = [
        _logits_of_rows(
            network, case.item_vectors_nD, histories.rows_PN[p], histories.gap_buckets_PN[p], candidates_R
        )
        for p, candidates_R in zip(users, candidates, strict=True)
    ]
    return _calibrate(case, torch.cat(logits).view(n_users, n_candidates))


def _logits_of_rows(
    network: SIMNetwork, item_vectors_nD: Tensor, rows_RN: Tensor, buckets_RN: Tensor, candidates_R: Tensor
) -> Tensor:
    """Score one candidate of each row: search, gather what is kept, attend, as the paper draws it."""
    config, (n_rows, length) = network.config, rows_RN.shape
    items_RND = functional.embedding(rows_RN, item_vectors_nD)
    candidates_R1D = functional.embedding(candidates_R, item_vectors_nD)[:, None]
    if config.search == "soft":
        ranks_RN = (network.gsu_behaviour(items_RND) @ network.gsu_candidate(candidates_R1D).transpose(1, 2))[..., 0]
        is_found_RN = torch.ones_like(rows_RN, dtype=torch.bool)
    else:
        is_found_RN = network.search_keys[rows_RN] == network.search_keys[candidates_R][:, None]
        ranks_RN = torch.arange(1.0, length + 1) * is_found_RN
    kept_RK = ranks_RN.topk(min(config.top_k, length), dim=1, sorted=False).indices
    kept_items_RKD = items_RND.gather(1, kept_RK[..., None].expand(-1, -1, config.dim))
    kept_RKZ = torch.cat([kept_items_RKD, network.gap_embedding(buckets_RN.gather(1, kept_RK))], dim=2)
    long_R1Z = network.long_attention(kept_RKZ, candidates_R1D, is_found_RN.gather(1, kept_RK)[:, None])
    latest = slice(-config.n_short, None)
    short_RSZ = torch.cat([items_RND[:, latest], network.gap_embedding(buckets_RN[:, latest])], dim=2)
    is_short_R1S = torch.ones(n_rows, 1, short_RSZ.shape[1], dtype=torch.bool)
    short_R1Z = network.short_attention(short_RSZ, candidates_R1D, is_short_R1S)
    means_R1D = items_RND.mean(dim=1, keepdim=True)
    lengths_R11 = torch.full((n_rows, 1, 1), float(np.log1p(length)))
    parts = [long_R1Z, short_R1Z, candidates_R1D, means_R1D, lengths_R11, candidates_R1D * means_R1D]
    return network.head(torch.cat(parts, dim=2)).flatten()


def _calibrate(case: Case, logits_PG: Tensor) -> np.ndarray:
    return torch.sigmoid(case.cached.slope * logits_PG + case.cached.intercept).numpy()


def compare(bench: Benchmark, name: str, case: Case, **facts: int) -> dict[str, Measured]:
    """Time all ways, and check that they agree."""
    ways: dict[str, tuple[Callable[[], np.ndarray], bool]] = {
        "cached": (lambda: case.cached.score(case.contexts, case.rows_PG), False),
        "shared": (lambda: case.shared.score(case.contexts, case.rows_PG), False),
        "network": (lambda: score_by_network(case), True),
        "naive": (lambda: score_naively(case), True),
    }
    case.cached.score(case.contexts, case.rows_PG)  # an earlier step
    repeats = bench.settings.slow_repeats
    contenders = [Contender(way, run, repeats if is_slow else None) for way, (run, is_slow) in ways.items()]
    measured = bench.compare(name, contenders, **facts)
    for way in list(ways)[1:]:
        difference = np.abs(measured[way].result - measured["cached"].result).max()
        bench.check(f"{name}: scores of {way} as cached", difference, limit=1e-6)
    return measured


def run(
    bench: Benchmark,
    settings: Settings,
    name: str,
    *,
    search: Search,
    length: int,
    top_k: int,
    users: int,
    candidates: int,
) -> dict[str, Measured]:
    config = SIMConfig(
        search=search,
        dim=settings.dim,
        n_heads=settings.n_heads,
        top_k=top_k,
        max_history=length,
        hidden=[200, 80],
    )
    facts = {"users": users, "length": length, "top_k": top_k, "candidates": candidates}
    case = make_case(config, users=users, candidates=candidates, settings=settings)
    return compare(bench, f"{name} N={length} G={candidates} k={top_k}, {search}", case, **facts)


def measure_goals(bench: Benchmark, settings: Settings) -> None:
    for length, top_k, users, must, aim in ((1_000, 50, 8, 6, 10), (10_000, 100, 4, 11, 21)):
        sizes = {"length": length, "top_k": top_k, "users": users, "candidates": settings.n_candidates}
        found = run(bench, settings, "goal", search="soft", **sizes)
        for way in ("cached", "shared"):
            ratio = found["naive"].seconds / found[way].seconds
            bench.goal(f"{length} behaviours: naive / {way}", ratio, must=must, aim=aim)
        run(bench, settings, "goal", search="hard", **sizes)
    demo = make_case(SIMConfig(), users=64, candidates=16, settings=settings)
    compare(bench, "demo N=50 G=16 k=20, soft", demo, users=64, length=50, top_k=20, candidates=16)


def draw_growth(bench: Benchmark, settings: Settings, path: Path) -> None:
    """Microseconds a candidate, over the length of the history and over the number of candidates."""
    by_length: dict[str, dict[float, float]] = {}
    for length in LENGTHS:
        users, candidates = 4, settings.n_candidates
        for search in ("soft", "hard"):
            sizes = {"length": length, "top_k": 50, "users": users, "candidates": candidates}
            found = run(bench, settings, "longer", search=search, **sizes)
            for way in found if search == "soft" else ("cached",):
                micros = found[way].seconds / (users * candidates) * 1e6
                by_length.setdefault(f"{way}, {search} search", {})[length] = micros
    by_candidates: dict[str, dict[float, float]] = {}
    for candidates in CANDIDATES:
        users = max(1, 256 // candidates)
        sizes = {"length": 1_000, "top_k": 50, "users": users, "candidates": candidates}
        found = run(bench, settings, "more", search="soft", **sizes)
        for way, measured in found.items():
            micros = measured.seconds / (users * candidates) * 1e6
            by_candidates.setdefault(f"{way}, soft search", {})[candidates] = micros
    y_label = "CPU µs per candidate"
    title = f"SIM scoring, {settings.n_candidates} candidates a user, k = 50"
    plot_growth(path.with_name(f"{path.stem}_growth.png"), title, "behaviours in the history", y_label, by_length)
    title = "SIM scoring, 1,000 behaviours, k = 50"
    plot_growth(
        path.with_name(f"{path.stem}_growth_candidates.png"), title, "candidates a user", y_label, by_candidates
    )


def main() -> None:
    settings = parse(Settings)
    bench = Benchmark(__doc__, settings)
    measure_goals(bench, settings)
    if settings.sweep:
        draw_growth(bench, settings, Path(settings.json or "runs/benchmarks/reward_scoring.json"))
    bench.finish()


if __name__ == "__main__":
    main()
