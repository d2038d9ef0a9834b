"""Combine reward models: mean - kappa * standard deviation, careful where they disagree; or times what items bring.

    python recipes/combine_rewards.py --members runs/demo/reward runs/demo/xgb --output_dir runs/demo/ensemble
    python recipes/combine_rewards.py --members runs/demo/xgb --by_value true --output_dir runs/demo/expected_value

Reads   the pages of ``prepare.py`` (validation pages; test pages stay closed), the catalogue, the members, and with
        ``policy_dir`` a policy, inside whose proposals the ensemble is judged.
Writes  the model with a copy of its members (config.json, member_0/, ..., manifest.json), reward.json,
        reliability.png, metrics.jsonl, stage.json.
Watch   GAUC of ``proposed`` against the members' own reports. The score is lowered where members disagree, so COPC
        lies above 1 by design; a score by value is no probability at all, and its GAUC says what accuracy it costs.
        A member that was trained with another ``seed`` chose its epoch and calibration by some of the users that it
        is judged by here.
"""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from genrec_rl.config import parse_recipe
from genrec_rl.data.store import Dataset
from genrec_rl.errors import ConfigError
from genrec_rl.evaluation.proposals import ProposalSettings, propose
from genrec_rl.rewards.components import load_reward_model
from genrec_rl.rewards.protocol import RewardModel
from genrec_rl.sids.catalog import Catalog
from genrec_rl.tracking import PROJECT, Tracker, run_recipe
from reward_models.candidates import NegativeSampler, label_proposals
from reward_models.ensemble import Ensemble
from reward_models.expected_value import ExpectedValue, relative_worth
from reward_models.report import judge
from reward_models.stage import Inputs, finish

_CLASSES = {
    "SIM": "reward_models.sim.SIM",
    "XGB": "reward_models.xgb.XGB",
    "Ensemble": "reward_models.ensemble.Ensemble",
    "ExpectedValue": "reward_models.expected_value.ExpectedValue",
}


@dataclass
class Settings:
    """What is combined, and how it is judged."""

    data_dir: str = field(default="runs/demo/data", metadata={"help": "prepared data"})
    sid_dir: str = field(default="runs/demo/sids", metadata={"help": "catalogue of semantic ids"})
    members: list[str] = field(
        default_factory=list, metadata={"help": "folders of reward models; class_path=DIR for classes of your own"}
    )
    kappa: float = field(default=1.0, metadata={"help": "standard deviations to take off the mean"})
    by_value: bool = field(
        default=False, metadata={"help": "times what an item brings when it is taken (data with values); eCPM"}
    )
    value_percentile: float = field(default=95.0, metadata={"help": "of the items' values, that is worth 1"})
    value_prior: float = field(default=5.0, metadata={"help": "events of the mean value that each item begins with"})
    output_dir: str = field(default="runs/demo/ensemble", metadata={"help": "folder to write"})
    trusted_packages: list[str] = field(default_factory=list, metadata={"help": "further packages to load from"})
    negatives_per_positive: int = field(default=1, metadata={"help": "drawn items per positive, where it is judged"})
    popular_share: float = field(default=0.5, metadata={"help": "share of them drawn by popularity"})
    seed: int = field(default=0, metadata={"help": "of the users that it is judged by, and of drawn items"})
    wandb_project: str = field(default=PROJECT, metadata={"help": "W&B project"})
    wandb_group: str | None = field(default=None, metadata={"help": "W&B group"})


def main(argv: list[str] | None = None) -> None:
    settings, policy = parse_recipe([Settings, ProposalSettings], __file__, argv)
    started = time.monotonic()
    inputs = Inputs.read(settings.data_dir, settings.sid_dir)
    popularity = inputs.dataset.popularity
    model = combine(settings, load_members(settings, inputs.catalog), inputs.dataset)
    _, held_out = inputs.halves(max_history=None, seed=settings.seed)
    proposed = None
    if policy.policy_dir:
        (rows_PG,) = propose(policy, [held_out], catalog=inputs.catalog, made_from=inputs.folders)
        proposed = label_proposals(held_out, rows_PG, catalog=inputs.catalog)
    config, output_dir = asdict(settings) | asdict(policy), Path(settings.output_dir)
    with Tracker(
        output_dir, job_type="combine_rewards", config=config,
        project=settings.wandb_project, group=settings.wandb_group,
    ) as tracker:  # fmt: skip
        model.save_pretrained(output_dir)
        report = judge(
            model,
            held_out,
            sampler=NegativeSampler(popularity, popular_share=settings.popular_share),
            popularity=popularity,
            negatives_per_positive=settings.negatives_per_positive,
            seed=settings.seed,
            proposed=proposed,
        )
        tracker.log(report.flat())
    folders = {f"member_{i}": word.rpartition("=")[2] for i, word in enumerate(settings.members)}
    finish(model, report, inputs, output_dir=output_dir, config=config,
           further_inputs=folders | policy.inputs, started=started)  # fmt: skip


def combine(settings: Settings, members: list[RewardModel], dataset: Dataset) -> RewardModel:
    """Return the ensemble of the members (one member is itself), times the items' worth where that is asked for.

    Raises:
        ConfigError: for worth of data without values.
    """
    model = members[0] if len(members) == 1 and settings.by_value else Ensemble(members, kappa=settings.kappa)
    if not settings.by_value:
        return model
    if dataset.item_values is None:
        raise ConfigError(f"by_value: {settings.data_dir} has no value column; prepare data that have one")
    worth = relative_worth(
        dataset.item_values, dataset.popularity, percentile=settings.value_percentile, prior=settings.value_prior
    )
    return ExpectedValue(model, worth)


def load_members(settings: Settings, catalog: Catalog) -> list[RewardModel]:
    """Load each member: of a class that is named, or that its own config.json names."""
    members = []
    for word in settings.members:
        class_path, _, folder = word.rpartition("=")
        if Path(folder).resolve() == Path(settings.output_dir).resolve():
            raise ConfigError(f"member {folder} is the output_dir, which would be overwritten; name another")
        block = {"class_path": class_path or own_class(Path(folder)), "init_args": {"path": folder}}
        members.append(load_reward_model(block, catalog=catalog, trusted_packages=settings.trusted_packages))
    return members


def own_class(folder: Path) -> str:
    """Return the class path of one of our reward models."""
    file = folder / "config.json"
    try:
        values = json.loads(file.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(
            f"member {folder}: no reward model there ({error}); train one, or name its folder"
        ) from None
    name = values.get("model") if isinstance(values, dict) else None
    if name not in _CLASSES:
        raise ConfigError(
            f"member {folder}: {file.name} names model {name!r}, none of {', '.join(_CLASSES)}; write "
            f"package.module.Class={folder}"
        )
    return _CLASSES[name]


if __name__ == "__main__":
    run_recipe(main)
