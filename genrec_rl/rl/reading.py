"""How RL reads a policy: prompts once, rollouts as branches, probabilities over what its softmax is over.

P prompts   S places of a prompt   G branches   C tokens of a branch   V vocabulary   U allowed tokens at most
"""

from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Bool, Int
from torch import Tensor

from genrec_rl.errors import RolloutError
from genrec_rl.models.policy import Policy
from genrec_rl.models.prefix_tree import BranchLogits, attached_logits, branch_logits
from genrec_rl.models.trunk import Trunk, read_trunk
from genrec_rl.sft.siblings import Siblings
from genrec_rl.sids.catalog import Catalog
from genrec_rl.types import NO_ITEM

LEAST_ROWS = 8
"""Prompts that a group of like length has at least."""


class Reader:
    """Reads networks of one policy's kind: the trained one, wrapped or not, and the start.

    Args:
        policy: its vocabulary, and what its softmax is over.
        catalog: of its items.
        accelerator: whose precision is read in.
        length_groups: groups of like length that prompts are read in; None is 8 on a CPU, 1 elsewhere.
    """

    def __init__(
        self, policy: Policy, catalog: Catalog, accelerator: Accelerator, *, length_groups: int | None
    ) -> None:
        self.vocab, self.catalog, self.accelerator = policy.vocab, catalog, accelerator
        self.length_groups = length_groups
        is_over_items = policy.model.config.softmax == "children"
        self._siblings = Siblings(catalog, policy.vocab) if is_over_items else None

    def trunk(self, model: Any, ids_PS: Int[Tensor, "P S"], is_prompt_PS: Bool[Tensor, "P S"]) -> Trunk:
        """Read prompts in groups of like length."""
        wanted = self.length_groups or (8 if ids_PS.device.type == "cpu" else 1)  # (not measured elsewhere)
        groups = min(wanted, max(len(ids_PS) // LEAST_ROWS, 1))
        with self.accelerator.autocast():
            return read_trunk(model, ids_PS, is_prompt_PS, length_groups=groups)

    def on_trunk(self, model: Any, trunk: Trunk, branches_PGC: Int[Tensor, "P G C"]) -> BranchLogits:
        """Return log-softmaxes along branches of prompts that were read; a token without siblings costs nothing."""
        allowed = self.allowed(branches_PGC)
        is_asked = None if allowed is None else allowed.sum(-1) > 1
        with self.accelerator.autocast():
            logits = attached_logits(model, trunk, branches_PGC, is_asked_BGC=is_asked)
        return logits.log_probs(allowed_BGCV=allowed)

    def in_one_forward(
        self,
        model: Any,
        ids_PS: Int[Tensor, "P S"],
        is_prompt_PS: Bool[Tensor, "P S"],
        branches_PGC: Int[Tensor, "P G C"],
    ) -> BranchLogits:
        """Return log-softmaxes along branches, prompts and branches read together."""
        with self.accelerator.autocast():
            logits = branch_logits(model, ids_PS, is_prompt_PS, branches_PGC)
        return logits.log_probs(allowed_BGCV=self.allowed(branches_PGC))

    def allowed(self, branches_PGC: Int[Tensor, "P G C"]) -> Bool[Tensor, "P G C U"] | None:
        """Return which tokens could stand in each branch token's place, for a softmax over real items.

        Raises:
            RolloutError: when a branch is no item.
        """
        if self._siblings is None:
            return None
        items = branches_PGC.cpu().unflatten(-1, (-1, self.vocab.n_levels))
        rows = self.catalog.rows_of(self.vocab.codes(items))
        if (rows == NO_ITEM).any():
            raise RolloutError(
                "a rollout is no item, and the policy's softmax is over items; set constrained_rollouts: true"
            )
        nodes = torch.from_numpy(self._siblings.nodes[rows.numpy()])
        return self._siblings.of(nodes.flatten()).view(*branches_PGC.shape, -1).to(branches_PGC.device)
