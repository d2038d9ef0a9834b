"""Reward models and gates from YAML blocks, checked before anything heavy loads."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genrec_rl.config import Block, load_component, read_block
from genrec_rl.data.store import Dataset
from genrec_rl.errors import ConfigError
from genrec_rl.rewards.protocol import Gate, RewardModel
from genrec_rl.sids.catalog import Catalog


def reward_block(block: Block, reward_dir: str | None = None) -> Mapping[str, Any] | None:
    """Return a reward model's block, ``reward_dir`` over the path in it; None for none.

    Raises:
        ConfigError: for a folder that is not there, or one without a block to load it with.
    """
    values = read_block(block, key="reward_model")
    if reward_dir is not None:
        if values is None:
            raise ConfigError("reward_dir needs a reward_model to load from it; name one, or leave both out")
        values = {**values, "init_args": {**(values.get("init_args") or {}), "path": reward_dir}}
    folder = ((values or {}).get("init_args") or {}).get("path")
    if folder is not None and not Path(folder).is_dir():
        raise ConfigError(
            f"reward_model: no folder '{folder}'; make it with `python recipes/train_reward.py --output_dir "
            f"{folder}`, or leave the reward model out with `--reward_model none`"
        )
    return values


def load_reward_model(
    block: Block, *, catalog: Catalog, trusted_packages: Sequence[str] = (), key: str = "reward_model"
) -> RewardModel:
    """Load the reward model of a ``{class_path, init_args: {path}}`` block through its ``from_pretrained``.

    Raises:
        ConfigError: when there is none, or its class or arguments are wrong.
        DataError: when its files are damaged or belong to another catalogue.
    """
    values = read_block(block, key=key)
    if values is None:
        raise ConfigError(f"{key} is not set; recipes/train_reward.py makes one, then name its class and path")
    return load_component(
        values,
        expected=RewardModel,
        key=key,
        factory="from_pretrained",
        provided={"catalog": catalog, "trusted_packages": trusted_packages},
        trusted_packages=trusted_packages,
    )


def load_gold_model(
    block: Block, *, against: RewardModel, catalog: Catalog, trusted_packages: Sequence[str] = ()
) -> RewardModel | None:
    """Load a second reward model that judges the first and trains nothing, or None without a block.

    Raises:
        ConfigError: when it is the reward model itself, or its class or arguments are wrong.
        DataError: when its files are damaged or belong to another catalogue.
    """
    values = read_block(block, key="gold_model")
    if values is None:
        return None
    gold = load_reward_model(values, catalog=catalog, trusted_packages=trusted_packages, key="gold_model")
    if gold.fingerprint == against.fingerprint:
        raise ConfigError(
            "gold_model is the reward model itself, so it can judge nothing: name one with another seed or "
            "architecture, or gold_model: none"
        )
    return gold


def load_gate(
    block: Block,
    *,
    catalog: Catalog,
    dataset: Dataset,
    trusted_packages: Sequence[str] = (),
) -> Gate | None:
    """Build the gate of a block, or None for "w/o gate"; a tau to be fitted is fitted on validation pages.

    Their histories are whole, as those of rollouts are: gates do not cut them.
    """
    values = read_block(block, key="gate")
    if values is None:
        return None
    provided = {"catalog": catalog, "examples": dataset.examples("valid", max_history=None)}
    return load_component(values, expected=Gate, key="gate", provided=provided, trusted_packages=trusted_packages)
