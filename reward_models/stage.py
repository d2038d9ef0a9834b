"""What stages that train a reward model share: reading what they learn from, judging the model, and finishing."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genrec_rl.data.store import Dataset, load_dataset
from genrec_rl.rewards.gates import EmbeddingGate, SidPrefixGate, ValidGate, gate_report
from genrec_rl.rewards.protocol import Gate, RewardModel
from genrec_rl.sids.catalog import Catalog
from genrec_rl.tracking import console, finish_stage, require_stage
from genrec_rl.types import Example
from reward_models.report import RewardReport
from reward_models.report_tables import write_report
from reward_models.sim import SIM
from reward_models.sim.fit import halve_users
from reward_models.sim.gate import SearchGate


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """Data and catalogue, and where they came from."""

    dataset: Dataset
    catalog: Catalog
    folders: dict[str, str]

    @classmethod
    def read(cls, data_dir: str, sid_dir: str) -> "Inputs":
        """Load finished stages.

        Raises:
            ConfigError: when one is missing, or the catalogue was made from other data.
        """
        data = require_stage(data_dir, stage="prepare", command="python recipes/prepare.py")
        command = "python recipes/build_sids.py"
        sids = require_stage(sid_dir, stage="build_sids", command=command, made_from={"data": data_dir})
        dataset, catalog = load_dataset(data), Catalog.load(sids)
        catalog.check_items(dataset.items_fingerprint)
        return cls(dataset, catalog, {"data": data_dir, "sids": sid_dir})

    def halves(self, *, max_history: int | None, seed: int) -> tuple[list[Example], list[Example]]:
        """Divide validation pages by user: those that tune a model, those that judge it. Test pages stay closed."""
        return halve_users(self.dataset.examples("valid", max_history=max_history), seed=seed)


def offered_gates(model: RewardModel, catalog: Catalog, *, examples: Sequence[Example]) -> dict[str, Gate]:
    """Return the gates that RL can choose from, tau fitted on pages; ``search`` needs a SIM with soft search."""
    gates: dict[str, Gate] = {"embedding": EmbeddingGate(catalog, examples=examples)}
    gates |= {"sid_prefix": SidPrefixGate(catalog), "valid": ValidGate()}
    if isinstance(model, SIM) and model.network.config.search == "soft":
        gates["search"] = SearchGate(model, catalog, examples=examples)
    return gates


def finish(
    model: RewardModel,
    report: RewardReport,
    inputs: Inputs,
    *,
    output_dir: Path,
    config: Mapping[str, Any],
    further_inputs: Mapping[str, str],
    started: float,
) -> None:
    """Fit the gates on tuning pages and judge them on held-out ones, write the report, and record the stage.

    Args:
        model: the reward model, saved already.
        report: its quality.
        inputs: what the stage read.
        output_dir: the stage's folder.
        config: its settings, with ``seed``.
        further_inputs: folders that it read beside data and catalogue.
        started: ``time.monotonic()`` at the beginning.
    """
    tuning, held_out = inputs.halves(max_history=None, seed=config["seed"])  # as gates read users in RL
    gates = offered_gates(model, inputs.catalog, examples=tuning)
    passed = {name: gate_report(gate, held_out, inputs.catalog, seed=config["seed"]) for name, gate in gates.items()}
    seconds = time.monotonic() - started
    write_report(console, model, report, passed, output_dir, seconds=seconds)
    read = {**inputs.folders, **further_inputs}
    finish_stage(output_dir, stage="train_reward", settings=config, inputs=read, seconds=seconds)
