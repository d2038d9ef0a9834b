"""TIGER: a T5 encoder reads the history's semantic ids, a T5 decoder writes the next item's.

Paper: Rajput et al. 2023 (arXiv:2305.05065). Where we leave it: no token for the user, sizes that a
CPU can train, a history of at most ``max_history`` items, and beams held to the catalogue by its trie.

    B   batch        T   history items        L   SID levels        W   beams        V   tokens
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from benchmarks.baselines.next_item import in_order, use_cheap_dropout
from benchmarks.baselines.sequences import (
    Batch,
    Sequences,
    by_length,
    context_batch,
    gather,
    shuffled_batches,
    training_sequences,
)
from benchmarks.baselines.training import Baseline, FitSettings, OnEpoch, fit
from genrec_rl.data.store import Dataset
from genrec_rl.errors import ConfigError
from genrec_rl.sids.catalog import Catalog
from genrec_rl.types import Context, Rollouts

START = 0
"""Token that the decoder begins with, and that pads the encoder, as in T5."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TigerSettings(FitSettings):
    """Sizes of the T5; ``layers`` in the encoder and as many in the decoder.

    The paper has 4 layers, 6 heads of 64 and a feed-forward of 1,024. Every target has a history of its own for
    the encoder to read, so that an epoch of Beauty takes one core 4 to 6 minutes with these smaller sizes.
    """

    d_model: int = 128
    layers: int = 2
    heads: int = 4
    d_kv: int = 32
    d_ff: int = 256
    dropout: float = 0.1
    requests_at_once: int = 64


DEFAULTS = TigerSettings(
    epochs=8,
    evaluate_every=2,
    patience=3,
    batch_size=256,
    learning_rate=3e-3,
    schedule="cosine",
    max_history=20,
    weight_decay=0.01,
    bf16=True,
)


