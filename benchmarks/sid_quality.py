"""What do UA-SIDs tell apart that plain ones do not, and at what error (GR4AD's table of Cpr, Col and Util)?

    python benchmarks/sid_quality.py --input ../shared/data/amazon_beauty_2014
    python benchmarks/sid_quality.py --data synthetic

Reads   Amazon Beauty (--input) and a synthetic market with four copies of each item, made in memory.
Writes  --json FILE (benchmarks/results/sid_quality.json by default) and the table beside it as .md.

Vectors are title vectors (wordllama), not fine-tuned, the same for every row. The first rows leave collisions as
k-means made them, as GR4AD's comparison does; ``reassign`` is our default, which moves them. All rows of a data set
have as many SIDs to give. Fields of the hash: Beauty has no seller; ``attribute_ids`` (S3-Rec's category and brand
attributes) and, as the paper also names it, ``item_id``; the market has seller and campaign. ``twins`` are pairs of
items of equal vectors: how many agree in all semantic codes, and how many of those that differ in the fields have
different SIDs.
"""

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
import polars as pl

from benchmarks.harness import BenchmarkSettings, parse
from genrec_rl.data.sources.amazon import read_amazon
from genrec_rl.data.sources.synthetic import make_synthetic
from genrec_rl.sids.features import item_vectors
from genrec_rl.sids.quantise import QuantiserSettings, quantise
from genrec_rl.tracking import console, run_recipe, source_commit

FIELDS = {"beauty": (["attribute_ids"], ["item_id"]), "synthetic": (["seller", "campaign"], ["item_id"])}
PLAIN: dict[str, dict[str, Any]] = {
    "plain": {"collision": "bucket"},
    "multi-resolution": {"collision": "bucket", "multi_resolution": True},
    "multi-resolution, balanced": {"collision": "bucket", "multi_resolution": True, "balanced": True},
}
DEFAULT: dict[str, dict[str, Any]] = {"plain, reassign (default)": {}}
COLUMNS = ("cpr", "col", "util_per_mille", "error", "twins_together", "twins_told_apart")


@dataclass
class Settings(BenchmarkSettings):
    """Which data."""

    json: str | None = field(
        default="benchmarks/results/sid_quality.json", metadata={"help": "file for all numbers; its .md is the table"}
    )
    data: Literal["all", "beauty", "synthetic"] = field(default="all", metadata={"help": "all | beauty | synthetic"})
    input: str = field(default="../shared/data/amazon_beauty_2014", metadata={"help": "Amazon Beauty's folder"})
    items: int = field(default=12_000, metadata={"help": "items of the synthetic market"})
    copies: int = field(default=4, metadata={"help": "its copies of each item"})


def main() -> None:
    settings = parse(Settings)
    faiss.omp_set_num_threads(1)
    result: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "commit": source_commit(),
        "settings": asdict(settings),
        "data": {},
    }
    for name in ("beauty", "synthetic") if settings.data == "all" else (settings.data,):
        items = read_items(name, settings)
        vectors = item_vectors(items)
        result["data"][name] = {"items": len(items), "systems": {}}
        for system, chosen in systems_of(name).items():
            row = measure(items, vectors, QuantiserSettings(**chosen), seed=settings.seed)
            result["data"][name]["systems"][system] = row
            console.print(name, system, {column: row[column] for column in COLUMNS}, markup=False)
    if settings.json:
        Path(settings.json).write_text(json.dumps(result, indent=1) + "\n")
        Path(settings.json).with_suffix(".md").write_text(as_markdown(result))


def read_items(name: str, settings: Settings) -> pl.DataFrame:
    if name == "beauty":
        return read_amazon(settings.input).items
    sizes = {"n_users": 1, "n_items": settings.items, "n_requests": 1}
    return make_synthetic(**sizes, seed=settings.seed, copies=settings.copies).items


def systems_of(name: str) -> dict[str, dict[str, Any]]:
    hashed: dict[str, dict[str, Any]] = {}
    for fields in FIELDS[name]:
        for balanced in (False, True):
            system = f"UA-SID, hash of {' and '.join(fields)}" + ", balanced" * balanced
            hashed[system] = {"multi_resolution": True, "balanced": balanced}
            hashed[system] |= {"last_level": "hash", "hash_fields": fields}
    return PLAIN | hashed | DEFAULT


def measure(items: pl.DataFrame, vectors: np.ndarray, settings: QuantiserSettings, *, seed: int) -> dict[str, Any]:
    """Quantise, and return the report's numbers in the paper's units."""
    catalog, report = quantise(
        vectors, items, settings=settings, popularity=np.zeros(len(items), np.int64), seed=seed
    )
    return {
        "codebook_sizes": catalog.codebook_sizes,
        "cpr": report.cpr,
        "col": report.col_after,
        "util_per_mille": 1000 * report.util,
        "error": report.error_after,
        "largest_bucket": report.largest_bucket,
        "perplexity": [level.perplexity for level in report.levels],
        **twins(catalog.semantic_codes, catalog.codes, vectors, items),
    }


def twins(semantic: np.ndarray, codes: np.ndarray, vectors: np.ndarray, items: pl.DataFrame) -> dict[str, float]:
    """Shares of pairs of equal vectors with equal semantic codes; and, of pairs of other fields, with other SIDs."""
    _, content = np.unique(vectors.round(5), axis=0, return_inverse=True)
    order = np.argsort(content.ravel(), kind="stable")
    first, second = order[:-1], order[1:]
    is_twin = content.ravel()[first] == content.ravel()[second]
    first, second = first[is_twin], second[is_twin]
    fields = [name for name in ("seller", "campaign", "attribute_ids") if name in items.columns]
    keys = items.select(pl.struct(fields).rank("dense").alias("key"))["key"].to_numpy()
    is_other = keys[first] != keys[second]
    together = (semantic[first] == semantic[second]).all(axis=1)
    apart = (codes[first] != codes[second]).any(axis=1)
    return {
        "twin_pairs": len(first),
        "twins_together": float(together.mean()),
        "twins_told_apart": float(apart[is_other].mean()),
    }


def as_markdown(result: dict[str, Any]) -> str:
    lines = [
        f"Written by `{result['command']}`, commit {result['commit']}.",
        "",
        (__doc__ or "").split("\n\n")[-1].strip(),
    ]
    for name, data in result["data"].items():
        lines += ["", f"## {name}: {data['items']:,} items", ""]
        lines += ["| | codebooks | Cpr | Col | Util (per mille) | error | twins together | twins told apart |"]
        lines += ["|---|---|---|---|---|---|---|---|"]
        for system, row in data["systems"].items():
            sizes = " x ".join(map(str, row["codebook_sizes"]))
            lines.append(
                f"| {system} | {sizes} | {row['cpr']:.3f} | {row['col']:.2%} | {row['util_per_mille']:.3f} | "
                f"{row['error']:.4f} | {row['twins_together']:.1%} | {row['twins_told_apart']:.1%} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_recipe(main)
