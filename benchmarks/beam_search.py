"""How much faster is our beam search than ``generate``, and than one on a replicated prompt cache?

    python benchmarks/beam_search.py --json benchmarks/results/beam_search.json
    python benchmarks/beam_search.py --widths 50 --batch 1 --prompt 512     (other sizes: no goals)
    python benchmarks/beam_search.py --sweep true --json FILE               (also draws FILE's stem + _growth_*.png)

``HF generate`` is transformers' beam search with a ``prefix_allowed_tokens_fn`` over a dict of prefixes.
``replicated cache`` is the best that one would write by hand: the prompt is read once, its cache repeated for each
beam and reordered, the catalogue's trie stepped as ours is. ``bare prefill`` reads the prompts and does nothing else.
``generate`` with 512 beams holds 11 GB. Searches that hold so much spend up to two thirds of their CPU seconds in the
kernel (``kernel_s`` in the file), which hands out fresh memory; with an allocator that keeps it, as by
``MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592``, they are faster and ratios lower.
"""

import copy
import dataclasses
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from benchmarks.generation_baselines import (
    LEVELS,
    has_default_sizes,
    make_catalog,
    make_policy,
    prefix_function,
    random_prompts,
)
from benchmarks.harness import Benchmark, BenchmarkSettings, Contender, Measured, parse, plot_growth
from genrec_rl.decoding.beam_search import BeamPlan, beam_search
from genrec_rl.models.policy import Policy
from genrec_rl.sids.catalog import Catalog
from genrec_rl.sids.trie import SidTrie

# --- Our interfaces: all that this script calls of what it measures -------------------------------------------------

