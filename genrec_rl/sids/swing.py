"""Pairs of items by Swing weight, and the multi-positive loss that GR4AD fine-tunes item vectors with.

    w(i,j) = sum over users u < v in U_i and U_j of  a_u a_v / (alpha + |I_u and I_v|),    a_u = 1 / sqrt(|I_u|)

U_i are the users that clicked or ordered item i on training pages, I_u the items of user u (METHODS section 1.1). Two
users that share little but both took i and j say more than two that share everything.

Axes: n items, u users, B items of a batch, D dimensions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from scipy.sparse import coo_matrix, csr_matrix
from torch import Tensor

from genrec_rl.data.pages import PageTable
from genrec_rl.errors import DataError
from genrec_rl.types import Action


@dataclass(frozen=True, slots=True, eq=False)
class SwingPairs:
    """Swing weights (n, n), symmetric, without a diagonal; an item's partners are those with a weight above 0."""

    weights: csr_matrix

    @property
    def n_pairs(self) -> int:
        """As many pairs as weights."""
        return int(self.weights.nnz)

    def sample(self, n_pairs: int, rng: np.random.Generator) -> Int64[np.ndarray, "B 2"]:
        """Draw pairs: an item that has a partner, uniformly, then one of its partners by weight."""
        begins, running = self.weights.indptr, np.concatenate([[0], np.cumsum(self.weights.data)])
        anchors = rng.choice(np.flatnonzero(np.diff(begins)), n_pairs)
        low, high = running[begins[anchors]], running[begins[anchors + 1]]
        places = np.searchsorted(running, low + rng.random(n_pairs) * (high - low), "right") - 1
        places = np.clip(places, begins[anchors], begins[anchors + 1] - 1)
        return np.column_stack([anchors, self.weights.indices[places]]).astype(np.int64)

    def relation(self, n_items: int) -> csr_matrix:
        """Return the (n, n) relation "partners"; the weights are of all items, so n must be theirs."""
        return self.weights[:n_items, :n_items] > 0

    def batch_loss(
        self,
        vectors_of: Callable[[Int64[np.ndarray, " B"]], Float[Tensor, "B D"]],
        relation: csr_matrix,
        *,
        batch_size: int,
        temperature: float,
        rng: np.random.Generator,
    ) -> Float[Tensor, ""]:
        """Return ``multi_positive_info_nce`` of the items of ``batch_size`` drawn pairs, each item once."""
        items = np.unique(self.sample(batch_size, rng))
        is_partner_BB = torch.from_numpy(relation[items][:, items].toarray())
        return multi_positive_info_nce(vectors_of(items), is_partner_BB=is_partner_BB, temperature=temperature)


def multi_positive_info_nce(
    vectors_BD: Float[Tensor, "B D"], *, is_partner_BB: Bool[Tensor, "B B"], temperature: float
) -> Float[Tensor, ""]:
    """Mean over items with a partner in the batch of GR4AD's contrastive loss (METHODS section 1.1).

        L_NCE(i) = -log [ sum_{j in P_i} exp(z_i.z_j / tau) / sum_{k != i} exp(z_i.z_k / tau) ]

    Args:
        vectors_BD: unit vectors z of distinct items.
        is_partner_BB: whether j is in P_i; at least one is.
        temperature: tau.
    """
    diagonal = torch.eye(len(vectors_BD), dtype=torch.bool, device=vectors_BD.device)
    logits = (vectors_BD @ vectors_BD.T / temperature).masked_fill(diagonal, float("-inf"))
    is_partner_BB = is_partner_BB & ~diagonal
    has_partner_B = is_partner_BB.any(1)
    all_B = logits[has_partner_B].logsumexp(1)
    partners_B = logits[has_partner_B].masked_fill(~is_partner_BB[has_partner_B], float("-inf")).logsumexp(1)
    return (all_B - partners_B).mean()


