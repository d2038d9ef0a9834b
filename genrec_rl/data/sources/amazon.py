"""Amazon Beauty 2014 (5-core) to the data contract: positives only, with the DAY of each and titles.

Source: product reviews of McAuley et al. (2014), ids and order of S3-Rec (Zhou et al. 2020). There is no exposure
signal, so every event is an order and nothing is called exposed. The order inside a day is arbitrary, and
published copies disagree on it; ``position`` carries S3-Rec's, so that leave-one-out follows the papers.
"""

from pathlib import Path

import polars as pl

from genrec_rl.data.events import SourceTables
from genrec_rl.errors import DataError

INTERACTIONS, ITEMS, SEQUENCES = "interactions.csv.gz", "items.csv", "sequences_s3rec.txt"
PAGE_RULE = "same_day"
NOTE = (
    "Every event is an order: Amazon Beauty holds reviews of bought items and no exposures, days are the finest "
    "time, and the order inside a day is arbitrary (S3-Rec's file order)."
)
VALUE_NOTE = (
    "Value: 1 an order, a stand-in: the files hold neither price nor rating. An item's value is then its popularity, "
    "value@K is Recall@K, and nothing is to be learnt from a value token."
)


def read_amazon(input_path: str | Path) -> SourceTables:
    """Read ``interactions.csv.gz``, ``items.csv`` and ``sequences_s3rec.txt`` of a folder.

    Raises:
        DataError: when a file is missing, or the interactions disagree with S3-Rec's sequences.
    """
    folder = Path(input_path)
    for name in (INTERACTIONS, ITEMS, SEQUENCES):
        if not (folder / name).is_file():
            raise DataError(f"{folder / name}: no such file; --input must name a folder with {INTERACTIONS}, "
                            f"{ITEMS} and {SEQUENCES}")  # fmt: skip
    interactions = _read_csv(folder / INTERACTIONS, ("user_id", "item_id", "pos", "timestamp"))
    refuse_other_order(interactions, (folder / SEQUENCES).read_text())
    events = interactions.select(
        "user_id",
        "item_id",
        "timestamp",
        pl.lit("order").alias("action"),
        pl.col("pos").alias("position"),
        pl.lit(1.0).alias("value"),
    )
    items = _read_csv(folder / ITEMS, ("item_id", "title", "key_phrase", "attribute_ids")).select(
        "item_id",
        pl.col("title").fill_null(""),  # 7 of 12,101 have none
        "key_phrase",
        pl.col("attribute_ids").fill_null("").str.extract_all(r"\d+").cast(pl.List(pl.Int64)),
    )
    return SourceTables(
        name="amazon", events=events.lazy(), items=items, page_rule=PAGE_RULE, note=NOTE, value_note=VALUE_NOTE
    )


def refuse_other_order(interactions: pl.DataFrame, sequences: str) -> None:
    """Check that time, then ``pos``, gives each user's S3-Rec sequence (lines of ``user item item ...``).

    Raises:
        DataError: naming the first user whose sequence differs.
    """
    ours = (
        interactions.sort("user_id", "timestamp", "pos")
        .group_by("user_id", maintain_order=True)
        .agg(pl.col("item_id").cast(pl.String).alias("ours"))
        .select(pl.col("user_id").cast(pl.String), pl.col("ours").list.join(" "))
    )
    lines = pl.Series("line", sequences.split("\n")).str.strip_chars().str.splitn(" ", 2).struct.unnest()
    theirs = lines.rename({"field_0": "user_id", "field_1": "theirs"}).filter(pl.col("user_id") != "")
    differing = ours.join(theirs, on="user_id", how="full", coalesce=True).filter(
        pl.col("ours").ne_missing(pl.col("theirs"))
    )
    if len(differing):
        row = differing.row(0, named=True)
        raise DataError(
            f"{INTERACTIONS}: user {row['user_id']} (and {len(differing) - 1} more) has items {row['ours']} by time "
            f"and pos, {SEQUENCES} says {row['theirs']}; take both files from one source"
        )


def _read_csv(path: Path, columns: tuple[str, ...]) -> pl.DataFrame:
    try:
        table = pl.read_csv(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: truncated, corrupt or no CSV file ({error}); copy it again") from None
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise DataError(f"{path}: column '{missing[0]}' is missing; the first line must name {', '.join(columns)}")
    return table
