"""A frozen SIM network, arranged for scoring: the user's side once per user, then O(k) behaviours per candidate.

The arithmetic is ``SIMNetwork``'s in another order. Matrices that meet are multiplied beforehand, so that of a
history only item vectors and gap buckets are needed: the keys of search and attention are folded into the candidate's
query, a gap embedding becomes one number per bucket, and the head's first layer is a sum over the parts of its input.
The user's description and the latest behaviours' values go through that layer once per user.

    P   users        G   candidates        R = P x G        K   behaviours that the search kept
    D   item dimension        W   gap buckets        Z   behaviour dimension = item + gap
    A   attention heads        F = A x D        Y = A x W        S   short behaviours        J = A x S
    H   width of the head's first layer        U   user's description        Q   groups of behaviours
    O   outputs: a click or order, and, where it is predicted, an order
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from genrec_rl.types import Context
from reward_models.sim.model import N_GAP_BUCKETS, Behaviours, ItemEncoder, SIMNetwork, TargetAttention
from reward_models.sim.search import latest_of_key, most_relevant
from reward_models.sim.user_side import Groups, UserSide, UserSideCache, cache_keys

_MAX_CELLS = 1 << 21
"""Numbers gathered at once, users x candidates x kept behaviours x dimensions: 8 MiB; more gains nothing."""


class FrozenItems:
    """Vectors of items, each encoded when it is first needed.

    Args:
        encoder: the trained encoder.
        dim: size of a vector.
    """

    def __init__(self, encoder: ItemEncoder, *, dim: int) -> None:
        n_items = len(encoder.codes)
        self._encoder = encoder
        self._vectors = torch.zeros(n_items, dim, device=encoder.codes.device)
        self._is_known = torch.zeros(n_items, dtype=torch.bool, device=encoder.codes.device)

    def learn(self, rows: Int[Tensor, "*S"]) -> None:
        """Encode what is not yet known."""
        new = rows[~self._is_known[rows]]
        if len(new):
            new = new.unique()
            self._vectors[new] = self._encoder.encode(new)
            self._is_known[new] = True

    def vectors(self, rows: Int[Tensor, "*S"]) -> Float[Tensor, "*S D"]:
        """Look up known items."""
        return functional.embedding(rows, self._vectors)

    def means(self, rows_N: Int[Tensor, " N"], lengths_P: Int[Tensor, " P"]) -> Float[Tensor, "P D"]:
        """Mean of each user's known items, which lie one user after the other; 0 for a user without."""
        return functional.embedding_bag(rows_N, self._vectors, lengths_P.cumsum(dim=0) - lengths_P, mode="mean")


