"""Fine-tune item vectors so that items clicked together lie together.

OneRec's item-to-item loss (METHODS section 5, L_I2I) on a small build: frozen item vectors, a residual two-layer
projection, and pairs of items that one user clicked or ordered on the same or on neighbouring TRAINING pages.
``pairs: swing`` takes GR4AD's pairs and loss in their place (``sids/swing.py``).

Axes: N positives of the training pages, B pairs of a batch, n items, D dimensions.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, Protocol, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Int64
from rich.progress import track
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, normalize

from genrec_rl.config import nearest
from genrec_rl.data.pages import PageTable
from genrec_rl.errors import ConfigError, DataError
from genrec_rl.types import Action


@dataclass(frozen=True, slots=True)
class CollaborativeSettings:
    """How the vectors are fine-tuned; the defaults take seconds on MovieLens-100K."""

    epochs: int = field(default=3, metadata={"help": "passes over the positives of the training pages"})
    batch_size: int = field(default=256, metadata={"help": "pairs of a batch; the others are the negatives"})
    hidden: int = field(default=256, metadata={"help": "width of the projection"})
    temperature: float = field(default=0.1, metadata={"help": "tau of the contrastive loss"})
    learning_rate: float = field(default=3e-3, metadata={"help": "AdamW's"})
    pairs: Literal["pages", "swing"] = field(
        default="pages", metadata={"help": "same or neighbouring page, in-batch loss | Swing, multi-positive InfoNCE"}
    )
    swing_alpha: float = field(default=1.0, metadata={"help": "swing: added to the items that two users share"})
    swing_users: int = field(default=500, metadata={"help": "swing: users of an item that count, others by chance"})
    swing_partners: int = field(default=20, metadata={"help": "swing: partners of an item, those of largest weight"})

    def __post_init__(self) -> None:
        if self.pairs not in ("pages", "swing"):
            raise ConfigError(
                f"pairs '{self.pairs}' is none of pages, swing{nearest(self.pairs, ('pages', 'swing'))}"
            )
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.name != "pairs" and not value > 0:
                raise ConfigError(f"{setting.name} is {value}; co-click fine-tuning needs it above 0")


class Pairs(Protocol):
    """Pairs of items to learn from, and the loss that goes with them."""

    @property
    def n_pairs(self) -> int:
        """How many pairs an epoch draws."""
        ...

    def relation(self, n_items: int) -> csr_matrix:
        """Return the symmetric (n, n) relation that ``batch_loss`` wants to know of its items."""
        ...

    def batch_loss(
        self,
        vectors_of: Callable[[Int64[np.ndarray, " B"]], Float[Tensor, "B D"]],
        relation: csr_matrix,
        *,
        batch_size: int,
        temperature: float,
        rng: np.random.Generator,
    ) -> Float[Tensor, ""]:
        """Draw a batch of pairs and return its loss on the unit vectors that ``vectors_of`` gives to rows."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class CoClicks:
    """Positives of the training pages, end to end, users contiguous and their pages in time order.

    The partners of ``items[i]`` are the other places of ``items[low[i]:high[i]]``: its own page, the one before
    and the one after.
    """

    items: Int64[np.ndarray, " N"]
    low: Int64[np.ndarray, " N"]
    high: Int64[np.ndarray, " N"]

    @property
    def n_pairs(self) -> int:
        """As many pairs as positives."""
        return len(self.items)

    def batch_loss(
        self,
        vectors_of: Callable[[Int64[np.ndarray, " B"]], Float[Tensor, "B D"]],
        relation: csr_matrix,
        *,
        batch_size: int,
        temperature: float,
        rng: np.random.Generator,
    ) -> Float[Tensor, ""]:
        """Return ``symmetric_info_nce`` of drawn pairs."""
        anchors, partners = self.sample(batch_size, rng).T
        return symmetric_info_nce(
            vectors_of(anchors),
            vectors_of(partners),
            is_related_BB=torch.from_numpy(relation[anchors][:, partners].toarray()),
            temperature=temperature,
        )

    def sample(self, n_pairs: int, rng: np.random.Generator) -> Int64[np.ndarray, "B 2"]:
        """Draw pairs: a positive that has a partner, uniformly, then one of its partners, uniformly."""
        anchors = rng.choice(np.flatnonzero(self.high - self.low > 1), n_pairs)
        partners = self.low[anchors] + rng.integers(self.high[anchors] - self.low[anchors] - 1)
        partners += partners >= anchors
        return np.column_stack([self.items[anchors], self.items[partners]])

    def relation(self, n_items: int) -> csr_matrix:
        """Return the symmetric (n, n) relation "the same item, or partners somewhere"."""
        pairs = [np.column_stack([np.arange(n_items)] * 2)]
        for step in range(1, int((self.high - np.arange(len(self.items))).max(initial=0))):
            first = np.flatnonzero(np.arange(len(self.items)) + step < self.high)
            pairs.append(np.column_stack([self.items[first], self.items[first + step]]))
        rows, columns = np.concatenate(pairs).T
        relation = csr_matrix((np.ones(len(rows), bool), (rows, columns)), shape=(n_items, n_items))
        return relation + relation.T