def swing_pairs(
    pages: PageTable,
    train: Int[np.ndarray, " T"],
    *,
    n_items: int,
    alpha: float,
    max_users: int,
    n_partners: int,
    seed: int,
) -> SwingPairs:
    """Weigh the items of the training pages, and keep each item's best partners.

    Args:
        pages: all pages.
        train: the training ones.
        n_items: catalogue rows.
        alpha: of the equation.
        max_users: of an item with more, so many are drawn and the others' part in it is forgotten (METHODS caps
            |U_i| at about 500): work grows with its square, item by item.
        n_partners: largest weights of an item that stay; the smaller one's choice counts for both.
        seed: of that draw.

    Raises:
        DataError: when no two users share two items.
    """
    taken = capped(_taken(pages, train, n_items=n_items), max_users=max_users, rng=np.random.default_rng(seed))
    weights = swing_weights(taken, alpha=alpha)
    if not weights.nnz:
        raise DataError(
            "no two users clicked or ordered the same two items on training pages, so Swing has no pairs; use "
            "`pairs: pages` or `collaborative: false`"
        )
    best = largest_of_rows(weights, n_partners)
    return SwingPairs(best.maximum(best.T).tocsr())


def swing_weights(taken: csr_matrix, *, alpha: float) -> csr_matrix:
    """Return w(i,j) of a (users, items) matrix of ones, (n, n) without its diagonal."""
    columns, n_items = taken.tocsc(), taken.shape[1]
    scale = np.asarray(taken.sum(axis=1)).ravel().clip(min=1) ** -0.5
    rows, partners, values = [], [], []
    for item in range(n_items):
        users = columns.indices[columns.indptr[item] : columns.indptr[item + 1]]
        if len(users) < 2:
            continue
        theirs = taken[users]
        shared = (theirs @ theirs.T).toarray()
        pair_weights = np.triu(np.outer(scale[users], scale[users]) / (alpha + shared), k=1)
        touched = np.unique(theirs.indices)
        dense = theirs[:, touched].toarray()
        weight = ((pair_weights @ dense) * dense).sum(axis=0)
        is_partner = (weight > 0) & (touched != item)
        rows.append(np.full(is_partner.sum(), item))
        partners.append(touched[is_partner])
        values.append(weight[is_partner])
    if not rows:
        return csr_matrix((n_items, n_items))
    places = (np.concatenate(rows), np.concatenate(partners))
    return coo_matrix((np.concatenate(values), places), shape=(n_items, n_items)).tocsr()


def capped(taken: csr_matrix, *, max_users: int, rng: np.random.Generator) -> csr_matrix:
    """Keep at most ``max_users`` users of each item, drawn uniformly."""
    pairs = taken.tocoo()
    order = np.lexsort((rng.random(pairs.nnz), pairs.col))
    counts = np.bincount(pairs.col, minlength=taken.shape[1])
    place = np.arange(pairs.nnz) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = np.sort(order[place < max_users])
    return csr_matrix((pairs.data[kept], (pairs.row[kept], pairs.col[kept])), shape=taken.shape)


def largest_of_rows(weights: csr_matrix, n: int) -> csr_matrix:
    """Keep the ``n`` largest values of each row; of equal ones the lower columns."""
    found = weights.tocoo()
    order = np.lexsort((found.col, -found.data, found.row))
    counts = np.bincount(found.row, minlength=weights.shape[0])
    place = np.arange(found.nnz) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = order[place < n]
    return csr_matrix((found.data[kept], (found.row[kept], found.col[kept])), shape=weights.shape)


def _taken(pages: PageTable, train: Int[np.ndarray, " T"], *, n_items: int) -> csr_matrix:
    """Return which user clicked or ordered which item on training pages, as ones (users, items)."""
    in_train = np.zeros(len(pages), bool)
    in_train[train] = True
    page_of = np.repeat(np.arange(len(pages)), np.diff(pages.item_offsets))
    is_kept = in_train[page_of] & (pages.actions >= Action.CLICK)
    _, user_of_page = np.unique(pages.user_ids, return_inverse=True)
    users, items = user_of_page[page_of[is_kept]], pages.items[is_kept].astype(np.int64)
    shape = (int(user_of_page.max(initial=-1)) + 1, n_items)
    taken = csr_matrix((np.ones(len(items)), (users, items)), shape=shape)
    taken.data[:] = 1
    return taken
