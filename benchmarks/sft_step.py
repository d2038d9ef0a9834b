"""How much faster is page-wise SFT with a user's history read once than with one row a page?

    python benchmarks/sft_step.py --json benchmarks/results/sft_step.json
    python benchmarks/sft_step.py --hidden_size 128 --num_layers 3 --intermediate_size 384     (the demo's policy)

Whole optimiser steps on MovieLens-100K, loading and clipping included. ``ours`` is ``PageSFTTrainer`` with a user's
pages in one tree and several trees in a row; ``one tree a row`` is the same with every tree padded to the longest;
``TRL`` is the stock ``SFTTrainer`` and its collator on the same pages, one row a page with the history that the page
sees in its tree. All start from the same weights and take the same pages in the same steps. A place is a position of
the input; the promise of the count is its ratio of real places, and TRL computes its padding besides.
"""

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
from datasets import Dataset as Rows
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from benchmarks.harness import Benchmark, BenchmarkSettings, Contender, parse
from genrec_rl.data.store import Dataset, load_dataset
from genrec_rl.models.policy import BackboneSize, Policy, create_policy
from genrec_rl.models.prompts import PromptGrammar
from genrec_rl.sft import user_tree
from genrec_rl.sft.rows import training_row
from genrec_rl.sft.targets import answers_of
from genrec_rl.sft.trainer import PageSFTConfig, PageSFTTrainer
from genrec_rl.sids.catalog import Catalog
from genrec_rl.tracking import console, require_stage, run_recipe

OURS, ALONE, STOCK = "ours", "one tree a row", "TRL SFTTrainer"
GRAMMAR = PromptGrammar()
MAX_ITEMS = 10
MAKES = "make demo  # or recipes/build_sids.py after recipes/prepare.py"


@dataclass
class Settings(BenchmarkSettings):
    """Sizes. The goals hold for the defaults."""

    data_dir: str = field(default="runs/demo/data", metadata={"help": "prepared data"})
    sid_dir: str = field(default="runs/demo/sids", metadata={"help": "catalogue of semantic ids"})
    hidden_size: int = field(default=256, metadata={"help": "width"})
    num_layers: int = field(default=4, metadata={"help": "layers"})
    num_heads: int = field(default=4, metadata={"help": "attention heads"})
    intermediate_size: int = field(default=1024, metadata={"help": "MLP width"})
    windows: int = field(default=8, metadata={"help": "trees a step"})
    steps: int = field(default=6, metadata={"help": "optimiser steps of a timed run"})


@dataclass(frozen=True)
class Batches:
    """Rows, which of them make each step of an epoch, and who pads them."""

    rows: Rows
    epoch: list[list[int]]
    collator: Any

    def load(self, steps: int | None = None) -> DataLoader:
        """Return a loader of the first steps."""
        return DataLoader(self.rows, batch_sampler=self.epoch[:steps], collate_fn=self.collator)

    def count(self, steps: int | None = None) -> dict[str, int]:
        """Count the places of the first steps."""
        chosen = [i for batch in self.epoch[:steps] for i in batch]
        real = sum(len(row["input_ids"]) for row in self.rows.select(chosen))
        return {"real": real, "padded": sum(batch["input_ids"].numel() for batch in self.load(steps))}