def co_clicks(pages: PageTable, train: Int[np.ndarray, " T"]) -> CoClicks:
    """Collect the clicked and ordered items of the training pages, and who their partners are.

    Pages without a positive do not count as neighbours.

    Raises:
        DataError: when no two positives stand on the same or on neighbouring pages.
    """
    train = np.sort(train)
    train = train[pages.has_positive[train]]
    in_train = np.zeros(len(pages), bool)
    in_train[train] = True
    is_positive = pages.actions >= Action.CLICK
    items = pages.items[is_positive & np.repeat(in_train, np.diff(pages.item_offsets))].astype(np.int64)
    counts = pages.positives_per_page[train]
    ends = np.cumsum(counts)
    starts = ends - counts
    follows = np.concatenate([[False], pages.user_ids[train][1:] == pages.user_ids[train][:-1]])[: len(train)]
    is_followed = np.concatenate([follows[1:], [False]])[: len(train)]
    low = np.where(follows, np.roll(starts, 1), starts)
    high = np.where(is_followed, np.roll(ends, -1), ends)
    if not (high - low > 1).any():
        raise DataError(
            "no two positives stand on the same or on neighbouring training pages, so there are no co-clicked "
            "pairs; set `collaborative: false`"
        )
    return CoClicks(items=items, low=np.repeat(low, counts), high=np.repeat(high, counts))


class ResidualProjection(nn.Module):
    """z = normalise(x + W2 gelu(W1 x)); W2 starts at zero, so training starts from the vectors themselves."""

    def __init__(self, dim: int, hidden: int, *, seed: int = 0) -> None:
        super().__init__()
        self.inner = nn.Linear(dim, hidden)
        self.outer = nn.Linear(hidden, dim)
        generator = torch.Generator().manual_seed(seed)
        nn.init.xavier_uniform_(self.inner.weight, generator=generator)
        for parameter in (self.inner.bias, self.outer.weight, self.outer.bias):
            nn.init.zeros_(parameter)

    def forward(self, vectors: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Project vectors to unit vectors."""
        return normalize(vectors + self.outer(gelu(self.inner(vectors))), dim=-1)

    @torch.no_grad()
    def apply_to(self, vectors: Float32[np.ndarray, "n D"]) -> Float32[np.ndarray, "n D"]:
        """Project item vectors; those of new items must pass here before ``Catalog.assign``."""
        return self(torch.from_numpy(np.array(vectors, np.float32))).numpy()

    def save(self, path: str | Path) -> None:
        """Write the weights as safetensors."""
        save_file(self.state_dict(), path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what ``save`` wrote.

        Raises:
            DataError: when the file is missing or damaged.
        """
        try:
            weights = load_file(path)
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path} cannot be read ({error}); build the semantic ids again") from None
        hidden, dim = weights["inner.weight"].shape
        projection = cls(dim, hidden)
        projection.load_state_dict(weights)
        return projection


def symmetric_info_nce(
    anchors_BD: Float[Tensor, "B D"],
    partners_BD: Float[Tensor, "B D"],
    *,
    is_related_BB: Bool[Tensor, "B B"],
    temperature: float,
) -> Float[Tensor, ""]:
    """In-batch contrastive loss over both directions, false negatives left out (METHODS section 5, L_I2I).

    With s_ij = a_i . p_j / tau and N_i the pairs j != i whose p_j is not related to a_i:

        L = -1/(2B) sum_i [ log e^{s_ii} / (e^{s_ii} + sum_{j in N_i} e^{s_ij}) + the same with a and p exchanged ]

    Args:
        anchors_BD: unit vectors a.
        partners_BD: unit vectors p.
        is_related_BB: whether p_j is the item a_i itself or one of its partners; the diagonal is ignored.
        temperature: tau.
    """
    logits = anchors_BD @ partners_BD.T / temperature
    diagonal = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(is_related_BB & ~diagonal, float("-inf"))
    targets = torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2


def fine_tune(
    vectors: Float32[np.ndarray, "n D"],
    pairs: Pairs,
    *,
    settings: CollaborativeSettings,
    seed: int,
) -> tuple[ResidualProjection, list[float]]:
    """Train a projection of the vectors; also return the mean loss of each epoch, about ``pairs.n_pairs`` pairs.

    Raises:
        DataError: when the loss is not finite.
    """
    rng = np.random.default_rng(seed)
    relation = pairs.relation(len(vectors))
    source = torch.from_numpy(np.array(vectors, np.float32))
    projection = ResidualProjection(source.shape[1], settings.hidden, seed=seed)
    optimizer = torch.optim.AdamW(projection.parameters(), lr=settings.learning_rate)
    steps = max(1, round(pairs.n_pairs / settings.batch_size))
    losses: list[float] = []
    for step in track(range(settings.epochs * steps), "co-clicked pairs", transient=True):
        loss = pairs.batch_loss(
            lambda rows: projection(source[rows]),
            relation,
            batch_size=settings.batch_size,
            temperature=settings.temperature,
            rng=rng,
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if not np.isfinite(losses[-1]):
            raise DataError(f"the co-click loss is {losses[-1]} at step {step}; lower learning_rate")
    return projection, np.mean(np.reshape(losses, (settings.epochs, steps)), axis=1).tolist()