class Tiger(Baseline):
    """T5 over SID tokens: token ``1 + offset of the level + code`` for each level of each item."""

    _tokens_NL: Tensor

    def __init__(self, sequences: Sequences, catalog: Catalog, settings: TigerSettings) -> None:
        n_targets = int(sequences.lengths.sum()) - len(sequences)
        super().__init__(settings, n_batches=-(-n_targets // settings.batch_size))
        self.settings: TigerSettings = settings
        self.catalog, self._sequences = catalog, sequences
        self._code_starts = [1, *(1 + np.cumsum(catalog.codebook_sizes)).tolist()]
        starts_L = torch.tensor(self._code_starts[:-1])
        tokens_NL = torch.from_numpy(catalog.codes.astype(np.int64)) + starts_L
        self.register_buffer("_tokens_NL", tokens_NL, persistent=False)
        # A target is each item of a sequence but its first; its history begins max_history items before it.
        starts_of_own = np.repeat(sequences.offsets[:-1], sequences.lengths)
        places = np.arange(len(sequences.items))
        self._targets = places[places > starts_of_own]
        self._begins = np.maximum(starts_of_own, places - settings.max_history)[self._targets]
        config = T5Config(
            vocab_size=self._code_starts[-1],
            d_model=settings.d_model,
            d_kv=settings.d_kv,
            d_ff=settings.d_ff,
            num_layers=settings.layers,
            num_decoder_layers=settings.layers,
            num_heads=settings.heads,
            dropout_rate=settings.dropout,
            pad_token_id=START,
            decoder_start_token_id=START,
            eos_token_id=None,
        )
        self.t5 = T5ForConditionalGeneration(config)
        use_cheap_dropout(self)

    def losses(self, rng: np.random.Generator) -> Iterator[Tensor]:
        """Yield the mean cross-entropy of the target's tokens over each batch."""
        targets, begins = self._targets, self._begins
        for chosen in shuffled_batches(targets - begins, batch_size=self.settings.batch_size, rng=rng):
            batch = gather(self._sequences, begins[chosen], targets[chosen]).to(self.device)
            labels_BL = self._tokens_NL[torch.from_numpy(self._sequences.items[targets[chosen]]).to(self.device)]
            input_ids, attention_mask = self._read(batch)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bf16):
                loss = self.t5(input_ids=input_ids, attention_mask=attention_mask, labels=labels_BL).loss
            yield loss

    @torch.inference_mode()
    def recommend(self, contexts: Sequence[Context], *, k: int, constrained: bool = True) -> Rollouts:
        """Return the k best beams of each context; all are SIDs of the catalogue.

        Raises:
            ConfigError: for beams without the constraint, or more of them than there are SIDs.
        """
        if not constrained:
            raise ConfigError("TIGER's beams are held to the catalogue; ask for constrained decoding")
        if k > self.catalog.trie.n_sids:
            raise ConfigError(f"{k} beams asked of {self.catalog.trie.n_sids} distinct SIDs; lower beams")
        groups = by_length(contexts, batch_size=self.settings.requests_at_once)
        max_history = self.settings.max_history
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bf16):
            parts = [
                self._search(context_batch([contexts[i] for i in group], max_history=max_history).to(self.device), k)
                for group in groups
            ]
        return in_order(parts, groups)

    def log_probs(self, batch: Batch, sids_BL: Int64[Tensor, "B L"]) -> Float[Tensor, " B"]:
        """Return the log-probability of one SID for each history: what the beams' scores are."""
        input_ids, attention_mask = self._read(batch)
        labels_BL = sids_BL + torch.tensor(self._code_starts[:-1], device=self.device)
        logits_BLV = self.t5(input_ids=input_ids, attention_mask=attention_mask, labels=labels_BL).logits
        return logits_BLV.float().log_softmax(2).gather(2, labels_BL.unsqueeze(2)).squeeze(2).sum(1)

    def _read(self, batch: Batch) -> tuple[Int64[Tensor, "B TL"], Int64[Tensor, "B TL"]]:
        """Return the histories' tokens, and which of them are real."""
        tokens_BTL = self._tokens_NL[batch.items_BT].masked_fill(~batch.is_item_BT.unsqueeze(2), START)
        mask_BTL = batch.is_item_BT.long().repeat_interleave(self.catalog.n_levels, dim=1)
        return tokens_BTL.flatten(1), mask_BTL

    def _search(self, batch: Batch, width: int) -> Rollouts:
        """Beam search over the trie; the encoder runs once, and only its keys and values are repeated."""
        trie, n_rows, device = self.catalog.trie, len(batch.items_BT), self.device
        input_ids, mask = self._read(batch)
        encoded = self.t5.encoder(input_ids=input_ids, attention_mask=mask).last_hidden_state
        nodes = torch.zeros(n_rows, 1, dtype=torch.long, device=device)
        scores = torch.zeros(n_rows, 1, device=device)
        sids = torch.zeros(n_rows, 1, 0, dtype=torch.long, device=device)
        tokens, cache = torch.full((n_rows, 1), START, device=device), None
        for level, start in enumerate(self._code_starts[:-1]):
            n_beams = nodes.shape[1]
            out = self.t5(
                encoder_outputs=(encoded,),
                attention_mask=mask,
                decoder_input_ids=tokens,
                past_key_values=cache,
                use_cache=True,
            )
            cache = out.past_key_values
            log_probs = out.logits[:, -1].float().log_softmax(1).unflatten(0, (n_rows, n_beams))
            best = trie.best_children(level, nodes, scores, log_probs, width=width, code_start=start)
            nodes, scores = best.nodes, best.scores
            of_parent = best.parents.unsqueeze(2).expand(-1, -1, level)
            sids = torch.cat([sids.gather(1, of_parent), best.codes.unsqueeze(2)], dim=2)
            tokens = (best.codes + start).view(-1, 1)
            parents = (torch.arange(n_rows, device=device).unsqueeze(1) * n_beams + best.parents).flatten()
            cache.self_attention_cache.reorder_cache(parents)
            # Beams of one request have equal keys and values of the encoder, in whatever order: copied as beams grow.
            if nodes.shape[1] != n_beams:
                cache.cross_attention_cache.reorder_cache(parents)
                encoded, mask = encoded[parents], mask[parents]
        sids = sids.cpu()
        return Rollouts(sids_PGL=sids, rows_PG=self.catalog.rows_of(sids), log_probs_PG=scores.cpu())


def fit_tiger(
    dataset: Dataset, catalog: Catalog, *, settings: TigerSettings, seed: int, on_epoch: OnEpoch = None
) -> Tiger:
    """Train TIGER on the training pages, stopped by the validation pages."""
    torch.manual_seed(seed)
    model = Tiger(training_sequences(dataset), catalog, settings)
    valid = dataset.examples("valid", max_history=settings.max_history)
    return fit(model, valid, seed=seed, on_epoch=on_epoch)