class OneTreeARow(user_tree.TreeCollator):
    """Pads every tree to the longest."""

    def __call__(self, windows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Collate without sharing rows."""
        with mock.patch.object(user_tree, "share_rows", lambda lengths: [[i] for i in range(len(lengths))]):
            return super().__call__(windows)


def main() -> None:
    settings = parse(Settings)
    bench = Benchmark(__doc__, settings)
    dataset = load_dataset(require_stage(settings.data_dir, stage="prepare", command=MAKES))
    catalog = Catalog.load(require_stage(settings.sid_dir, stage="build_sids", command=MAKES))
    size = BackboneSize(settings.hidden_size, settings.num_layers, settings.num_heads, settings.intermediate_size)
    policy = create_policy(catalog, grammar=GRAMMAR, backbone=size, seed=settings.seed)
    batches = write_batches(dataset, policy, windows=settings.windows, seed=settings.seed)
    with tempfile.TemporaryDirectory() as folder:
        trainers = {name: make_trainer(name, policy, batches[name], settings.steps, folder) for name in batches}
        check_gradients(bench, trainers)
        places = {name: given.count(settings.steps) for name, given in batches.items()}
        epoch = {name: given.count() for name, given in batches.items()}
        contenders = [Contender(name, trainer.train) for name, trainer in trainers.items()]
        measured = bench.compare(f"{settings.steps} steps", contenders, places=places, places_of_an_epoch=epoch)
    loss = {name: m.result.training_loss for name, m in measured.items()}
    bench.check("ours: mean loss of all steps, to TRL's", abs(loss[OURS] / loss[STOCK] - 1), limit=1e-4)
    ratio = measured[STOCK].seconds / measured[OURS].seconds
    real, padded = (places[STOCK][kind] / places[OURS][kind] for kind in ("real", "padded"))
    console.print(f"{STOCK} over ours: {ratio:.2f} in time, {real:.2f} in real places, {padded:.2f} in padded ones")
    console.print(f"places of an epoch: {epoch}")
    bench.goal("time ratio to TRL over ratio of real places", ratio / real, must=0.8, aim=0.95)
    if settings.windows == Settings.windows:
        bench.goal("padded places of an epoch", epoch[OURS]["padded"], must=285_000, at_most=True)
    bench.finish()


def write_batches(dataset: Dataset, policy: Policy, *, windows: int, seed: int) -> dict[str, Batches]:
    """Write the training pages as trees and as rows of the same histories, in the same steps."""
    answers = answers_of(dataset.pages, dataset.split.train, target="page", max_items=MAX_ITEMS)
    cut = user_tree.cut_windows(answers, max_history=GRAMMAR.max_history)
    trees = user_tree.build_trees(answers, policy.prompts)
    rows, rows_of = [], []
    for window in cut:
        rows_of.append(range(len(rows), len(rows) + len(window.answers)))
        for i in window.answers:
            known = answers.history(window.start, int(answers.knows[i]))
            rows.append(training_row(policy.prompts, known, answers.items(i)))
    order = np.random.default_rng(seed).permutation(len(cut)).tolist()
    of_trees = [order[i : i + windows] for i in range(0, len(order), windows)]
    of_pages = [[row for window in batch for row in rows_of[window]] for batch in of_trees]
    pad_id = policy.vocab.pad_id
    return {
        OURS: Batches(trees, of_trees, user_tree.TreeCollator(policy.model, pad_id=pad_id)),
        ALONE: Batches(trees, of_trees, OneTreeARow(policy.model, pad_id=pad_id)),
        STOCK: Batches(Rows.from_list(rows), of_pages, DataCollatorForLanguageModeling(pad_id)),
    }


def make_trainer(name: str, policy: Policy, batches: Batches, steps: int, folder: str) -> SFTTrainer:
    """Make a trainer of a copy of the weights, whose only change is which rows make a step."""
    settings = {"output_dir": folder, "max_steps": steps, "learning_rate": 1e-3, "max_length": None, "bf16": False}
    settings |= {"use_cpu": True, "activation_checkpointing": False, "report_to": "none", "save_strategy": "no"}
    stock, config = (SFTTrainer, SFTConfig) if name == STOCK else (PageSFTTrainer, PageSFTConfig)
    trainer = stock(
        model=copy.deepcopy(policy.model),
        args=config(disable_tqdm=True, **settings),
        train_dataset=batches.rows,
        data_collator=None if name == STOCK else batches.collator,
        processing_class=policy.tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    loader = trainer.accelerator.prepare(batches.load(steps))
    trainer.get_train_dataloader = lambda: loader
    return trainer


def check_gradients(bench: Benchmark, trainers: dict[str, SFTTrainer]) -> None:
    """Hold the loss of every step and the sum of their gradients against TRL's, at the starting weights."""
    losses, gradients = {}, {}
    for name, trainer in trainers.items():
        steps = [trainer.get_batch_samples(iter([batch]), 1, "cpu") for batch in trainer.get_train_dataloader()]
        found = [trainer.compute_loss(trainer.model, batch, num_items_in_batch=n) for (batch,), n in steps]
        torch.stack(found).sum().backward()
        losses[name] = torch.stack(found).detach()
        gradients[name] = torch.cat([weights.grad.flatten() for weights in trainer.model.parameters()])
        trainer.model.zero_grad()
    for name in (OURS, ALONE):
        loss = (losses[name] / losses[STOCK] - 1).abs().max()
        gradient = (gradients[name] - gradients[STOCK]).norm() / gradients[STOCK].norm()
        bench.check(f"{name}: loss of any step, to TRL's", loss, limit=1e-4)
        bench.check(f"{name}: gradient, to TRL's", gradient, limit=1e-4)


if __name__ == "__main__":
    run_recipe(main)
