import polars as pl
import pytest

from genrec_rl.data.sources.folder import read_folder
from genrec_rl.data.store import load_dataset, write_dataset
from genrec_rl.errors import ConfigError, DataError

EVENTS = pl.DataFrame(
    {
        "user_id": [5] * 4,
        "item_id": ["a", "b", "a", "b"],
        "timestamp": [1, 100, 200, 300],
        "action": ["click", "order", "click", "expose"],
        "request_id": [11, 12, 13, 13],
        "device": ["phone", "tv", "tv", "tv"],
    }
)
ITEMS = pl.DataFrame({"item_id": ["a", "b"], "title": ["A", "B"], "brand": ["x", "y"]})


@pytest.fixture
def folder(tmp_path):
    EVENTS.write_parquet(tmp_path / "events.parquet")
    ITEMS.write_parquet(tmp_path / "items.parquet")
    return tmp_path


def test_own_tables_keep_requests_ids_and_extra_columns(folder):
    write_dataset(read_folder(folder), folder / "data")
    data = load_dataset(folder / "data")
    assert data.pages.request_ids.tolist() == ["11", "12", "13"]
    assert data.items.equals(ITEMS)
    assert pl.read_parquet(folder / "data" / "events.parquet")["device"].to_list() == ["phone", "tv", "tv", "tv"]


def test_log_without_requests_asks_for_a_page_rule(folder):
    EVENTS.drop("request_id").write_parquet(folder / "events.parquet")
    with pytest.raises(ConfigError, match="needs a request_id column in events"):
        write_dataset(read_folder(folder), folder / "data")
    assert write_dataset(read_folder(folder), folder / "data", page_rule="gap:60s").pages == 4


@pytest.mark.parametrize("name", ["events.parquet", "items.parquet"])
def test_missing_and_truncated_tables_are_named(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=rf"{name}: truncated, corrupt"):
        read_folder(folder)
    path.unlink()
    with pytest.raises(DataError, match=rf"{name}: no such file"):
        read_folder(folder)
