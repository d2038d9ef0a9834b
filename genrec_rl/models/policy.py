"""A policy: network, tokenizer, and the prompt writer that belongs to them; made once, checked at every load."""

import hashlib
import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Int
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2Config

from genrec_rl.data.values import ValueBuckets
from genrec_rl.errors import ConfigError, DataError
from genrec_rl.models.lazy import check_lazy_layers
from genrec_rl.models.prompts import PromptEncoder, PromptGrammar, pack_sids
from genrec_rl.models.qwen2 import GenRecQwen2Config, GenRecQwen2ForCausalLM
from genrec_rl.sids.catalog import Catalog
from genrec_rl.sids.vocab import SidVocab, build_tokenizer, extend_tokenizer, vocab_of

Softmax = Literal["vocabulary", "children"]


@dataclass(frozen=True, slots=True, eq=False)
class Policy:
    """What recommends: ``model`` scores tokens, ``prompts`` writes contexts in the language it was trained on.

    ``values`` says what the value tokens mean that it writes after an item; None where it has none.
    """

    model: GenRecQwen2ForCausalLM
    tokenizer: PreTrainedTokenizerBase
    vocab: SidVocab
    prompts: PromptEncoder
    values: ValueBuckets | None = None

    def save_pretrained(self, path: str | Path) -> None:
        """Write weights (safetensors), configuration and tokenizer into one folder."""
        self.model.save_pretrained(path)
        self.tokenizer.save_pretrained(path)


@dataclass(slots=True)
class BackboneSize:
    """Size of a backbone that is trained from scratch."""

    hidden_size: int = 128
    num_layers: int = 3
    num_heads: int = 4
    intermediate_size: int = 384

    def config(self) -> Qwen2Config:
        """Return the Qwen2 configuration of this size."""
        if self.hidden_size % (2 * self.num_heads):
            raise ConfigError(f"hidden_size {self.hidden_size} is not a multiple of twice num_heads {self.num_heads}")
        return Qwen2Config(
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_heads,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
        )


