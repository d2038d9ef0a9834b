"""How much cheaper is a prompt whose items are one vector each (the Token Merger) than one of their SID tokens?

    python benchmarks/token_merger.py --json benchmarks/results/token_merger.json
    python benchmarks/token_merger.py --items 20 341                         (other sizes: no goals)
    python benchmarks/token_merger.py --sweep true --json FILE             (also draws FILE's stem + _growth_*.png)

A history of n items is 3n places plain and n merged; with ``<|sep|>`` after each item 4n and 2n. Prefill reads the
prompts, fills the cache and scores one next token. Training is forward and backward of a page of five items (15
tokens) after the prompt, with the loss on these alone, without an optimiser: it costs both the same.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from benchmarks.harness import Benchmark, BenchmarkSettings, Contender, Measured, parse, plot_growth
from genrec_rl.models.policy import BackboneSize, Policy, create_policy
from genrec_rl.models.prompts import PromptGrammar
from genrec_rl.sids.catalog import Catalog
from genrec_rl.types import Context

LEVELS, CODES, PAGE = 3, 256, 5
MERGED, PLAIN = "merged", "plain"
SIZE = BackboneSize(hidden_size=256, num_layers=4, num_heads=4, intermediate_size=1024)
GOALS = {
    ("item", "prefill"): (1.9, 2.1),
    ("item", "training"): (1.8, 2.0),
    ("none", "prefill"): (2.5, 3.2),
    ("none", "training"): (2.2, 3.0),
}
"""Times cheaper (must, aim), by separator and work."""
SWEEP = (10, 20, 43, 86, 170, 341)


@dataclass
class Settings(BenchmarkSettings):
    """Sizes. The goals hold for the defaults."""

    items: list[int] = field(default_factory=lambda: [43, 86, 170], metadata={"help": "items of a history"})
    together: int = field(default=1376, metadata={"help": "items of all prompts that are read together"})


@dataclass(frozen=True, eq=False)
class Layout:
    """A policy, its prompts of the histories, and the pages that follow as tokens."""

    policy: Policy
    prompts_BP: Int[Tensor, "B P"]
    pages_BT: Int[Tensor, "B T"]

    @torch.no_grad()
    def prefill(self) -> Float[Tensor, "B V"]:
        """Read the prompts and score the next token."""
        return self.policy.model(input_ids=self.prompts_BP, use_cache=True, logits_to_keep=1).logits[:, 0]

    def train(self) -> float:
        """Compute the loss of the pages and its gradient."""
        self.policy.model.zero_grad()
        ids = torch.cat([self.prompts_BP, self.pages_BT], dim=1)
        logits = self.policy.model(input_ids=ids, use_cache=False, logits_to_keep=self.pages_BT.shape[1] + 1).logits
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), self.pages_BT.flatten())
        loss.backward()
        return loss.item()


def main() -> None:
    settings = parse(Settings)
    bench = Benchmark(__doc__, settings)
    catalog = make_catalog(10_000, seed=settings.seed)
    for n_items in settings.items:
        for separator in ("item", "none"):
            batch, case = max(settings.together // n_items, 1), f"n={n_items}, separator {separator}"
            layouts = make_layouts(catalog, n_items, separator, batch=batch, seed=settings.seed)
            check_merging(bench, case, layouts[MERGED])
            for work, measured in compare(bench, case, layouts).items():
                ratio = measured[PLAIN].seconds / measured[MERGED].seconds
                if settings.together == Settings.together and n_items in Settings().items:
                    must, aim = GOALS[separator, work]
                    bench.goal(f"{case}: {work}", ratio, must=must, aim=aim)
    if settings.sweep:
        sweep(bench, catalog, settings)
    bench.finish()


def make_catalog(n_items: int, *, seed: int) -> Catalog:
    """Draw distinct SIDs."""
    drawn = np.random.default_rng(seed).choice(CODES**LEVELS, size=n_items, replace=False)
    return Catalog(
        codes=np.stack(np.unravel_index(drawn, (CODES,) * LEVELS), axis=1).astype(np.int32),
        codebook_sizes=(CODES,) * LEVELS,
        item_ids=np.arange(n_items),
        vectors=np.ones((n_items, 1), np.float32),
        centroids=[],
        items_fingerprint="random",
        popularity=np.zeros(n_items, np.int64),
    )


def make_layouts(catalog: Catalog, n_items: int, separator: str, *, batch: int, seed: int) -> dict[str, Layout]:
    """Write the same histories and pages in both ways, for policies of the same weights but for the merger."""
    rng = np.random.default_rng(seed)
    histories = rng.integers(len(catalog.codes), size=(batch, n_items))
    pages = rng.integers(len(catalog.codes), size=(batch, PAGE))
    nothing = np.zeros(n_items, np.int64)
    layouts = {}
    for name in (MERGED, PLAIN):
        grammar = PromptGrammar(merge=name == MERGED, separator=separator, max_history=n_items)
        policy = create_policy(catalog, grammar=grammar, backbone=SIZE, seed=seed)
        prompts = [policy.prompts.prompt(Context("", 0, history, nothing, nothing)) for history in histories]
        answers = [policy.prompts.answer(page) for page in pages]
        layouts[name] = Layout(policy, torch.from_numpy(np.stack(prompts)), torch.from_numpy(np.stack(answers)))
    layouts[MERGED].policy.model.load_state_dict(layouts[PLAIN].policy.model.state_dict(), strict=False)
    return layouts


def compare(bench: Benchmark, case: str, layouts: dict[str, Layout]) -> dict[str, dict[str, Measured]]:
    """Measure prefill and training of all layouts."""
    works: dict[str, Callable[[Layout], Callable]] = {"prefill": lambda x: x.prefill, "training": lambda x: x.train}
    places = {name: layout.prompts_BP.shape[1] for name, layout in layouts.items()}
    measured = {}
    for work, run in works.items():
        contenders = [Contender(name, run(layout)) for name, layout in layouts.items()]
        measured[work] = bench.compare(f"{case}: {work}", contenders, prompt_places=places)
    return measured


@torch.no_grad()
def check_merging(bench: Benchmark, case: str, merged: Layout) -> None:
    """Hold the forward on packed ids against one on vectors that are looked up and merged by hand (eq. 5)."""
    network = merged.policy.model.model
    table, merger, vocab = network.embed_tokens.weight, network.token_merger, merged.policy.vocab
    bits = 60 // LEVELS
    rows = []
    for prompt in merged.prompts_BP.tolist():
        vectors = []
        for i in prompt:
            codes = [i >> bits * (LEVELS - 1 - level) & (1 << bits) - 1 for level in range(LEVELS)]
            tokens = [start + code for start, code in zip(vocab.level_starts, codes, strict=True)]
            is_item = i >= 1 << 62
            vectors.append(merger.weight @ table[tokens].flatten() + merger.bias if is_item else table[i])
        rows.append(torch.stack(vectors))
    expected = network(inputs_embeds=torch.stack(rows)).last_hidden_state
    found = network(input_ids=merged.prompts_BP).last_hidden_state
    bench.check(f"{case}: hidden states, merged by hand", (found - expected).abs().max(), limit=1e-4)


def sweep(bench: Benchmark, catalog: Catalog, settings: Settings) -> None:
    """Measure one prompt at growing histories."""
    curves: dict[str, dict[str, dict[float, float]]] = {"prefill": {}, "training": {}}
    for n_items in SWEEP:
        layouts = {}
        for separator, suffix in (("none", ""), ("item", ", <|sep|>")):
            made = make_layouts(catalog, n_items, separator, batch=1, seed=settings.seed)
            layouts |= {f"{name}{suffix}": layout for name, layout in made.items()}
        for work, measured in compare(bench, f"growth: n={n_items}, one prompt", layouts).items():
            for name, m in measured.items():
                curves[work].setdefault(name, {})[n_items] = m.seconds
    for work, lines in curves.items():
        if settings.json:
            path = Path(settings.json)
            file = path.with_name(f"{path.stem}_growth_{work}.png")
            plot_growth(file, f"{work.capitalize()} of one prompt", "items of the history", "CPU seconds", lines)


if __name__ == "__main__":
    main()
