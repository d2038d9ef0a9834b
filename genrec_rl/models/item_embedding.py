"""A vector of an item's own beside its code vectors: what collaborative filtering knows and codes share."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import initialization

from genrec_rl.models.dropout import ByteDropout


class ItemEmbedding(nn.Module):
    """Looks up packed SIDs (see ``models.prompts``); an item that is not known adds nothing.

    The table is small against a decoder's other costs only for catalogues that fit into memory once per process:
    items x hidden_size floats. New items work, with their codes alone.
    """

    def __init__(self, n_known: int, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.known: Tensor
        self.register_buffer("known", torch.zeros(n_known, dtype=torch.long))
        self.vectors = nn.Embedding(n_known + 1, hidden_size, padding_idx=n_known)
        self.dropout = ByteDropout(dropout)

    def know(self, packed: Int[Tensor, " n"]) -> None:
        """Give each of these SIDs a vector."""
        initialization.copy_(self.known, packed.unique())

    def forward(self, packed_N: Int[Tensor, " N"]) -> Float[Tensor, "N H"]:
        """Return each item's vector, zeros for one that is not known."""
        places = torch.searchsorted(self.known, packed_N).clamp_(max=len(self.known) - 1)
        is_known = self.known[places] == packed_N
        return self.dropout(self.vectors(places.masked_fill(~is_known, len(self.known))))
