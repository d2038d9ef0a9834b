"""How much does the catalogue's constraint cost a beam search, in time and memory?

    python benchmarks/trie.py --json benchmarks/results/trie.json
    python benchmarks/trie.py --json benchmarks/results/trie.json --sweep true      (how it grows with the catalogue)
    python benchmarks/trie.py --widths 50 512

One step: log-probabilities of B x W beams are given, the W best valid continuations of each prompt are wanted.
A timed run takes the steps of several batches, one after the other.
Ours is ``SidTrie.best_children``. The baseline is transformers' PrefixConstrainedLogitsProcessor over a dictionary
from a prefix to its list of allowed tokens, then topk(2 W) over the whole vocabulary, as its beam search does.
Level 1 is the step after the first code, level 2 the step after the second. SIDs, beams and log-probabilities
are random.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Int32, Int64
from torch import Tensor
from transformers import PrefixConstrainedLogitsProcessor

from benchmarks.harness import Benchmark, BenchmarkSettings, Contender, parse, plot_growth
from genrec_rl.sids.trie import BestChildren, SidTrie

N_SPECIAL = 4
N_PROMPT = 8
N_LEVELS = 3
GOALS = {256: (10.0, 25.0), 8192: (50.0, 400.0)}
SIZES = (10_000, 100_000, 1_000_000)

DictTrie = dict[tuple[int, ...], list[int]]


@dataclass
class Settings(BenchmarkSettings):
    """Sizes of the catalogue and of the search."""

    items: int = field(default=1_000_000, metadata={"help": "SIDs drawn; repeated ones count once"})
    codebooks: list[int] = field(default_factory=lambda: [256, 8192], metadata={"help": "codes of a level"})
    widths: list[int] = field(default_factory=lambda: [50], metadata={"help": "beams of a prompt"})
    rows: int = field(default=8, metadata={"help": "prompts of a batch"})
    batches: int = field(default=10, metadata={"help": "batches whose step a timed run takes"})


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What a search knows before it chooses the continuations of W beams that hold ``level`` codes."""

    level: int
    nodes: Int64[Tensor, "B W"]
    input_ids: Int64[Tensor, "B*W T"]
    scores: Float[Tensor, "B W"]
    log_probs: Float[Tensor, "B W V"]
    code_start: int


def main() -> None:
    settings = parse(Settings)
    bench = Benchmark(__doc__, settings)
    for size in settings.codebooks:
        codes = sorted_sids(settings.items, size, seed=settings.seed)
        trie, allowed = compare_builds(bench, codes, size)
        for width in settings.widths:
            for level in (1, 2):
                steps = random_steps(trie, codes, level, width, settings)
                case = f"K={size} W={width} level {level}"
                seconds = compare_steps(bench, case, steps, trie, allowed, width)
                ratio = seconds["HF PrefixConstrained"] / seconds["ours"]
                if size in GOALS and settings.items == SIZES[-1]:
                    must, aim = GOALS[size]
                    bench.goal(f"{case}: times faster", ratio, must=must, aim=aim)
    if settings.sweep:
        draw_growth(bench, settings)
    bench.finish()