def create_policy(
    catalog: Catalog,
    *,
    grammar: PromptGrammar,
    backbone: str | Path | BackboneSize,
    embedding_dropout: float = 0.0,
    residual_dropout: float = 0.0,
    scale_embeddings: bool = False,
    item_embedding: bool = False,
    item_dropout: float = 0.0,
    softmax: Softmax = "vocabulary",
    values: ValueBuckets | None = None,
    lazy_layers: int | None = None,
    seed: int = 0,
) -> Policy:
    """Make an untrained policy for a catalogue.

    Weights are float32 whatever the checkpoint's type, as trained weights must be: in bfloat16 a small step is
    rounded away. Speed comes from autocast (``bf16: true``).

    Args:
        catalog: gives the SIDs and their codebook sizes.
        grammar: how prompts are written.
        backbone: a size, to start from scratch, or the folder of a Qwen2 or Qwen2.5 checkpoint, whose tokenizer
            gets the SID tokens.
        embedding_dropout: see ``GenRecQwen2Config``.
        residual_dropout: see ``GenRecQwen2Config``.
        scale_embeddings: multiply input vectors by the root of their width, see ``GenRecQwen2Config``.
        item_embedding: give each item of the catalogue a vector of its own in prompts; needs ``grammar.merge``.
        item_dropout: see ``GenRecQwen2Config``.
        softmax: see ``GenRecQwen2Config``; what it is trained and asked with.
        values: buckets that get a token each, to be written after an item; None for none.
        lazy_layers: layers below the previous code (LazyAR, ``models.lazy``); None for a plain policy.
        seed: of the new weights.
    """
    torch.manual_seed(seed)
    _check_choices(softmax, owns_vectors=item_embedding, merges=grammar.merge, values=values, lazy_layers=lazy_layers)
    packed = torch.from_numpy(np.unique(pack_sids(catalog.codes)))
    tells_days, n_values = grammar.separator == "day", 0 if values is None else len(values)
    tokenizer: PreTrainedTokenizerBase
    if isinstance(backbone, BackboneSize):
        tokenizer = build_tokenizer(catalog.codebook_sizes, tells_days=tells_days, n_values=n_values)
        base = backbone.config()
    else:
        base, tokenizer = _read_backbone(backbone, scales=scale_embeddings)
        extend_tokenizer(tokenizer, catalog.codebook_sizes, tells_days=tells_days, n_values=n_values)
    check_lazy_layers(lazy_layers, n_layers=base.num_hidden_layers, n_levels=len(catalog.codebook_sizes))
    is_lazy = lazy_layers is not None
    vocab = vocab_of(tokenizer, catalog.codebook_sizes)
    _check_values(vocab, values, where=f"backbone '{backbone}'")
    config = GenRecQwen2Config.from_dict(
        base.to_dict()
        | {"model_type": GenRecQwen2Config.model_type, "grammar": asdict(grammar)}
        | {"sid_codebook_sizes": list(vocab.codebook_sizes), "sid_token_start": vocab.sid_token_start}
        | {"lazy_layers": lazy_layers, "grammar_hash": grammar.digest(vocab, is_lazy=is_lazy)}
        | {"catalog_fingerprint": catalog.fingerprint}
        | {"embedding_dropout": embedding_dropout, "residual_dropout": residual_dropout}
        | {"embedding_scale": base.hidden_size**0.5 if scale_embeddings else 1.0}
        | {"n_known_items": len(packed) if item_embedding else 0, "item_dropout": item_dropout, "softmax": softmax}
        | ({} if values is None else {"value_edges": list(values.edges), "value_means": list(values.means)})
        | {"pad_token_id": vocab.pad_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    )
    model = _make_network(config, backbone, n_tokens=len(tokenizer))
    if item_embedding:
        model.model.item_embedding.know(packed)
    prompts = PromptEncoder(grammar, vocab, catalog.codes, is_lazy=is_lazy)
    return Policy(model, tokenizer, vocab, prompts, values)


def _check_choices(
    softmax: str, *, owns_vectors: bool, merges: bool, values: ValueBuckets | None, lazy_layers: int | None
) -> None:
    if softmax not in get_args(Softmax):
        raise ConfigError(f"softmax '{softmax}' is not one of {', '.join(get_args(Softmax))}")
    if owns_vectors and not merges:
        raise ConfigError("item_embedding stands beside an item's merged vector: it needs merge: true")
    if values is not None and lazy_layers is not None:
        raise ConfigError(
            "lazy_layers leave no place for the token of a value behind an item: set n_value_buckets 0 (values may "
            "still weigh answers), or lazy_layers 0"
        )


def _make_network(
    config: GenRecQwen2Config, backbone: str | Path | BackboneSize, *, n_tokens: int
) -> GenRecQwen2ForCausalLM:
    """Return a network of a size with new weights, or a checkpoint's with more rows where tokens were added."""
    if isinstance(backbone, BackboneSize):
        config.vocab_size = n_tokens
        return GenRecQwen2ForCausalLM(config)
    model = GenRecQwen2ForCausalLM.from_pretrained(backbone, config=config, dtype=torch.float32)
    if n_tokens > model.config.vocab_size:
        model.resize_token_embeddings(n_tokens, pad_to_multiple_of=64)
    return model


def _read_backbone(path: str | Path, *, scales: bool) -> tuple[Qwen2Config, PreTrainedTokenizerBase]:
    if scales:
        raise ConfigError(
            f"scale_embeddings with backbone '{path}': a checkpoint's input vectors have their scale; set it to false"
        )
    if not (Path(path) / "config.json").is_file():
        raise ConfigError(f"backbone '{path}' has no config.json; name the folder of a Qwen2 checkpoint")
    base = Qwen2Config.from_pretrained(path)
    if base.model_type != "qwen2":
        raise ConfigError(f"backbone '{path}' is a {base.model_type}; only qwen2 (Qwen2, Qwen2.5) is supported")
    if base.use_sliding_window:
        raise ConfigError(
            f"backbone '{path}' has use_sliding_window: branches see whole prompts only; set it to false"
        )
    return base, AutoTokenizer.from_pretrained(path)


def load_policy(path: str | Path, *, catalog: Catalog) -> Policy:
    """Load a policy and check that it speaks of this catalogue, in this grammar.

    A catalogue that extends the policy's own will do, with a warning: tokens and known items are the same, and new
    items, which training never named, are reached by their codes alone.

    Raises:
        ConfigError: when the folder holds no policy.
        DataError: when its weights are damaged, or its catalogue or grammar is another one.
    """
    folder = Path(path)
    facts = read_facts(folder)
    n_known = catalog.rows_known_to(facts["catalog_fingerprint"])
    if n_known is None:
        raise DataError(
            f"{folder}: trained on catalogue {facts['catalog_fingerprint'][:12]}, given {catalog.fingerprint[:12]}; "
            "pass the --sid_dir that the policy was trained with, or one that extends it, or train it again"
        )
    if n_known < catalog.n_items:
        warnings.warn(
            f"{folder}: trained before {catalog.n_items - n_known} of the catalogue's {catalog.n_items} items were "
            "added; it reaches them by their codes alone",
            stacklevel=2,
        )
    try:
        loaded: Any = GenRecQwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{folder}: the policy cannot be loaded ({error}); train or copy it again") from error
    model, info = loaded
    config = model.config
    if info["missing_keys"]:
        raise DataError(f"{folder}: weights are missing ({', '.join(sorted(info['missing_keys']))})")
    if config.n_known_items:
        _check_known(model.model.item_embedding.known, catalog, where=str(folder))
    vocab = vocab_of(tokenizer, catalog.codebook_sizes)
    grammar = PromptGrammar(**config.grammar)
    digest = grammar.digest(vocab, is_lazy=config.is_lazy)
    if config.grammar_hash != digest:
        raise DataError(
            f"{folder}: its prompt grammar {config.grammar_hash[:12]} differs from this version's "
            f"{digest[:12]}; use the genrec_rl that trained it, or train it again"
        )
    values = None
    if config.value_means is not None:
        values = ValueBuckets(tuple(config.value_edges or ()), tuple(config.value_means))
    _check_values(vocab, values, where=str(folder))
    prompts = PromptEncoder(grammar, vocab, catalog.codes, is_lazy=config.is_lazy)
    return Policy(model, tokenizer, vocab, prompts, values)


def _check_known(known_N: Int[Tensor, " N"], catalog: Catalog, *, where: str) -> None:
    """Refuse a policy whose item vectors belong to no items of the catalogue, and would never be read."""
    n_foreign = int((~torch.isin(known_N.cpu(), torch.from_numpy(pack_sids(catalog.codes)))).sum())
    if n_foreign:
        raise DataError(
            f"{where}: {n_foreign} of its {len(known_N)} item vectors are of no SID of the catalogue, as when all "
            "tensors were converted to another precision (item_embedding.known holds whole numbers); copy it again"
        )


def _check_values(vocab: SidVocab, values: ValueBuckets | None, *, where: str) -> None:
    n_tokens, n_buckets = len(vocab.value_tokens), 0 if values is None else len(values)
    if n_tokens != n_buckets:
        raise DataError(
            f"{where}: its tokenizer has {n_tokens} value tokens for {n_buckets} buckets of value; train the policy "
            "again from a backbone without value tokens"
        )


def fingerprint_policy(folder: str | Path) -> str:
    """Return the sha256 hex digest of a saved policy's configuration and weights."""
    digest = hashlib.sha256()
    for path in sorted([Path(folder) / "config.json", *Path(folder).glob("*.safetensors")]):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def read_facts(folder: Path) -> dict[str, Any]:
    """Return a policy's configuration as it was saved, without loading the policy.

    Raises:
        ConfigError: when the folder holds no policy.
        DataError: when its configuration is damaged.
    """
    if not (folder / "config.json").is_file():
        raise ConfigError(f"no policy in '{folder}': it has no config.json; recipes/sft.py makes one")
    try:
        facts: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{folder}/config.json is damaged ({error}); train or copy the policy again") from None
    if facts.get("model_type") != GenRecQwen2Config.model_type or not facts.get("grammar"):
        raise ConfigError(
            f"'{folder}' holds a {facts.get('model_type', 'config')} without a prompt grammar, no policy"
        )
    return facts
