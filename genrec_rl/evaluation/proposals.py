"""What a trained policy proposes for pages: the candidates that a reward model will be asked about in RL.

P   requests        G   proposals per request
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int

from genrec_rl.errors import ConfigError
from genrec_rl.evaluation.policies import BeamOptions, load_recommender
from genrec_rl.sids.catalog import Catalog
from genrec_rl.tracking import check_unseen_valid, require_stage
from genrec_rl.types import Example


@dataclass(frozen=True)
class ProposalSettings:
    """Which policy proposes, and how."""

    policy_dir: str | None = field(
        default=None, metadata={"help": "policy whose proposals are learnt and judged; none: exposed and drawn items"}
    )
    beams: int = field(default=50, metadata={"help": "proposals of a request"})
    continue_page: bool = field(
        default=False, metadata={"help": "the policy reads the request's own day as the beginning of its answer"}
    )
    exclude_seen: bool = field(
        default=False, metadata={"help": "the policy never proposes what the user has taken already"}
    )

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise ConfigError(f"beams {self.beams} must be at least 1")

    @property
    def inputs(self) -> dict[str, str]:
        """Folders that a stage with these settings reads, beside data and catalogue."""
        return {} if self.policy_dir is None else {"policy": self.policy_dir}


def propose(
    settings: ProposalSettings,
    parts: Sequence[Sequence[Example]],
    *,
    catalog: Catalog,
    made_from: Mapping[str, str],
) -> list[Int[np.ndarray, "P G"]]:
    """Return the catalogue rows of the policy's constrained beams, best first, for each part's pages.

    Args:
        settings: with a ``policy_dir``.
        parts: pages; their contexts should hold the whole history, which the policy cuts for itself.
        catalog: what the policy was trained with.
        made_from: folders that the policy must have been made from.

    Raises:
        ConfigError: when there is no such policy, it was made from other stages, or it learnt validation pages.
    """
    if settings.policy_dir is None:
        raise ConfigError("policy_dir is not set; recipes/sft.py makes a policy, then name its folder")
    policy_dir = require_stage(
        settings.policy_dir, stage="sft", command="accelerate launch recipes/sft.py", made_from=made_from
    )
    check_unseen_valid(policy_dir)
    options = BeamOptions(batch_size=128, continue_page=settings.continue_page, exclude_seen=settings.exclude_seen)
    recommender = load_recommender(policy_dir, catalog=catalog, options=options)
    contexts = [[example.context for example in part] for part in parts]
    return [recommender.recommend(part, k=settings.beams, constrained=True).rows_PG.numpy() for part in contexts]
