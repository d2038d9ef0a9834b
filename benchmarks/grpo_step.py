"""How much faster are our GRPO log-probabilities than repeated rows, and our whole step than TRL's trainer?

    python benchmarks/grpo_step.py --json benchmarks/results/grpo_step.json
    python benchmarks/grpo_step.py --groups 32 --prompt 512 --step false     (other sizes: no goals)
    python benchmarks/grpo_step.py --sweep true --json FILE                  (also draws FILE's stem + _growth_*.png)

Log-probabilities of G answers a prompt, forward and backward. ``repeated rows`` is TRL's layout: the prompt once
for every answer, logits of the answers only. ``prefix-grouper`` is that package as its README says, on SDPA.

Step: rollouts, rewards, loss, backward, clipping and optimiser, without loading, logging or saving. ``TRL`` is the
stock ``GRPOTrainer`` whose ``generate`` is told the catalogue by a ``prefix_allowed_tokens_fn``; it samples where we
search beams. Both get the same prompts and the same reward of an item.

Lengths: the same step of 64 prompts as unequal as the histories of a log (lognormal, as on Amazon Beauty), all padded
to the longest, and read in groups of like length (``length_groups``, the default).
"""

import copy
import dataclasses
import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Float, Int
from torch import Tensor, nn
from trl import GRPOConfig, GRPOTrainer

from benchmarks.generation_baselines import (
    LEVELS,
    GroupedLogProbs,
    has_default_sizes,
    make_catalog,
    make_policy,
    prefix_function,
    random_prompts,
    repeated_log_probs,
)
from benchmarks.harness import Benchmark, BenchmarkSettings, Contender, Measured, parse, plot_growth
from genrec_rl.models.policy import Policy
from genrec_rl.models.prefix_tree import branch_log_probs
from genrec_rl.rl.config import GRPOSRConfig
from genrec_rl.rl.rollouts import RolloutScorer
from genrec_rl.rl.trainer import GRPOSRTrainer
from genrec_rl.sids.catalog import Catalog
from genrec_rl.types import Action, Context, Example

# --- Our interfaces: all that this script calls of what it measures -------------------------------------------------

OUR_STEPS: dict[str, dict[str, Any]] = {
    "ours": {"nll_coef": 0.0, "anchor_positives": False, "fused_step": "never"},
    "ours, fused": {"nll_coef": 0.0, "anchor_positives": False, "fused_step": "always"},
    "ours, fused, 5 positives a page": {"nll_coef": 0.1, "anchor_positives": True, "fused_step": "always"},
}
"""Our ways of making a step: fields of ``GRPOSRConfig``. The first two do what TRL does."""


def our_log_probs(
    model: nn.Module, prompt_ids_BP: Tensor, is_prompt_BP: Tensor, answers_BGC: Tensor
) -> Float[Tensor, "B G C"]:
    return branch_log_probs(model, prompt_ids_BP, is_prompt_BP, answers_BGC).log_probs_BGC


def our_trainer(
    policy: Policy, examples: list[Example], reward: "HashReward", catalog: Catalog, shared: dict, **settings: Any
) -> GRPOSRTrainer:
    args = GRPOSRConfig(constrained_rollouts=True, max_positives=8, **shared, **settings)
    return GRPOSRTrainer(policy, args=args, examples=examples, scorer=RolloutScorer(reward, None, catalog))


# --------------------------------------------------------------------------------------------------------------------

OURS, REPEATED, GROUPER, TRL, FUSED = "ours", "repeated rows", "prefix-grouper", "TRL GRPOTrainer", "ours, fused"
POSITIVES = 5
GOALS = {  # by G: time and memory against repeated rows, time against prefix-grouper
    16: ((12, 17), 8, (1.5, 1.9)),
    64: ((40, 51), 20, (2.2, 2.9)),
}
PADDED, IN_GROUPS = "all padded alike", "groups of like length"
GOALS_STEP = {OURS: (10, 15), FUSED: (14, 22)}


