"""Reward models inside a reward model: copied into its folder, which so moves as one and is checked whole."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genrec_rl.config import load_component
from genrec_rl.errors import DataError
from genrec_rl.rewards.protocol import RewardModel


def describe_member(member: RewardModel, *, folder: str) -> dict[str, str]:
    """Return how a member that lies in a folder is found again."""
    cls = type(member)
    class_path = f"{cls.__module__}.{cls.__qualname__}"
    return {"class_path": class_path, "folder": folder, "fingerprint": member.fingerprint}


def save_member(member: RewardModel, root: Path, *, folder: str) -> list[str]:
    """Save a member below a folder; return the names of its files, relative to that."""
    member.save_pretrained(root / folder)
    return [str(path.relative_to(root)) for path in (root / folder).rglob("*") if path.is_file()]


def load_member(
    entry: Mapping[str, str], root: Path, *, provided: Mapping[str, Any], trusted_packages: Sequence[str]
) -> RewardModel:
    """Load a member by its description.

    Args:
        entry: what ``describe_member`` returned.
        root: the folder that holds the member's.
        provided: handed to the member's ``from_pretrained`` where it has a parameter of that name.
        trusted_packages: importable besides genrec_rl and reward_models.

    Raises:
        ConfigError: before anything of it loads, for a class of a foreign package.
        DataError: when its files are damaged, or another model lies there.
    """
    folder = root / entry["folder"]
    member: RewardModel = load_component(
        {"class_path": entry["class_path"], "init_args": {"path": str(folder)}},
        expected=RewardModel,
        key=str(folder),
        factory="from_pretrained",
        provided={**provided, "trusted_packages": trusted_packages},
        trusted_packages=trusted_packages,
    )
    if member.fingerprint != entry["fingerprint"]:
        raise DataError(
            f"{folder}: holds model {member.fingerprint[:12]}, not {entry['fingerprint'][:12]}; copy the folder again"
        )
    return member
