"""How much faster are beams whose lower layers run once for all of them (LazyAR), and whose early levels are narrow?

    python benchmarks/lazy_ar.py --json benchmarks/results/lazy_ar.json
    python benchmarks/lazy_ar.py --layers 4 --lazy_layers 2        (other sizes: no goals)

``plain`` is our beam search of a plain policy of the same depth and width, ``lazy`` has its lower layers below the
codes, ``narrow`` keeps a quarter and a half of the beams on the first levels (GR4AD's dynamic beams). Weights are
untrained: what they find says nothing of quality. Searches stay in the catalogue, with probabilities over the whole
vocabulary. GR4AD's own ratio for LazyAR alone is 1.81, of queries a second, with 6 of 9 layers and 512 beams.

``own N`` lets each beam keep its N best continuations before the global choice (GR4AD's top-k pre-cut): it is
measured for its cost, not held to a goal.
"""

from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from benchmarks.generation_baselines import (
    LEVELS,
    PLAIN,
    GroupedQueries,
    has_default_sizes,
    make_catalog,
    random_prompts,
)
from benchmarks.harness import Benchmark, BenchmarkSettings, Contender, parse
from genrec_rl.decoding.beam_search import BeamPlan, Beams, beam_search
from genrec_rl.decoding.serving.load import level_widths
from genrec_rl.models.policy import Policy, create_policy
from genrec_rl.models.prefix_tree import branch_log_probs
from genrec_rl.sids.catalog import Catalog

Prompts = tuple[Int[Tensor, "B P"], Bool[Tensor, "B P"]]
BOTH, PLAIN_NARROW, LAZY, FULL = "lazy, narrow", "plain, narrow", "lazy", "plain"
GOALS = {LAZY: 1.5, PLAIN_NARROW: 1.4, BOTH: 2.0}


@dataclass
class Settings(BenchmarkSettings):
    """Sizes. The goals hold for the defaults."""

    width: int = field(default=512, metadata={"help": "beams"})
    layers: int = field(default=9, metadata={"help": "decoder layers (GR4AD: 9)"})
    lazy_layers: int = field(default=6, metadata={"help": "layers below the codes (GR4AD: 6)"})
    own: list[int] = field(default_factory=lambda: [8, 512], metadata={"help": "continuations that a beam may keep"})
    batch: int = field(default=4, metadata={"help": "prompts searched together"})
    prompt: int = field(default=256, metadata={"help": "tokens of a prompt"})
    items: int = field(default=1_000_000, metadata={"help": "SIDs in the catalogue"})
    codes: int = field(default=256, metadata={"help": "codes of each of the three levels"})


def main() -> None:
    settings = parse(Settings)
    bench = Benchmark(__doc__, settings)
    catalog = make_catalog(settings.items, codes=settings.codes, seed=settings.seed)
    plain = make_policy(catalog, settings, lazy_layers=None)
    lazy = make_policy(catalog, settings, lazy_layers=settings.lazy_layers)
    prompts = random_prompts(plain, settings.batch, settings.prompt, seed=settings.seed)
    width = settings.width
    narrow, full = BeamPlan(level_widths(width, LEVELS)), BeamPlan((width,) * LEVELS)
    ways = {BOTH: (lazy, narrow), LAZY: (lazy, full), PLAIN_NARROW: (plain, narrow), FULL: (plain, full)}
    ways |= {f"plain, own {n}": (plain, BeamPlan(full.widths, per_beam=n)) for n in settings.own}
    contenders = [
        Contender(name, partial(search, policy, prompts, catalog, plan)) for name, (policy, plan) in ways.items()
    ]
    case = f"W={width}, {settings.lazy_layers} of {settings.layers} layers shared"
    measured = bench.compare(case, contenders, by_count=count_places(settings, narrow.widths))
    for name in (LAZY, BOTH):
        check_scores(bench, name, lazy, prompts, measured[name].result)
    expected = measured[FULL].result
    for n in settings.own:
        if n >= width:
            worst = (measured[f"plain, own {n}"].result.log_probs_BW - expected.log_probs_BW).abs().max()
            bench.check(f"own {n}: largest difference of a score to {FULL}", worst, limit=0)
    if has_default_sizes(settings, "width", "layers", "lazy_layers", "batch", "prompt", "items", "codes"):
        for name, must in GOALS.items():
            ratio = measured[FULL].seconds / measured[name].seconds
            bench.goal(f"W={width}: {name}, times faster than {FULL}", ratio, must=must)
    bench.finish()


def make_policy(catalog: Catalog, settings: Settings, *, lazy_layers: int | None) -> Policy:
    """Make a policy of hidden 256 with random weights, so large that few beams tie."""
    size = GroupedQueries(hidden_size=256, num_layers=settings.layers, num_heads=4, intermediate_size=1024)
    policy = create_policy(catalog, grammar=PLAIN, backbone=size, lazy_layers=lazy_layers, seed=settings.seed)
    with torch.no_grad():
        for weights in policy.model.parameters():
            weights.add_(torch.randn_like(weights) * 0.05)
    policy.model.eval()
    return policy


def search(policy: Policy, prompts: Prompts, catalog: Catalog, plan: BeamPlan) -> Beams:
    return beam_search(policy.model, *prompts, vocab=policy.vocab, plan=plan, trie=catalog.trie)


def count_places(settings: Settings, narrow: tuple[int, ...]) -> dict[str, float]:
    """Return the ratios by count: layers times places of one prompt, ``plain``'s over each way's."""
    depth, lazy, prompt = settings.layers, settings.lazy_layers, settings.prompt
    full = (settings.width,) * LEVELS

    def count(widths: tuple[int, ...], shared: int) -> int:
        return prompt * depth + shared * (LEVELS - 1) + (depth - shared) * sum(widths[:-1])

    ways = {LAZY: (full, lazy), PLAIN_NARROW: (narrow, 0), BOTH: (narrow, lazy)}
    return {name: count(full, 0) / count(*way) for name, way in ways.items()}


@torch.no_grad()
def check_scores(bench: Benchmark, name: str, policy: Policy, prompts: Prompts, found: Beams) -> None:
    """Hold what the search gives against teacher forcing."""
    exact = branch_log_probs(policy.model, *prompts, found.tokens_BWL).log_probs_BGC.sum(-1)
    worst = (found.log_probs_BW - exact)[found.log_probs_BW > -torch.inf].abs().max()
    bench.check(f"{name}: largest difference of a score to teacher forcing", worst, limit=1e-4)


if __name__ == "__main__":
    main()