@dataclass
class Settings(BenchmarkSettings):
    """Sizes. The goals hold for the defaults."""

    groups: list[int] = field(default_factory=lambda: [16, 64], metadata={"help": "G: answers a prompt"})
    prompt: int = field(default=256, metadata={"help": "tokens of a prompt; one more than a multiple of 3"})
    pages: int = field(default=4, metadata={"help": "prompts a batch; half as many from 64 answers on"})
    items: int = field(default=100_000, metadata={"help": "SIDs in the catalogue"})
    codes: int = field(default=256, metadata={"help": "codes of each of the three levels"})
    step: bool = field(default=True, metadata={"help": "also measure a whole step, at the first G"})
    unequal: int = field(default=64, metadata={"help": "prompts of unequal length in a step; 0: not measured"})


def main() -> None:
    settings = parse(Settings)
    bench = Benchmark(__doc__, settings)
    catalog = make_catalog(settings.items, codes=settings.codes, seed=settings.seed)
    is_default = has_default_sizes(settings, "prompt", "pages", "items", "codes")
    for group in settings.groups:
        pages = settings.pages if group < 64 else max(settings.pages // 2, 1)
        case = f"log-probs G={group}"
        measured = compare_log_probs(bench, case, catalog, pages=pages, group=group, prompt=settings.prompt)
        if is_default and group in GOALS:
            hold_goals(bench, case, measured, *GOALS[group])
    if settings.step:
        measured = compare_steps(bench, catalog, settings)
        for name, (must, aim) in GOALS_STEP.items():
            if is_default and settings.groups[0] == 16 and name in measured:
                ratio = measured[TRL].seconds / measured[name].seconds
                bench.goal(f"whole step: times faster than TRL, {name}", ratio, must=must, aim=aim)
    if settings.unequal:
        compare_lengths(bench, catalog, settings)
    if settings.sweep:
        sweep(bench, catalog, settings)
    bench.finish()


# --- Log-probabilities ----------------------------------------------------------------------------------------------


def compare_log_probs(
    bench: Benchmark, case: str, catalog: Catalog, *, pages: int, group: int, prompt: int, with_repeated: bool = True
) -> dict[str, Measured]:
    """Compare the ways on the same answers; hold log-probabilities and gradients of ours against theirs."""
    seed = bench.settings.seed
    policy = make_policy(catalog, seed=seed)
    ids, is_prompt = random_prompts(policy, pages, prompt, seed=seed)
    rows = torch.randint(catalog.n_items, (pages, group), generator=torch.Generator().manual_seed(seed))
    answers = policy.vocab.token_ids(torch.from_numpy(catalog.codes).long()[rows])
    ways = {OURS: our_log_probs, REPEATED: repeated_log_probs, GROUPER: GroupedLogProbs()}
    if not with_repeated:
        del ways[REPEATED]
    weights = torch.randn(answers.shape, generator=torch.Generator().manual_seed(seed))
    contenders = []
    for name, log_probs in ways.items():
        model = copy.deepcopy(policy.model).train()
        if name == GROUPER:
            model.set_attn_implementation("prefix_grouper_attention")
        run = functools.partial(backward, log_probs, model, ids, is_prompt, answers, weights=weights)
        repeats = bench.settings.slow_repeats if name == REPEATED else None
        contenders.append(Contender(name, lambda _, run=run: run(), repeats, functools.partial(forget, model)))
    measured = bench.compare(case, contenders, pages=pages, prompt=prompt)
    for other in list(ways)[1:]:
        check_equal(bench, f"{case}, {other}", measured[OURS].result, measured[other].result)
    return measured


def forget(model: nn.Module) -> None:
    model.zero_grad(set_to_none=True)


def backward(
    log_probs: Callable[..., Tensor], model: nn.Module, *batch: Tensor, weights: Float[Tensor, "B G C"]
) -> tuple[Float[Tensor, "B G C"], list[Tensor]]:
    """Return log-probabilities and the gradient of their weighted sum."""
    found = log_probs(model, *batch)
    (found * weights).sum().backward()
    return found.detach(), [p.grad for p in model.parameters()]


def check_equal(
    bench: Benchmark, what: str, ours: tuple[Tensor, list[Tensor]], other: tuple[Tensor, list[Tensor]]
) -> None:
    bench.check(f"{what}: largest difference of a log-probability", (ours[0] - other[0]).abs().max(), limit=1e-4)
    bench.check(f"{what}: relative difference of gradients", relative_difference(ours[1], other[1]), limit=1e-4)


def relative_difference(ours: list[Tensor], other: list[Tensor]) -> float:
    """Return ``|a - b| / |b|`` over all parameters."""
    apart = sum((a - b).double().square().sum() for a, b in zip(ours, other, strict=True))
    size = sum(b.double().square().sum() for b in other)
    return float((apart / size).sqrt())


def hold_goals(
    bench: Benchmark,
    case: str,
    measured: dict[str, Measured],
    repeated: tuple[float, float],
    memory: float,
    grouper: tuple[float, float],
) -> None:
    ours = measured[OURS]
    for name, (must, aim) in ((REPEATED, repeated), (GROUPER, grouper)):
        bench.goal(f"{case}: times faster than {name}", measured[name].seconds / ours.seconds, must=must, aim=aim)
    bench.goal(f"{case}: memory of {REPEATED} over ours", measured[REPEATED].peak_mib / ours.peak_mib, must=memory)


# --- A whole step ---------------------------------------------------------------------------------------------------


class HashReward:
    """An item's reward is a hash of its row, in [0, 1). Remembers the rows it was asked about last."""

    fingerprint = "hash"

    def __init__(self) -> None:
        self.rows_PG: Int[np.ndarray, "P G"] | None = None

    def score(self, _: list[Context], candidates: Int[np.ndarray, "P G"]) -> Float[np.ndarray, "P G"]:
        """Return the rewards of the candidates."""
        self.rows_PG = candidates
        return (candidates.astype(np.int64) * 2_654_435_761 % (1 << 32) / (1 << 32)).astype(np.float32)


def compare_steps(bench: Benchmark, catalog: Catalog, settings: Settings) -> dict[str, Measured]:
    """Compare our steps with TRL's; first hold loss and gradient against each other on the same rollouts."""
    examples = make_pages(catalog, settings)
    with tempfile.TemporaryDirectory() as folder:
        shared = shared_settings(settings, folder, pages=settings.pages)
        reward = HashReward()
        ours = {
            name: our_trainer(make_policy(catalog, seed=settings.seed), examples, reward, catalog, shared, **fields)
            for name, fields in OUR_STEPS.items()
        }
        stock = stock_trainer(make_policy(catalog, seed=settings.seed), examples, catalog, shared)
        trainers = ours | {TRL: stock}
        for trainer in trainers.values():
            trainer.current_gradient_accumulation_steps = 1  # set by train()
            trainer.create_optimizer()
        for name in (OURS, FUSED):
            if name in ours:
                check_step(bench, f"whole step, {name}", ours[name], stock, reward, catalog)
        for trainer in trainers.values():
            optimiser_step(trainer)  # from here on, Adam has its moments
        repeats = {TRL: settings.slow_repeats}
        steps = [
            Contender(name, functools.partial(optimiser_step, t), repeats.get(name)) for name, t in trainers.items()
        ]
        return bench.compare(
            f"whole step G={settings.groups[0]}", steps, pages=settings.pages, prompt=settings.prompt
        )


def make_pages(catalog: Catalog, settings: Settings) -> list[Example]:
    """Draw pages whose prompts have the length asked for, with five positives each."""
    if settings.prompt % LEVELS != 1:
        raise SystemExit(f"--prompt {settings.prompt}: a prompt is one token and {LEVELS} an item; try 256")
    random = np.random.default_rng(settings.seed)
    return [make_page(catalog, page, settings.prompt // LEVELS, random) for page in range(settings.pages)]


def make_page(catalog: Catalog, page: int, n_items: int, random: np.random.Generator) -> Example:
    """Draw a page behind a history of so many items."""
    return Example(
        request_id=str(page),
        context=Context(
            user_id=str(page),
            time=n_items,
            history=random.integers(catalog.n_items, size=n_items),
            history_times=np.arange(n_items),
            history_pages=np.arange(n_items),
        ),
        items=random.choice(catalog.n_items, size=POSITIVES, replace=False),
        actions=np.full(POSITIVES, Action.CLICK, np.int8),
    )


def shared_settings(settings: Settings, folder: str, *, pages: int) -> dict[str, Any]:
    """Return what both trainers are told."""
    group = settings.groups[0]
    rollouts = {"num_generations": group, "per_device_train_batch_size": group * pages, "num_iterations": 1}
    loss = {"loss_type": "grpo", "beta": 0.0, "learning_rate": 1e-6, "optim": "adamw_torch", "max_steps": 100}
    quiet = {"output_dir": folder, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    return rollouts | loss | quiet | {"use_cpu": True, "bf16": False, "seed": settings.seed}


def stock_trainer(policy: Policy, examples: list[Example], catalog: Catalog, shared: dict[str, Any]) -> GRPOTrainer:
    """Make TRL's own trainer of the same prompts and reward, its ``generate`` bound to the catalogue."""
    reward = HashReward()

    def reward_function(completion_ids: list[list[int]], **_: Any) -> list[float]:
        rows = catalog.rows_of(policy.vocab.codes(torch.tensor(completion_ids)))
        return reward.score([], rows.numpy()).tolist()

    prompts = [policy.prompts.prompt(example.context).tolist() for example in examples]
    texts = [" ".join(policy.tokenizer.convert_ids_to_tokens(prompt)) for prompt in prompts]
    assert policy.tokenizer(texts)["input_ids"] == prompts
    trainer = GRPOTrainer(
        model=policy.model,
        reward_funcs=reward_function,
        args=GRPOConfig(max_completion_length=LEVELS, activation_checkpointing=False, disable_dropout=True, **shared),
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=policy.tokenizer,
    )
    allowed = prefix_function(policy, catalog, prompt_length=len(prompts[0]))
    trainer.model.generate = functools.partial(trainer.model.generate, prefix_allowed_tokens_fn=allowed)
    return trainer


def read_rows(trainer: GRPOTrainer) -> list[dict[str, Any]]:
    """Read a batch as the trainer's sampler asks for it: each prompt G times, neighbours equal."""
    pages = np.repeat(np.arange(len(trainer.train_dataset)), trainer.num_generations)
    return trainer.train_dataset.__getitems__(pages.tolist())


def optimiser_step(trainer: GRPOTrainer) -> None:
    """Make one step as ``Trainer.train`` does, without its logging."""
    trainer.training_step(trainer.model, read_rows(trainer), None)
    trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
    trainer.optimizer.step()
    trainer.model.zero_grad()


def check_step(
    bench: Benchmark, what: str, ours: GRPOTrainer, stock: GRPOTrainer, reward: HashReward, catalog: Catalog
) -> None:
    """Let ours roll out, give its rollouts to TRL's trainer, and compare losses and gradients; no weight moves."""
    loss = ours.training_step(ours.model, read_rows(ours), None)
    assert reward.rows_PG is not None
    sids = torch.from_numpy(catalog.codes[reward.rows_PG.flatten()]).long()
    answers = ours.policy.vocab.token_ids(sids).tolist()

    def replay(prompts: list[str], trainer: GRPOTrainer) -> dict[str, Any]:
        ids = trainer.processing_class(prompts)["input_ids"]
        return {"prompt_ids": ids, "completion_ids": answers, "logprobs": None}

    stock.rollout_func = replay
    expected = stock.training_step(stock.model, read_rows(stock), None)
    stock.rollout_func = None
    gradients = [[p.grad for p in trainer.model.parameters()] for trainer in (ours, stock)]
    bench.check(f"{what}: difference of losses on our rollouts", (loss - expected).abs(), limit=1e-4)
    bench.check(f"{what}: relative difference of gradients", relative_difference(*gradients), limit=1e-4)
    for trainer in (ours, stock):
        forget(trainer.model)


def compare_lengths(bench: Benchmark, catalog: Catalog, settings: Settings) -> None:
    """Compare a fused step of prompts of unequal length, padded to the longest or read in groups."""
    random = np.random.default_rng(settings.seed)
    n_items = np.clip(random.lognormal(1.4, 0.9, settings.unequal).round().astype(int), 1, 50)
    examples = [make_page(catalog, page, n, random) for page, n in enumerate(n_items.tolist())]
    with tempfile.TemporaryDirectory() as folder:
        shared = shared_settings(settings, folder, pages=settings.unequal)
        fields = OUR_STEPS[FUSED]
        trainers = {
            name: our_trainer(
                make_policy(catalog, seed=settings.seed), examples, HashReward(), catalog, shared, **fields | more
            )
            for name, more in ((PADDED, {"length_groups": 1}), (IN_GROUPS, {}))
        }
        found = []
        for trainer in trainers.values():
            trainer.current_gradient_accumulation_steps = 1
            trainer.create_optimizer()
            trainer.training_step(trainer.model, read_rows(trainer), None)
            found.append([p.grad.clone() for p in trainer.model.parameters()])
            forget(trainer.model)
        bench.check("unequal prompts: relative difference of gradients", relative_difference(*found), limit=1e-4)
        for trainer in trainers.values():
            optimiser_step(trainer)
        steps = [Contender(name, functools.partial(optimiser_step, t)) for name, t in trainers.items()]
        case = f"step of {settings.unequal} unequal prompts, G={settings.groups[0]}"
        measured = bench.compare(case, steps, longest=int(n_items.max()) * LEVELS + 1)
    ratio = measured[PADDED].seconds / measured[IN_GROUPS].seconds
    bench.goal(f"{case}: times faster than {PADDED}", ratio, must=1.3)


# --- Growth ---------------------------------------------------------------------------------------------------------


def sweep(bench: Benchmark, catalog: Catalog, settings: Settings) -> None:
    """Measure log-probabilities of one prompt at growing sizes; repeated rows as far as they take seconds."""
    steps = [("answers a prompt", group, {"group": group}) for group in (4, 8, 16, 32, 64, 128)]
    steps += [("prompt tokens", n, {"prompt": n}) for n in (64, 128, 256, 512, 1024, 2048)]
    bench.settings = dataclasses.replace(settings, slow_repeats=1)
    curves: dict[str, dict[str, dict[float, float]]] = {}
    for axis, value, change in steps:
        at = {"group": 16, "prompt": settings.prompt} | change
        is_quick = at["group"] * at["prompt"] <= 16 * 2048
        case = f"growth by {axis}: G={at['group']} P={at['prompt']}"
        measured = compare_log_probs(bench, case, catalog, pages=1, with_repeated=is_quick, **at)
        for name, m in measured.items():
            curves.setdefault(axis, {}).setdefault(name, {})[value] = m.seconds
    bench.settings = settings
    for axis, lines in curves.items():
        if settings.json:
            path = Path(settings.json)
            file = path.with_name(f"{path.stem}_growth_{axis.split()[0]}.png")
            plot_growth(file, "Log-probabilities and gradient of one prompt", axis, "CPU seconds", lines)


if __name__ == "__main__":
    main()
