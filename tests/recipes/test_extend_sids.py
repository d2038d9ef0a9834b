import json

import numpy as np
import polars as pl
import pytest

from genrec_rl.data.store import load_dataset
from genrec_rl.errors import ConfigError, DataError
from genrec_rl.sids.catalog import Catalog
from genrec_rl.tracking import finish_stage, require_stage, stage_record
from recipes import build_sids, extend_sids, prepare
from recipes.extend_sids import check_split


@pytest.fixture(scope="module", autouse=True)
def _no_wandb():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A market with sellers, its catalogue, and the same market with two new items."""
    root = tmp_path_factory.mktemp("extension")
    sizes = ["--n_users", "30", "--n_items", "60", "--n_requests", "300", "--copies", "3"]
    prepare.main(["--source", "synthetic", *sizes, "--output_dir", str(root / "data")])
    hashed = ["--epochs", "1", "--last_level", "hash", "--hash_fields", "seller", "--codebook_sizes", "8", "8", "16"]
    build_sids.main(["--data_dir", str(root / "data"), "--output_dir", str(root / "sids"), *hashed])
    items = pl.read_parquet(root / "data" / "items.parquet")
    new = items[:2].with_columns(item_id=pl.Series(["new0", "new1"]), seller=items["seller"][1:3])
    write(root / "newer", pl.concat([items, new]), root)
    return root


def write(folder, items, root, split="leave_last_page_out"):
    (folder / "tables").mkdir(parents=True)
    items.write_parquet(folder / "tables" / "items.parquet")
    pl.read_parquet(root / "data" / "events.parquet").write_parquet(folder / "tables" / "events.parquet")
    words = ["--source", "folder", "--input", str(folder / "tables"), "--split", split]
    prepare.main([*words, "--page_rule", "request_id", "--output_dir", str(folder / "data")])


def extend(root, folder, *, sids="sids", into=None):
    words = ["--data_dir", str(folder / "data"), "--output_dir", str(into or folder / "sids")]
    extend_sids.main(["--sid_dir", str(root / sids), *words])
    return Catalog.load(folder / "sids")


def test_new_items_get_the_content_of_their_twins_and_their_own_sellers_bucket(root):
    old, longer = Catalog.load(root / "sids"), extend(root, root / "newer")
    assert (longer.codes[:60] == old.codes).all()
    assert (longer.codes[60:, :2] == old.codes[:2, :2]).all()
    assert (longer.codes[60:, 2] == old.codes[1:3, 2]).all()
    assert longer.rows_known_to(old.fingerprint) == 60
    assert json.loads((root / "newer" / "sids" / "sid_report.json").read_text())["n_items"] == 62


def test_what_was_made_from_the_old_catalogue_may_be_used_with_the_longer_one(root):
    extend(root, root / "newer")
    policy, newer = root / "policy", root / "newer"
    policy.mkdir(exist_ok=True)
    made_from = {"data": root / "data", "sids": root / "sids"}
    finish_stage(policy, stage="sft", settings={}, inputs=made_from, seconds=0)
    extended = {"data": newer / "data", "sids": newer / "sids"}
    require_stage(policy, stage="sft", command="train", made_from=extended)
    finish_stage(policy, stage="sft", settings={}, inputs=extended, seconds=0)
    with pytest.raises(ConfigError, match="was made from other"):
        require_stage(policy, stage="sft", command="train", made_from=made_from)


def test_an_extension_can_be_extended(root, tmp_path):
    extend(root, root / "newer")
    items = pl.read_parquet(root / "newer" / "data" / "items.parquet")
    write(tmp_path, pl.concat([items, items[:1].with_columns(item_id=pl.lit("new2"))]), root)
    longest = extend(root, tmp_path, sids="newer/sids")
    assert longest.extended_from == (60, 62)
    assert longest.codes[62].tolist() == longest.codes[0].tolist()


def test_tables_that_do_not_continue_the_catalogue_are_refused(root, tmp_path):
    items = pl.read_parquet(root / "data" / "items.parquet")
    write(tmp_path / "turned", items.reverse(), root)
    with pytest.raises(DataError, match="items row 0: the catalogue has item i0000000 there"):
        extend(root, tmp_path / "turned")
    with pytest.raises(DataError, match="nothing to extend"):
        extend_sids.main(
            ["--sid_dir", str(root / "sids"), "--data_dir", str(root / "data"), "--output_dir", str(tmp_path)]
        )
    write(tmp_path / "other", pl.read_parquet(root / "newer" / "data" / "items.parquet"), root, split="time")
    with pytest.raises(ConfigError, match="prepare the newer data with `--split leave_last_page_out`"):
        extend(root, tmp_path / "other")


def test_texts_that_changed_leave_known_items_as_they_are(root, tmp_path, capsys):
    items = pl.read_parquet(root / "newer" / "data" / "items.parquet")
    changed = items.with_columns(
        pl.when(pl.col("item_id") == "i0000004").then(pl.lit("Novel")).otherwise("title").alias("title")
    )
    write(tmp_path, changed, root)
    assert (extend(root, tmp_path).codes[:60] == Catalog.load(root / "sids").codes).all()
    assert "1 known items have another vector now" in capsys.readouterr().out
    write(tmp_path / "all", items.with_columns(title=pl.lit("Novel"), category=pl.lit("Books")), root)
    with pytest.raises(DataError, match="none of 60 known items has the vector that it had"):
        extend(root, tmp_path / "all")
    assert np.isfinite(Catalog.load(root / "sids").vectors).all()


def test_data_that_were_prepared_again_are_said_to_prove_nothing(root, capsys):
    card = load_dataset(root / "newer" / "data").card
    check_split(card, root / "data", key=stage_record(root / "data")["key"])
    assert capsys.readouterr().out == ""
    check_split(card, root / "data", key="another")
    assert "prepared again: nobody checks" in capsys.readouterr().out
