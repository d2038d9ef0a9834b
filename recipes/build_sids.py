"""Stage 2: give every item a semantic id.

    python recipes/build_sids.py --data_dir runs/demo/data --output_dir runs/demo/sids
    python recipes/build_sids.py --codebook_sizes 256 256 256 --collision extra_code --collaborative false
    python recipes/build_sids.py --multi_resolution true --last_level hash --hash_fields seller campaign

Reads   items.parquet (text, or an `embedding` column) and, for the co-click fine-tuning, the training pages.
Writes  catalog.json, catalog.parquet (item_id, codes), centroids.safetensors, vectors.npy; projection.safetensors
        (for the vectors of new items); sid_report.json; codebooks.png; metrics.jsonl; features/ (encoded texts).
Watch   distinct SIDs = items, every code used, and a perplexity close to the number of codes; with a hash level Col,
        the share of items that share a SID with another.
"""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from genrec_rl.config import parse_recipe, read_block
from genrec_rl.data.store import Dataset, load_dataset
from genrec_rl.errors import ConfigError
from genrec_rl.sids.catalog import Catalog
from genrec_rl.sids.collaborative import CollaborativeSettings, Pairs, ResidualProjection, co_clicks, fine_tune
from genrec_rl.sids.features import item_vectors
from genrec_rl.sids.index_file import read_index
from genrec_rl.sids.plots import plot_codebooks
from genrec_rl.sids.quality import SidReport
from genrec_rl.sids.quantise import QuantiserSettings, quantise
from genrec_rl.sids.swing import swing_pairs
from genrec_rl.tracking import PROJECT, STAGE_FILE, Tracker, console, finish_stage, require_stage, run_recipe


@dataclass
class Settings:
    """What is read and written, and how items become vectors; how these become codes is ``QuantiserSettings``'s."""

    data_dir: str = field(default="runs/demo/data", metadata={"help": "prepared data"})
    output_dir: str = field(default="runs/demo/sids", metadata={"help": "folder to write"})
    encoder: dict[str, Any] | str | None = field(
        default="wordllama", metadata={"help": "wordllama | minilm | {class_path, init_args} (YAML)"}
    )
    text_template: str | None = field(
        default=None, metadata={"help": "such as '{title} {category}'; none: title, and category where given"}
    )
    form_templates: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "text_template by value of a column 'form': {live: '{host} {region}'} (YAML)"},
    )
    trusted_packages: list[str] = field(
        default_factory=list, metadata={"help": "packages besides ours that an encoder may come from"}
    )
    collaborative: bool = field(default=True, metadata={"help": "fine-tune the vectors on co-clicked pairs"})
    codes_from: str | None = field(
        default=None, metadata={"help": "take published SIDs from LETTER's index.json instead (to measure only)"}
    )
    codes_id_offset: int = field(default=-1, metadata={"help": "what that file adds to an item id"})
    seed: int = field(default=0, metadata={"help": "of the projection and of k-means"})
    wandb_project: str = field(default=PROJECT, metadata={"help": "W&B project"})


def make_pairs(dataset: Dataset, settings: Settings, collaborative: CollaborativeSettings) -> Pairs:
    """Find the pairs that the vectors are fine-tuned on."""
    if collaborative.pairs == "pages":
        return co_clicks(dataset.pages, dataset.split.train)
    return swing_pairs(
        dataset.pages,
        dataset.split.train,
        n_items=dataset.n_items,
        alpha=collaborative.swing_alpha,
        max_users=collaborative.swing_users,
        n_partners=collaborative.swing_partners,
        seed=settings.seed,
    )


def make_vectors(
    dataset: Dataset, settings: Settings, collaborative: CollaborativeSettings, tracker: Tracker
) -> tuple[np.ndarray, ResidualProjection | None]:
    """Encode the items' text and, if wanted, fine-tune the vectors on co-clicked pairs."""
    vectors = item_vectors(
        dataset.items,
        encoder=settings.encoder or "wordllama",
        template=settings.text_template,
        form_templates=read_block(settings.form_templates, key="form_templates"),
        cache_dir=Path(settings.output_dir) / "features",
        trusted_packages=settings.trusted_packages,
    )
    if not settings.collaborative:
        return vectors, None
    pairs = make_pairs(dataset, settings, collaborative)
    projection, losses = fine_tune(vectors, pairs, settings=collaborative, seed=settings.seed)
    for epoch, loss in enumerate(losses, start=1):
        tracker.log({"co_click/loss": loss}, step=epoch)
    return projection.apply_to(vectors), projection


def make_catalog(
    dataset: Dataset, vectors: np.ndarray, settings: Settings, quantiser: QuantiserSettings
) -> tuple[Catalog, SidReport]:
    """Quantise the vectors, or take published codes."""
    if settings.codes_from is None:
        sizes = quantiser.sizes(vectors)
        with console.status(f"residual k-means, {' x '.join(map(str, sizes))} codes"):
            return quantise(
                vectors, dataset.items, settings=quantiser, popularity=dataset.popularity, seed=settings.seed
            )
    codes, sizes = read_index(settings.codes_from, dataset.item_ids, id_offset=settings.codes_id_offset)
    known = {"item_ids": np.array(dataset.item_ids), "popularity": dataset.popularity}
    return Catalog.from_codes(codes, codebook_sizes=sizes, vectors=vectors, **known)


def main(argv: list[str] | None = None) -> None:
    settings, collaborative, quantiser = parse_recipe(
        [Settings, CollaborativeSettings, QuantiserSettings], __file__, argv
    )
    if settings.codes_from and quantiser.last_level == "hash":
        raise ConfigError(f"codes_from {settings.codes_from}: published codes get no hash; leave one of the two out")
    started = time.monotonic()
    dataset = load_dataset(require_stage(settings.data_dir, stage="prepare", command="python recipes/prepare.py"))
    config = asdict(settings) | asdict(collaborative) | asdict(quantiser)
    output_dir = Path(settings.output_dir)
    with Tracker(output_dir, job_type="build_sids", config=config, project=settings.wandb_project) as tracker:
        vectors, projection = make_vectors(dataset, settings, collaborative, tracker)
        catalog, report = make_catalog(dataset, vectors, settings, quantiser)
        tracker.log({f"sids/{name}": value for name, value in report.numbers().items()})
    for name in (STAGE_FILE, "projection.safetensors"):
        (output_dir / name).unlink(missing_ok=True)
    catalog.save(output_dir)
    if projection is not None:
        projection.save(output_dir / "projection.safetensors")
    report.save(output_dir / "sid_report.json")
    plot_codebooks(catalog.codes, catalog.codebook_sizes, output_dir / "codebooks.png")
    seconds = time.monotonic() - started
    finish_stage(output_dir, stage="build_sids", settings=config, inputs={"data": settings.data_dir}, seconds=seconds)
    console.print(report.table())
    console.print(f"catalogue in {output_dir}, made in {seconds:.0f} s", markup=False)


if __name__ == "__main__":
    run_recipe(main)
