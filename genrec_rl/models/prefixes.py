"""What the branches of a prompt begin with, each prefix once.

B prompts   G branches   W tokens of a branch   Q places: distinct prefixes   V vocabulary
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Prefixes:
    """The distinct prefixes of G branches of W places, Q a prompt: each is one place, read once for all branches.

    ``place_BGW`` says which place reads a branch's prefix; any, where nobody asks what follows it. ``line_BQW`` are,
    by depth, the places of what a prefix begins with and its own; what stands behind its own depth is any place.
    """

    tokens_BQ: Int[Tensor, "B Q"]
    depth_BQ: Int[Tensor, "B Q"]
    line_BQW: Int[Tensor, "B Q W"]
    place_BGW: Int[Tensor, "B G W"]

    @classmethod
    def of(cls, branches_BGW: Int[Tensor, "B G W"], is_asked_BGW: Bool[Tensor, "B G W"] | None = None) -> "Prefixes":
        """Find them.

        Args:
            branches_BGW: tokens.
            is_asked_BGW: False where nobody asks what follows a prefix: it has a place only if somebody does, or asks
                about a longer one that begins so. Without it all are asked about.
        """
        n_rows, n_branches, width = branches_BGW.shape
        same_BGGW = (branches_BGW[:, :, None] == branches_BGW[:, None]).cumprod(-1, dtype=torch.uint8)
        first_BGW = same_BGGW.argmax(2)  # (the first of the largest: the first branch that begins so)
        is_place = first_BGW == torch.arange(n_branches, device=branches_BGW.device)[:, None]
        if is_asked_BGW is not None:
            is_wanted_BGW = is_asked_BGW.flip(-1).cummax(-1).values.flip(-1)
            is_place &= (same_BGGW.bool() & is_wanted_BGW[:, None]).any(2)
        is_place_BN = is_place.flatten(1)
        number_BN = is_place_BN.cumsum(1) - 1
        steps_W = torch.arange(width, device=branches_BGW.device)
        place_BGW = number_BN.gather(1, (first_BGW * width + steps_W).flatten(1)).clamp(min=0).view_as(first_BGW)
        n_places = max(int(is_place_BN.sum(1).max()), 1)
        # Rows with fewer places repeat place 0 behind their own; no branch points there.
        chosen_BQ = torch.zeros(n_rows, n_places, dtype=torch.long, device=branches_BGW.device)
        rows, taken = is_place_BN.nonzero(as_tuple=True)
        chosen_BQ[rows, number_BN[rows, taken]] = taken
        line_BNW = place_BGW[:, :, None].expand(-1, -1, width, -1).flatten(1, 2)
        return cls(
            branches_BGW.flatten(1).gather(1, chosen_BQ),
            chosen_BQ % width,
            line_BNW.gather(1, chosen_BQ[..., None].expand(-1, -1, width)),
            place_BGW,
        )

    def spread(self, found_BQV: Float[Tensor, "B Q V"]) -> Float[Tensor, "B G W V"]:
        """Give every branch what was found at its prefixes."""
        n_rows, n_places, size = found_BQV.shape
        starts = torch.arange(n_rows, device=found_BQV.device)[:, None, None] * n_places
        index = (self.place_BGW + starts).flatten()
        return found_BQV.flatten(0, 1).index_select(0, index).view(*self.place_BGW.shape, size)
