"""Stage 2 once more: give SIDs to items that came after `build_sids`, for policies that are trained already.

    python recipes/extend_sids.py --sid_dir runs/demo/sids --data_dir runs/newer/data --output_dir runs/newer/sids

Reads   a catalogue, and newer data whose items.parquet begins with the catalogue's items, new ones behind them.
Writes  the longer catalogue and its report. No codebook is fitted, no known item moves: nearest residual centroids,
        then the collision policy or the hash level. Policies of the old catalogue load with the longer one; reward
        models, which score items by row, must be trained again.
Watch   the warning when a policy loads: how many items it never saw in training.
"""

import json
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from genrec_rl.config import parse_recipe
from genrec_rl.data.store import CARD_FILE, DatasetCard, load_dataset
from genrec_rl.errors import ConfigError
from genrec_rl.sids.catalog import Catalog
from genrec_rl.sids.extension import PROJECTION, extend_catalog, vectors_like
from genrec_rl.sids.plots import plot_codebooks
from genrec_rl.tracking import STAGE_FILE, console, finish_stage, require_stage, run_recipe, stage_record


@dataclass
class Settings:
    """What is extended by what; how items are encoded is read from the catalogue's record."""

    sid_dir: str = field(default="runs/demo/sids", metadata={"help": "the catalogue"})
    data_dir: str = field(default="runs/newer/data", metadata={"help": "prepared data with more items"})
    output_dir: str = field(default="runs/newer/sids", metadata={"help": "folder to write"})


def check_split(card: DatasetCard, older: Path, *, key: str) -> None:
    """Refuse data under whose split pages that older policies learnt could be tested.

    Args:
        card: of the newer data.
        older: folder of the data that the catalogue was made from.
        key: its digest then; data that were prepared again there say nothing.
    """
    is_there = (older / CARD_FILE).is_file() and (older / STAGE_FILE).is_file()
    if not is_there or stage_record(older)["key"] != key:
        warning = (
            f"{older} is gone, or was prepared again: nobody checks that split and page rule are those that older "
            "policies learnt by"
        )
        console.print(warning, style="yellow", markup=False)
        return
    before = json.loads((older / CARD_FILE).read_text())
    for name in ("split", "page_rule"):
        if getattr(card, name) != before[name]:
            raise ConfigError(
                f"{name} is {getattr(card, name)}, but {before[name]} in {older}: pages that a policy learnt could "
                f"be tested; prepare the newer data with `--{name} {before[name]}`"
            )


def main(argv: list[str] | None = None) -> None:
    (settings,) = parse_recipe([Settings], __file__, argv)
    started = time.monotonic()
    dataset = load_dataset(require_stage(settings.data_dir, stage="prepare", command="python recipes/prepare.py"))
    sid_dir = require_stage(settings.sid_dir, stage="build_sids", command="python recipes/build_sids.py")
    output_dir = Path(settings.output_dir)
    if output_dir.resolve() == sid_dir.resolve():
        raise ConfigError(f"output_dir {output_dir} is the catalogue itself; policies need it, choose another folder")
    record = stage_record(sid_dir)
    older = record["inputs"]["data"]
    check_split(dataset.card, Path(older["folder"]), key=older["key"])
    old = Catalog.load(sid_dir)
    vectors = vectors_like(sid_dir, dataset.items, settings=record["settings"])
    catalog, n_other = extend_catalog(old, dataset.items, vectors, popularity=dataset.popularity)
    for name in (STAGE_FILE, PROJECTION):
        (output_dir / name).unlink(missing_ok=True)
    catalog.save(output_dir)
    if (sid_dir / PROJECTION).is_file():
        shutil.copyfile(sid_dir / PROJECTION, output_dir / PROJECTION)
    report = catalog.report()
    report.save(output_dir / "sid_report.json")
    plot_codebooks(catalog.codes, catalog.codebook_sizes, output_dir / "codebooks.png")
    finish_stage(
        output_dir,
        stage="extend_sids",
        settings=record["settings"] | asdict(settings),  # with how the next extension must encode
        inputs={"data": settings.data_dir},
        seconds=time.monotonic() - started,
        extends=sid_dir,
    )
    console.print(report.table())
    if n_other:
        console.print(f"{n_other} known items have another vector now; they keep the old one and their SID")
    console.print(f"{catalog.n_items - old.n_items} new items, catalogue in {output_dir}", markup=False)


if __name__ == "__main__":
    run_recipe(main)
