"""Token Merger: the L code vectors of a prompt item become one (GenRec, eq. 5)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import initialization


class TokenMerger(nn.Linear):
    """``h = Linear(Concat(e(s1), ..., e(sL)))``.

    A subclass of Linear, not a container: transformers initialises only modules that own parameters.
    """

    def __init__(self, n_levels: int, hidden_size: int) -> None:
        super().__init__(n_levels * hidden_size, hidden_size)
        self.n_levels = n_levels

    def forward(self, codes_NLH: Float[Tensor, "N L H"]) -> Float[Tensor, "N H"]:
        """Merge the code vectors of N items."""
        return super().forward(codes_NLH.flatten(1))

    def start_as_mean(self) -> None:
        """Begin as the mean of the L vectors, which a pre-trained backbone can already read."""
        identity = torch.eye(self.out_features, dtype=self.weight.dtype, device=self.weight.device)
        initialization.copy_(self.weight, identity.repeat(1, self.n_levels) / self.n_levels)
        initialization.zeros_(self.bias)