class FrozenSIM:
    """Log-odds of a network whose weights no longer change, equal to the network's up to rounding.

    Args:
        network: the trained network.
        cache_bytes: bytes of users' sides kept from call to call; 0 keeps none.
    """

    @torch.inference_mode()
    def __init__(self, network: SIMNetwork, *, cache_bytes: int) -> None:
        self.config, self.device = network.config, network.search_keys.device
        self.cache = UserSideCache(cache_bytes)
        self._items = FrozenItems(network.items, dim=self.config.dim)
        # numbered from 0, as grouping needs them
        self._search_keys = network.search_keys.unique(return_inverse=True)[1]
        self._gaps_WD = network.gap_embedding.weight
        self._gsu_DD: Tensor | None = None
        if self.config.search == "soft":
            self._gsu_DD = network.gsu_candidate.weight.T @ network.gsu_behaviour.weight
        self._n_outputs = 1 + network.predicts_orders
        layers = [layer for layer in network.head if not isinstance(layer, nn.Dropout)]
        self._after_first = nn.Sequential(*layers[1:])
        self._fold_attention(network)
        self._fold_first_layer(next(layer for layer in layers if isinstance(layer, nn.Linear)))

    def _fold_attention(self, network: SIMNetwork) -> None:
        dim = self.config.dim
        query_ADZ = _query_of_behaviours(network.long_attention)
        self._query_DF = query_ADZ[..., :dim].transpose(0, 1).flatten(start_dim=1)
        self._gap_query_DY = (query_ADZ[..., dim:] @ self._gaps_WD.T).transpose(0, 1).flatten(start_dim=1)
        self._short_query_ADZ = _query_of_behaviours(network.short_attention)

    def _fold_first_layer(self, first: nn.Linear) -> None:
        dim, heads = self.config.dim, self.config.n_heads
        sizes = [2 * heads * dim, 2 * heads * dim, dim, dim + 1, dim]
        long_HX, short_HX, candidate_HD, user_HU, match_HD = first.weight.split(sizes, dim=1)
        long_AZH, short_AZH = (weight.T.unflatten(0, (heads, 2 * dim)) for weight in (long_HX, short_HX))
        self._long_values_FH = long_AZH[:, :dim].flatten(end_dim=1)
        self._gap_values_YH = (self._gaps_WD @ long_AZH[:, dim:]).flatten(end_dim=1)
        self._short_values_AZH = short_AZH.contiguous()
        self._candidate_and_match_H = torch.cat([candidate_HD, match_HD], dim=1).T.contiguous()
        self._user_UH, self._bias_H = user_HU.T, first.bias

    def logits(self, contexts: Sequence[Context], candidates: Int[np.ndarray, "P G"]) -> Float[Tensor, "P G"]:
        """Return log-odds of a click or order: the network's first output."""
        return self.all_logits(contexts, candidates)[..., 0]

    @torch.inference_mode()
    def all_logits(self, contexts: Sequence[Context], candidates: Int[np.ndarray, "P G"]) -> Float[Tensor, "P G O"]:
        """Return the log-odds of each output, as many users and candidates at a time as fit in ``_MAX_CELLS``."""
        rows_PG = torch.from_numpy(np.ascontiguousarray(candidates, dtype=np.int64)).to(self.device)
        self._items.learn(rows_PG)
        found_PGO = torch.empty(*rows_PG.shape, self._n_outputs, device=self.device)
        lengths_P = np.array([min(len(c.history), self.config.max_history) for c in contexts], dtype=np.int64)
        for users, width in self._batches(lengths_P, rows_PG.shape[1]):
            sides = self.user_sides([contexts[p] for p in users])
            places = self._tensor(users)
            parts = [self._score(sides, rows) for rows in rows_PG[places].split(width, dim=1)]
            found_PGO[places] = torch.cat(parts, dim=1)
        return found_PGO

    @torch.inference_mode()
    def user_sides(self, contexts: Sequence[Context]) -> list[UserSide]:
        """Return each user's side, from the cache where it is there."""
        behaviours = Behaviours.of(contexts, max_history=self.config.max_history)
        if not self.cache.limit:
            return self._encode(behaviours)
        keys = cache_keys(behaviours)
        known = {key: side for key in keys if (side := self.cache.get(key)) is not None}
        is_new_P = np.array([key not in known for key in keys])
        if is_new_P.any():
            new_keys = [key for key, is_new in zip(keys, is_new_P, strict=True) if is_new]
            for key, side in zip(new_keys, self._encode(behaviours.of_users(is_new_P)), strict=True):
                known[key] = side
                self.cache.keep(key, side)
        return [known[key] for key in keys]

    def _batches(
        self, lengths_P: Int[np.ndarray, " P"], n_candidates: int
    ) -> Iterator[tuple[Int[np.ndarray, " p"], int]]:
        """Yield users of similar history length, and how many candidates to score at once."""
        by_length = np.argsort(-lengths_P, kind="stable")
        while len(by_length):
            longest = max(1, int(lengths_P[by_length[0]]))
            per_candidate = max(longest, min(longest, self.config.top_k) * self.config.dim)
            width = max(1, min(n_candidates, _MAX_CELLS // per_candidate))
            size = max(1, _MAX_CELLS // max(width * per_candidate, longest * self.config.dim))
            yield by_length[:size], width
            by_length = by_length[size:]

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _encode(self, behaviours: Behaviours) -> list[UserSide]:
        lengths_P = behaviours.lengths_P
        rows_N = self._tensor(behaviours.rows_N)
        buckets_N = self._tensor(behaviours.gap_buckets_N.astype(np.int64))
        self._items.learn(rows_N)
        is_hard = self._gsu_DD is None
        keys_N = self._search_keys[rows_N].cpu().numpy() if is_hard else behaviours.rows_N
        groups = Groups.by(keys_N, lengths_P, n_keys=len(self._search_keys))
        group_keys, n_groups = self._tensor(groups.keys_Q), groups.n_groups_P.tolist()
        means_PD = self._items.means(rows_N, self._tensor(lengths_P))
        user_PU = torch.cat([means_PD, self._tensor(np.log1p(lengths_P, dtype=np.float32))[:, None]], dim=1)
        return [
            UserSide(*parts)
            for parts in zip(
                (group_keys if is_hard else self._items.vectors(group_keys)).split(n_groups),
                self._tensor(groups.sizes_Q).split(n_groups),
                (rows_N * N_GAP_BUCKETS + buckets_N)[self._tensor(groups.order_N)].split(lengths_P.tolist()),
                *self._short_sides(rows_N, buckets_N, lengths_P),
                means_PD,
                torch.addmm(self._bias_H, user_PU, self._user_UH),
                strict=True,
            )
        ]

    def _short_sides(
        self, rows_N: Int[Tensor, " N"], buckets_N: Int[Tensor, " N"], lengths_P: Int[np.ndarray, " P"]
    ) -> tuple[Float[Tensor, "P D J"], Float[Tensor, "P J H"]]:
        """Keys and values of each user's latest behaviours, padding in front."""
        n_short, n_users = self.config.n_short, len(lengths_P)
        slots_S = np.arange(-n_short, 0)
        is_real_PS = slots_S >= -lengths_P[:, None]
        latest = self._tensor((lengths_P.cumsum()[:, None] + slots_S)[is_real_PS])
        vectors = [self._items.vectors(rows_N[latest]), functional.embedding(buckets_N[latest], self._gaps_WD)]
        behaviours_XZ = torch.zeros(n_users * n_short, 2 * self.config.dim, device=self.device)
        behaviours_XZ[self._tensor(is_real_PS).flatten()] = torch.cat(vectors, dim=1)
        keys_ADPS = (self._short_query_ADZ @ behaviours_XZ.T).unflatten(2, (n_users, n_short))
        values_APSH = (behaviours_XZ @ self._short_values_AZH).unflatten(1, (n_users, n_short))
        return keys_ADPS.permute(2, 1, 0, 3).flatten(start_dim=2), values_APSH.transpose(0, 1).flatten(1, 2)

    def _score(self, sides: Sequence[UserSide], rows_PG: Int[Tensor, "P G"]) -> Float[Tensor, "P G O"]:
        candidates_PGD = self._items.vectors(rows_PG)
        matched_PGD = candidates_PGD * _stack([side.mean_D for side in sides])[:, None]
        first_RH = self._user_and_short_interest(sides, candidates_PGD).flatten(end_dim=1)
        inputs_PGX = torch.cat([candidates_PGD, matched_PGD], dim=2)
        first_RH.addmm_(inputs_PGX.flatten(end_dim=1), self._candidate_and_match_H)
        if any(len(side.behaviours_N) for side in sides):
            behaviours_RK, is_kept_RK = self._search(sides, rows_PG, candidates_PGD)
            self._add_long_interest(first_RH, candidates_PGD.flatten(end_dim=1), behaviours_RK, is_kept_RK)
        return self._after_first(first_RH).view(*rows_PG.shape, self._n_outputs)

    def _user_and_short_interest(
        self, sides: Sequence[UserSide], candidates_PGD: Float[Tensor, "P G D"]
    ) -> Float[Tensor, "P G H"]:
        scores_PGJ = candidates_PGD @ _stack([side.short_keys_DJ for side in sides])
        slots_S = torch.arange(-self.config.n_short, 0, device=self.device)
        lengths_P = self._tensor(np.array([len(side.behaviours_N) for side in sides]))
        is_real_PS = slots_S >= -lengths_P[:, None]
        attention_PGAS = _masked_softmax(
            scores_PGJ.unflatten(2, (self.config.n_heads, -1)), is_real_PS[:, None, None]
        )
        return torch.baddbmm(
            _stack([side.first_layer_H for side in sides])[:, None],
            attention_PGAS.flatten(start_dim=2),
            _stack([side.short_values_JH for side in sides]),
        )

    def _search(
        self, sides: Sequence[UserSide], rows_PG: Int[Tensor, "P G"], candidates_PGD: Float[Tensor, "P G D"]
    ) -> tuple[Int[Tensor, "R K"], Bool[Tensor, "R K"]]:
        """Return the behaviours that each candidate finds, row and bucket in one number, and which of them count."""
        width = min(self.config.top_k, max(len(side.behaviours_N) for side in sides))
        sizes_PQ = _stack([side.group_sizes_Q for side in sides])
        if self._gsu_DD is None:
            keys_PQ = _stack([side.group_keys for side in sides], padding=len(self._search_keys))
            places_PGK, is_kept_PGK = latest_of_key(self._search_keys[rows_PG], keys_PQ, sizes_PQ, top_k=width)
        else:
            vectors_PQD = _stack([side.group_keys for side in sides])
            relevance_PGQ = (candidates_PGD @ self._gsu_DD) @ vectors_PQD.transpose(1, 2)
            is_padding_PQ = sizes_PQ == 0
            if is_padding_PQ.any():
                relevance_PGQ.masked_fill_(is_padding_PQ[:, None], -torch.inf)
            places_PGK, is_kept_PGK = most_relevant(relevance_PGQ, sizes_PQ, top_k=width)
        behaviours_PN = _stack([side.behaviours_N for side in sides])
        found_PX = behaviours_PN.gather(1, places_PGK.flatten(start_dim=1))
        return found_PX.view(-1, width), is_kept_PGK.flatten(end_dim=1)

    def _add_long_interest(
        self,
        first_RH: Float[Tensor, "R H"],
        candidates_RD: Float[Tensor, "R D"],
        behaviours_RK: Int[Tensor, "R K"],
        is_kept_RK: Bool[Tensor, "R K"],
    ) -> None:
        heads = self.config.n_heads
        items_RKD = self._items.vectors(behaviours_RK // N_GAP_BUCKETS)
        buckets_RAK = (behaviours_RK % N_GAP_BUCKETS)[:, None].expand(-1, heads, -1)
        queries_RAD = (candidates_RD @ self._query_DF).unflatten(1, (heads, -1))
        gap_scores_RAW = (candidates_RD @ self._gap_query_DY).unflatten(1, (heads, -1))
        scores_RAK = torch.bmm(queries_RAD, items_RKD.transpose(1, 2)).add_(gap_scores_RAW.gather(2, buckets_RAK))
        attention_RAK = _masked_softmax(scores_RAK, is_kept_RK[:, None])
        by_bucket_RAW = torch.zeros_like(gap_scores_RAW).scatter_add_(2, buckets_RAK, attention_RAK)
        first_RH.addmm_(torch.bmm(attention_RAK, items_RKD).flatten(start_dim=1), self._long_values_FH)
        first_RH.addmm_(by_bucket_RAW.flatten(start_dim=1), self._gap_values_YH)


def predict_logits(
    network: SIMNetwork, contexts: Sequence[Context], candidates: Int[np.ndarray, "P G"]
) -> Float[Tensor, "P G"]:
    """Return the first log-odds of a network as it is now, which may be trained further: nothing is kept."""
    return predict_all_logits(network, contexts, candidates)[..., 0]


def predict_all_logits(
    network: SIMNetwork, contexts: Sequence[Context], candidates: Int[np.ndarray, "P G"]
) -> Float[Tensor, "P G O"]:
    """Return the log-odds of each of its outputs."""
    return FrozenSIM(network, cache_bytes=0).all_logits(contexts, candidates)


def _query_of_behaviours(attention: TargetAttention) -> Float[Tensor, "A D Z"]:
    """Per head W_a^T W_b / sqrt(head dimension): candidate^T (this) behaviour is the attention's score."""
    query_AXD = attention.query.weight.unflatten(0, (attention.n_heads, -1))
    key_AXZ = attention.key.weight.unflatten(0, (attention.n_heads, -1))
    return query_AXD.transpose(1, 2) @ key_AXZ / math.sqrt(key_AXZ.shape[1])


def _stack(tensors: Sequence[Tensor], *, padding: int = 0) -> Tensor:
    """Stack, the shorter ones padded behind; a single one is not copied."""
    if len(tensors) == 1:
        return tensors[0][None]
    if len({tensor.shape[0] for tensor in tensors}) == 1:
        return torch.stack(list(tensors))
    return pad_sequence(list(tensors), batch_first=True, padding_value=padding)


def _masked_softmax(scores: Float[Tensor, "*S N"], is_kept: Bool[Tensor, "*S N"]) -> Float[Tensor, "*S N"]:
    """Softmax over what is kept; 0 where nothing is. Overwrites the scores."""
    if is_kept.all():
        return scores.softmax(dim=-1)
    # the product turns the uniform softmax of an all-masked row into 0 and changes no other
    return scores.masked_fill_(~is_kept, torch.finfo(scores.dtype).min).softmax(dim=-1).mul_(is_kept)