VARIANTS = {
    "widths W/4, W/2, W": lambda width: BeamPlan((max(width // 4, 1), max(width // 2, 1), width)),
    "log-probabilities of the level": lambda width: BeamPlan((width,) * LEVELS, "level"),
}
"""Ways of searching that change the result."""


def search_ours(
    policy: Policy, prompts: tuple[Tensor, Tensor], trie: SidTrie, width: int, plan: BeamPlan | None = None
) -> tuple[Int[Tensor, "B W L"], Float[Tensor, "B W"]]:
    plan = plan or BeamPlan((width,) * LEVELS)
    return beam_search(policy.model, *prompts, vocab=policy.vocab, plan=plan, trie=trie)


# --------------------------------------------------------------------------------------------------------------------

OURS, HF, REPLICATED, PREFILL = "ours", "HF generate", "replicated cache", "bare prefill"
GOALS_HF = {50: (40, 53), 128: (70, 96), 512: (100, 144)}
GOALS_REPLICATED = {50: (1.5, 1.8), 128: (2.3, 3.3), 512: (5, 7)}
TIE = 2e-5
"""Neighbours whose scores are nearer than this may change places: float32 loses up to 1e-5 on the way to a score."""


@dataclass
class Settings(BenchmarkSettings):
    """Sizes. The goals hold for the defaults."""

    widths: list[int] = field(default_factory=lambda: [50, 128, 512], metadata={"help": "beams"})
    batch: int = field(default=4, metadata={"help": "prompts searched together"})
    prompt: int = field(default=256, metadata={"help": "tokens of a prompt"})
    items: int = field(default=100_000, metadata={"help": "SIDs in the catalogue"})
    codes: int = field(default=256, metadata={"help": "codes of each of the three levels"})


def main() -> None:
    settings = parse(Settings)
    bench = Benchmark(__doc__, settings)
    catalog = make_catalog(settings.items, codes=settings.codes, seed=settings.seed)
    policy = make_policy(catalog, seed=settings.seed)
    prompts = random_prompts(policy, settings.batch, settings.prompt, seed=settings.seed)
    for width in settings.widths:
        measured = compare(bench, f"W={width}", policy, catalog, prompts, width=width)
        if has_default_sizes(settings, "batch", "prompt", "items", "codes"):
            hold_goals(bench, width, measured)
    compare_variants(bench, policy, catalog, prompts, width=settings.widths[0])
    if settings.sweep:
        sweep(bench, settings)
    bench.finish()


def compare(
    bench: Benchmark, case: str, policy: Policy, catalog: Catalog, prompts: tuple[Tensor, Tensor], *, width: int
) -> dict[str, Measured]:
    """Compare all ways on the same prompts, and what they find."""
    allowed = prefix_function(policy, catalog, prompt_length=prompts[0].shape[1])
    hf = Contender(HF, lambda: search_hf(policy, prompts, allowed, width), repeats=bench.settings.slow_repeats)
    others = [hf, Contender(PREFILL, lambda: prefill(policy, prompts[0]))]
    contenders = [*own_searches(policy, catalog, prompts, width), *others]
    measured = bench.compare(case, contenders, batch=len(prompts[0]), prompt=prompts[0].shape[1])
    check_equal(bench, case, measured, HF)
    check_equal(bench, case, measured, REPLICATED)
    return measured


def own_searches(
    policy: Policy, catalog: Catalog, prompts: tuple[Tensor, Tensor], width: int
) -> tuple[Contender, Contender]:
    ours = Contender(OURS, lambda: search_ours(policy, prompts, catalog.trie, width))
    return ours, Contender(REPLICATED, lambda: search_replicated(policy, prompts[0], catalog.trie, width))


@torch.no_grad()
def search_hf(
    policy: Policy, prompts: tuple[Tensor, Tensor], allowed: Any, width: int
) -> tuple[Int[Tensor, "B W L"], Float[Tensor, "B W"]]:
    """Search with transformers; ``length_penalty`` 0 leaves scores the sums of log-probabilities."""
    ids, is_prompt = prompts
    found = policy.model.generate(
        ids,
        attention_mask=is_prompt.long(),
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=policy.vocab.n_levels,
        length_penalty=0.0,
        do_sample=False,
        early_stopping=False,
        prefix_allowed_tokens_fn=allowed,
        return_dict_in_generate=True,
        output_scores=True,
    )
    tokens = found.sequences[:, ids.shape[1] :]
    return tokens.unflatten(0, (len(ids), width)), found.sequences_scores.unflatten(0, (len(ids), width))


@torch.no_grad()
def search_replicated(
    policy: Policy, prompt_ids_BP: Int[Tensor, "B P"], trie: SidTrie, width: int
) -> tuple[Int[Tensor, "B W L"], Float[Tensor, "B W"]]:
    """Search with one row a beam: read prompts once, repeat their cache, reorder it where beams change parents."""
    model, starts = policy.model, policy.vocab.level_starts
    cache = DynamicCache(config=model.config)
    first_row = torch.arange(len(prompt_ids_BP)).unsqueeze(1)
    nodes = torch.zeros(len(prompt_ids_BP), 1, dtype=torch.long)
    scores = torch.zeros(nodes.shape)
    tokens = prompt_ids_BP.new_empty(*nodes.shape, 0)
    inputs = prompt_ids_BP
    for level, start in enumerate(starts):
        hidden = model.model(input_ids=inputs, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
        log_probs = model.lm_head(hidden).log_softmax(-1).unflatten(0, nodes.shape)
        best = trie.best_children(level, nodes, scores, log_probs, width=width, code_start=start)
        scores, parents, picked = best.scores, best.parents, best.codes + start
        before, nodes = nodes, best.nodes
        tokens = tokens.gather(1, parents.unsqueeze(2).expand(-1, -1, level))
        tokens = torch.cat([tokens, picked.unsqueeze(2)], dim=2)
        inputs = picked.reshape(-1, 1)
        if level == 0:
            cache.batch_repeat_interleave(nodes.shape[1])
        elif level < len(starts) - 1:
            cache.reorder_cache((first_row * before.shape[1] + parents).flatten())
    return tokens, scores


@torch.no_grad()
def prefill(policy: Policy, prompt_ids_BP: Int[Tensor, "B P"]) -> Tensor:
    return policy.model.model(input_ids=prompt_ids_BP, use_cache=False).last_hidden_state


def check_equal(bench: Benchmark, case: str, measured: dict[str, Measured], other: str) -> None:
    """Hold items, their order and their scores against another search's."""
    (tokens, scores), (expected, expected_scores) = measured[OURS].result, measured[other].result
    is_other = (tokens != expected).any(-1)
    is_tied = (expected_scores.diff(dim=1).abs() < TIE).float()
    is_tied = torch.nn.functional.pad(is_tied, (1, 0)) + torch.nn.functional.pad(is_tied, (0, 1)) > 0
    worst = (scores - expected_scores).abs().max()
    bench.check(f"{case}: ranks with another item than {other}, ties apart", (is_other & ~is_tied).sum(), limit=0)
    bench.check(f"{case}: share of ranks with another item than {other}", is_other.float().mean(), limit=0.01)
    bench.check(f"{case}: largest difference of a score to {other}", worst, limit=1e-4)


def hold_goals(bench: Benchmark, width: int, measured: dict[str, Measured]) -> None:
    ours, hf, replicated = measured[OURS], measured[HF], measured[REPLICATED]
    if width in GOALS_HF:
        for name, other, goals in ((HF, hf, GOALS_HF), (REPLICATED, replicated, GOALS_REPLICATED)):
            must, aim = goals[width]
            bench.goal(f"W={width}: times faster than {name}", other.seconds / ours.seconds, must=must, aim=aim)
        bench.goal(f"W={width}: memory of {REPLICATED} over ours", replicated.peak_mib / ours.peak_mib, must=5)
    if width == 50:
        bench.goal(f"W={width}: memory of {HF} over ours", hf.peak_mib / ours.peak_mib, must=15)
        ratio = ours.seconds / measured[PREFILL].seconds
        bench.goal(f"W={width}: whole search over {PREFILL}", ratio, must=1.8, aim=1.5, at_most=True)


def compare_variants(
    bench: Benchmark, policy: Policy, catalog: Catalog, prompts: tuple[Tensor, Tensor], *, width: int
) -> None:
    """Measure what is faster because it finds something else, each with the share of our beams that it finds."""
    model = copy.deepcopy(policy.model).to(torch.bfloat16)
    half = dataclasses.replace(policy, model=model)
    ways = {"bf16 weights": lambda: search_ours(half, prompts, catalog.trie, width)}
    for name, plan in VARIANTS.items():
        ways[name] = partial(search_ours, policy, prompts, catalog.trie, width, plan(width))
    tokens, _ = search_ours(policy, prompts, catalog.trie, width)
    shares = {name: shared_items(tokens, way()[0]) for name, way in ways.items()}
    exact = Contender(OURS, lambda: search_ours(policy, prompts, catalog.trie, width))
    contenders = [exact, *(Contender(name, way) for name, way in ways.items())]
    bench.compare(f"W={width}, results differ", contenders, shared_with_ours=shares)


def shared_items(left_BWL: Int[Tensor, "B W L"], right_BWL: Int[Tensor, "B W L"]) -> float:
    """Return the share of left's items that right has too, in any order."""
    pairs = zip(left_BWL.tolist(), right_BWL.tolist(), strict=True)
    counts = [len({*map(tuple, left)} & {*map(tuple, right)}) / len(left) for left, right in pairs]
    return sum(counts) / len(counts)


def sweep(bench: Benchmark, settings: Settings) -> None:
    """Measure one prompt at growing sizes; ``generate`` only as far as it takes seconds."""
    steps = [("prompt tokens", {"prompt": n}) for n in (64, 128, 256, 512, 1024, 2048)]
    steps += [("beams", {"width": n}) for n in (10, 25, 50, 128, 256, 512)]
    steps += [("items", {"items": n}) for n in (10_000, 100_000, 1_000_000)]
    curves: dict[str, dict[str, dict[float, float]]] = {}
    for axis, change in steps:
        at = {"prompt": settings.prompt, "width": 50, "items": settings.items} | change
        (value,) = change.values()
        for name, measured in measure_at(bench, settings, axis=axis, **at).items():
            curves.setdefault(axis, {}).setdefault(name, {})[value] = measured.seconds
    for axis, lines in curves.items():
        if settings.json:
            path = Path(settings.json)
            file = path.with_name(f"{path.stem}_growth_{axis.split()[0]}.png")
            plot_growth(file, "Beam search of one prompt", axis, "CPU seconds", lines)


def measure_at(
    bench: Benchmark, settings: Settings, *, axis: str, prompt: int, width: int, items: int
) -> dict[str, Measured]:
    catalog = make_catalog(items, codes=settings.codes, seed=settings.seed)
    policy = make_policy(catalog, seed=settings.seed)
    prompts = random_prompts(policy, 1, prompt, seed=settings.seed)
    contenders = [*own_searches(policy, catalog, prompts, width)]
    if prompt * width <= 256 * 128:
        allowed = prefix_function(policy, catalog, prompt_length=prompt)
        contenders.append(Contender(HF, lambda: search_hf(policy, prompts, allowed, width), repeats=1))
    return bench.compare(f"growth by {axis}: P={prompt} W={width} N={items}", contenders)


if __name__ == "__main__":
    main()
