"""Policies on disk as systems to evaluate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from genrec_rl.data.store import Dataset, load_dataset
from genrec_rl.decoding.beam_search import BeamPlan, Normalisation
from genrec_rl.decoding.expected_value import ValueReranker
from genrec_rl.decoding.recommender import BeamRecommender
from genrec_rl.decoding.rerank import Reranker, check_weight
from genrec_rl.errors import ConfigError
from genrec_rl.evaluation.evaluate import DECODINGS, System
from genrec_rl.models.policy import load_policy, read_facts
from genrec_rl.rewards.protocol import RewardModel
from genrec_rl.sids.catalog import Catalog
from genrec_rl.tracking import require_stage


def parse_policies(words: Sequence[str]) -> dict[str, Path]:
    """Read ``name=DIR`` words, and check that each folder may hold a policy before any work starts.

    Raises:
        ConfigError: for a word of another form, a name given twice, or a folder without a policy.
    """
    policies: dict[str, Path] = {}
    for word in words:
        name, equals, folder = word.partition("=")
        if not (name and equals and folder):
            raise ConfigError(f"policies: '{word}' is not name=DIR; write --policies sft=runs/demo/sft")
        if name in policies:
            raise ConfigError(f"policies: the name '{name}' stands twice; give each policy its own")
        if not (Path(folder) / "config.json").is_file():
            raise ConfigError(
                f"policies: no policy in '{folder}'; make it with `accelerate launch recipes/sft.py "
                f"--output_dir {folder}`, or recipes/grpo_sr.py for an aligned one"
            )
        policies[name] = Path(folder)
    return policies


def open_catalogue(data_dir: str | Path, sid_dir: str | Path) -> tuple[Dataset, Catalog]:
    """Load prepared data and the semantic ids of its items.

    Raises:
        ConfigError: when a stage is not finished.
        DataError: when the ids are of other items.
    """
    dataset = load_dataset(require_stage(data_dir, stage="prepare", command="python recipes/prepare.py"))
    catalog = Catalog.load(require_stage(sid_dir, stage="build_sids", command="python recipes/build_sids.py"))
    catalog.check_items(dataset.items_fingerprint)
    return dataset, catalog


@dataclass(frozen=True, slots=True)
class BeamOptions:
    """How policies are decoded; see ``BeamRecommender``."""

    batch_size: int = 64
    beam_widths: tuple[int, ...] | None = None
    normalisation: Normalisation | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    continue_page: bool = False
    sample_seed: int | None = None
    per_beam: int | None = None
    exclude_seen: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"dtype '{self.dtype}' is not one of float32, bfloat16")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}, at least 1 is needed")
        widths = (1,) if self.beam_widths is None else self.beam_widths
        if not all(isinstance(width, int) for width in widths):
            raise ConfigError(f"beam_widths {list(widths)} are not whole numbers")
        BeamPlan(widths, self.normalisation or "vocabulary", self.per_beam)
        if self.per_beam is not None and self.sample_seed is not None:
            raise ConfigError(
                f"per_beam {self.per_beam}: a cut of each beam's continuations is no sample; leave it out"
            )

    def check(self, *, beams: int, n_levels: int) -> None:
        """Refuse widths that do not fit the catalogue's levels or the number of answers.

        Raises:
            ConfigError: naming both.
        """
        if self.beam_widths and (len(self.beam_widths) != n_levels or self.beam_widths[-1] != beams):
            raise ConfigError(
                f"beam_widths {list(self.beam_widths)} must be {n_levels} numbers, one a SID level, and end with "
                f"{beams} (beams)"
            )

    def describe(self, beams: int, folders: Mapping[str, Path]) -> str:
        """Return the choices in words, for the protocol, with what each policy's probabilities are over."""
        if not folders:
            return "no policies"
        widths = self.beam_widths or (beams,)
        beams_by_level = ", ".join(map(str, widths))
        over = {
            "vocabulary": "the whole vocabulary",
            "level": "a level's codes",
            "children": "codes of real items",
        }
        names: dict[str, list[str]] = {}
        for name, folder in folders.items():
            names.setdefault(over[self.normalisation or trained_over(folder)], []).append(name)
        over_what = " and ".join(f"{what} ({', '.join(policies)})" for what, policies in names.items())
        page = "; the request's own day begins the answer" if self.continue_page else ""
        drawn = "" if self.sample_seed is None else f"; drawn with seed {self.sample_seed}, not the best"
        own = "" if self.per_beam is None else f", {self.per_beam} of a beam's own"
        return f"beam widths {beams_by_level}{own}; probabilities over {over_what}; {self.dtype}{page}{drawn}"


def policy_systems(folders: Mapping[str, Path], catalog: Catalog, options: BeamOptions) -> list[System]:
    """Return systems that load their policy when they are asked, and decode with and without constraint.

    A policy whose softmax is over real items never learnt which codes exist: it is asked constrained only.
    """
    return [
        System(
            name,
            partial(load_recommender, folder, catalog=catalog, options=options),
            DECODINGS if trained_over(folder) == "vocabulary" else ("constrained",),
        )
        for name, folder in folders.items()
    ]


def reranked_systems(systems: Sequence[System], reward_model: RewardModel, *, weight: float) -> list[System]:
    """Return each system once more, what it proposes re-ranked by a reward model: ``<name>_reranked``.

    Raises:
        ConfigError: for a weight below 0.
    """
    check_weight(weight)

    def load(system: System) -> Reranker:
        return Reranker(system.load(), reward_model, weight=weight)

    return [System(f"{system.name}_reranked", partial(load, system), ("constrained",)) for system in systems]


def valued_systems(folders: Mapping[str, Path], systems: Sequence[System], *, weight: float) -> list[System]:
    """Return each policy with value tokens once more, its beams re-ranked by expected value: ``<name>_valued``.

    Raises:
        ConfigError: for a weight below 0, or where no policy has value tokens.
    """
    check_weight(weight)
    chosen = [system for system in systems if read_facts(folders[system.name]).get("value_means")]
    if not chosen:
        raise ConfigError(
            "rerank_value: no policy has value tokens; train one with `recipes/sft.py --n_value_buckets 32`"
        )

    def load(system: System) -> ValueReranker:
        recommender = system.load()
        assert isinstance(recommender, BeamRecommender)
        return ValueReranker(recommender, weight=weight)

    return [System(f"{system.name}_valued", partial(load, system), ("constrained",)) for system in chosen]


def trained_over(folder: Path) -> Normalisation:
    """Return what the probabilities of the policy in a folder are learnt over, without loading it."""
    found: Normalisation = read_facts(folder).get("softmax", "vocabulary")
    return found


def load_recommender(folder: Path, *, catalog: Catalog, options: BeamOptions) -> BeamRecommender:
    """Load one policy behind its beam search, on the accelerator where there is one."""
    policy = load_policy(folder, catalog=catalog)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    policy.model.to(device, getattr(torch, options.dtype))
    return BeamRecommender(
        policy,
        catalog=catalog,
        batch_size=options.batch_size,
        beam_widths=options.beam_widths,
        normalisation=options.normalisation,
        continue_page=options.continue_page,
        sample_seed=options.sample_seed,
        per_beam=options.per_beam,
        exclude_seen=options.exclude_seen,
    )