def sorted_sids(n_items: int, size: int, *, seed: int) -> Int32[np.ndarray, "n L"]:
    """Draw SIDs of three levels and sort them."""
    keys = np.sort(np.random.default_rng(seed).integers(0, size**N_LEVELS, n_items))
    return np.stack([keys // size**2, keys // size % size, keys % size], axis=1).astype(np.int32)


def compare_builds(bench: Benchmark, codes: Int32[np.ndarray, "n L"], size: int) -> tuple[SidTrie, DictTrie]:
    case = f"build K={size} n={len(codes):,}"
    sizes = [size] * N_LEVELS
    shuffled = np.random.default_rng(1).permutation(codes)
    built = bench.compare(
        case,
        [
            Contender("ours, sorted items", lambda: SidTrie(codes, sizes)),
            Contender("ours, shuffled items", lambda: SidTrie(shuffled, sizes)),
            Contender("dictionary", lambda: build_dictionary(codes, size), repeats=bench.settings.slow_repeats),
        ],
    )
    trie = built["ours, sorted items"].result
    bench.goal(f"{case}: CPU seconds", built["ours, sorted items"].seconds, must=0.1, at_most=True)
    bench.goal(f"{case}: bytes an item", trie.n_bytes / len(codes), must=24, at_most=True)
    return trie, built["dictionary"].result


def build_dictionary(codes: Int32[np.ndarray, "n L"], size: int) -> DictTrie:
    """Map each prefix of tokens to the tokens that may follow; the codes are sorted."""
    allowed: DictTrie = {}
    for sid in (codes + N_SPECIAL + np.arange(N_LEVELS) * size).tolist():
        for depth, token in enumerate(sid):
            following = allowed.setdefault(tuple(sid[:depth]), [])
            if not following or following[-1] != token:
                following.append(token)
    return allowed


def random_steps(
    trie: SidTrie, codes: Int32[np.ndarray, "n L"], level: int, width: int, settings: Settings
) -> list[Step]:
    """Draw W different prefixes a prompt (all of them where there are fewer), their scores and what may follow."""
    size, n_rows = trie.codebook_sizes[0], settings.rows
    prefixes = torch.from_numpy(np.unique(codes[:, :level], axis=0)).long()
    n_beams = min(width, len(prefixes))
    steps = []
    for batch in range(settings.batches):
        generator = torch.Generator().manual_seed(settings.seed + batch)
        nodes = torch.stack([torch.randperm(len(prefixes), generator=generator)[:n_beams] for _ in range(n_rows)])
        tokens = prefixes[nodes.flatten()] + N_SPECIAL + torch.arange(level) * size
        logits = torch.randn(n_rows, n_beams, N_SPECIAL + N_LEVELS * size, generator=generator)
        steps.append(
            Step(
                level=level,
                nodes=nodes,
                input_ids=torch.cat([torch.zeros(len(tokens), N_PROMPT, dtype=torch.long), tokens], dim=1),
                scores=-3 * torch.rand(n_rows, n_beams, generator=generator),
                log_probs=logits.log_softmax(-1),
                code_start=N_SPECIAL + level * size,
            )
        )
    return steps


def compare_steps(
    bench: Benchmark, case: str, steps: list[Step], trie: SidTrie, allowed: DictTrie, width: int
) -> dict[str, float]:
    """Time the step of every batch; return CPU seconds a batch."""
    n_beams = steps[0].nodes.shape[1]
    processor = PrefixConstrainedLogitsProcessor(lambda _, ids: allowed[tuple(ids[N_PROMPT:].tolist())], n_beams)
    measured = bench.compare(
        case,
        [
            Contender("ours", lambda: [our_step(trie, step, width) for step in steps]),
            Contender("HF PrefixConstrained", lambda: [hf_step(processor, step, width) for step in steps]),
        ],
        batches=len(steps),
    )
    apart, n_wrong = 0.0, 0
    for step, ours, theirs in zip(
        steps, measured["ours"].result, measured["HF PrefixConstrained"].result, strict=True
    ):
        scores, parents, tokens = theirs
        apart = max(apart, float((ours.scores - scores[:, :width]).abs().max()))
        # Where two neighbours in the ranking score the same, either may come first.
        ties = scores.diff(dim=1)[:, :width] == 0
        is_tied = ties | torch.cat([torch.zeros_like(ties[:, :1]), ties[:, :-1]], dim=1)
        differs = (ours.parents != parents[:, :width]) | (ours.codes + step.code_start != tokens[:, :width])
        n_wrong += int((differs & ~is_tied).sum())
    bench.check(f"{case}: scores", apart, limit=1e-6)
    bench.check(f"{case}: choices that differ without a tie", n_wrong, limit=0)
    return {name: m.seconds / len(steps) for name, m in measured.items()}


def our_step(trie: SidTrie, step: Step, width: int) -> BestChildren:
    return trie.best_children(
        step.level, step.nodes, step.scores, step.log_probs, width=width, code_start=step.code_start
    )


def hf_step(
    processor: PrefixConstrainedLogitsProcessor, step: Step, width: int
) -> tuple[Float[Tensor, "B 2*W"], Int[Tensor, "B 2*W"], Int[Tensor, "B 2*W"]]:
    """Return scores, parents and tokens, as ``GenerationMixin._beam_search`` and its top-k do."""
    n_vocab = step.log_probs.shape[2]
    log_probs = processor(step.input_ids, step.log_probs.flatten(0, 1)).view_as(step.log_probs)
    scores, at = (log_probs + step.scores.unsqueeze(2)).flatten(1).topk(2 * width, dim=1)
    return scores, at // n_vocab, at % n_vocab


def draw_growth(bench: Benchmark, settings: Settings) -> None:
    curves: dict[str, dict[float, float]] = {}
    width = settings.widths[0]
    for size in settings.codebooks:
        for n_items in SIZES:
            codes = sorted_sids(n_items, size, seed=settings.seed)
            trie, allowed = SidTrie(codes, [size] * N_LEVELS), build_dictionary(codes, size)
            for level in (1, 2):
                steps = random_steps(trie, codes, level, width, settings)
                case = f"n={n_items:,} K={size} W={width} level {level}"
                seconds = compare_steps(bench, case, steps, trie, allowed, width)
                for name, spent in seconds.items():
                    curve = curves.setdefault(f"{name}, K={size}", {})
                    curve[n_items] = curve.get(n_items, 0.0) + 1000 * spent
    path = Path(settings.json or "trie.json")
    title = f"The two constrained steps of {settings.rows} prompts, {width} beams"
    plot_growth(path.with_name(f"{path.stem}_growth.png"), title, "items", "CPU ms", curves)


if __name__ == "__main__":
    main()
