import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from genrec_rl.errors import ConfigError, DataError
from genrec_rl.sids.hash_level import HashLevel

ITEMS = pl.DataFrame({"seller": ["a", "b", "a", None], "campaign": [7, 7, 8, 7], "tags": [[1, 2], [2, 1], None, []]})
LEVEL = HashLevel(("seller", "campaign"), size=1 << 30, salt="s")


def test_bucket_is_blake2b_of_salt_and_values():
    # printf '["s", "a", "7"]' | b2sum --length 64, modulo 2^30
    assert LEVEL.codes(ITEMS)[0] == 0xB5E8DE3D18CA3C3D % (1 << 30)


def test_equal_columns_share_a_bucket_and_others_do_not():
    codes = LEVEL.codes(pl.concat([ITEMS, ITEMS[:1]]))
    assert codes[0] == codes[4]
    assert len(set(codes.tolist())) == 4


def test_another_process_finds_the_same_bucket():
    asked = f"import polars as pl; from genrec_rl.sids.hash_level import HashLevel; print({LEVEL!r}.codes(pl.DataFrame({{'seller': ['a'], 'campaign': [7]}}))[0])"  # noqa: E501
    found = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert int(found.stdout) == LEVEL.codes(ITEMS)[0]


def test_salt_size_and_order_of_fields_matter():
    codes = [
        HashLevel(fields, 1 << 30, salt).codes(ITEMS)[0]
        for fields, salt in (
            (("seller", "campaign"), "s"),
            (("campaign", "seller"), "s"),
            (("seller", "campaign"), ""),
        )
    ]
    assert len(set(codes)) == 3
    assert (HashLevel(("seller",), 2).codes(ITEMS) < 2).all()


def test_a_number_and_its_text_are_the_same_value_and_null_is_no_text():
    as_text = ITEMS.with_columns(pl.col("campaign").cast(pl.String))
    assert (LEVEL.codes(as_text) == LEVEL.codes(ITEMS)).all()
    assert LEVEL.codes(ITEMS)[3] != LEVEL.codes(ITEMS.with_columns(pl.col("seller").fill_null("")))[3]


def test_lists_count_with_their_order():
    codes = HashLevel(("tags",), 1 << 30).codes(ITEMS)
    assert len(set(codes.tolist())) == 4


def test_codes_are_appended_behind_the_semantic_ones():
    semantic = np.array([[1, 2], [3, 4], [5, 6], [7, 8]], np.int32)
    codes = LEVEL.append_to(semantic, ITEMS)
    assert codes.dtype == np.int32
    assert (codes[:, :2] == semantic).all()
    assert (codes[:, 2] == LEVEL.codes(ITEMS)).all()


@pytest.mark.parametrize("items", [None, ITEMS[:3]])
def test_items_that_are_not_those_of_the_codes_are_refused(items):
    with pytest.raises(DataError, match=r"reads seller, campaign of 4 items, (none were|3 were) given"):
        LEVEL.append_to(np.zeros((4, 2), np.int32), items)


@pytest.mark.parametrize(
    ("fields", "size", "message"),
    [
        ((), 4, "name at least one column"),
        (("a", "a"), 4, "each once"),
        (("a",), 1, "1 buckets tells nothing apart"),
    ],
)
def test_a_level_that_tells_nothing_apart_is_refused(fields, size, message):
    with pytest.raises(ConfigError, match=message):
        HashLevel(fields, size)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (ITEMS.rename({"seller": "sellers"}), "'seller' is no column of items; did you mean 'sellers'"),
        (ITEMS.with_columns(seller=pl.lit(1.5)), "column 'seller' is Float64; only strings"),
    ],
)
def test_missing_or_unstable_columns_are_refused(items, message):
    with pytest.raises(ConfigError, match=message):
        LEVEL.codes(items)


def test_a_level_survives_json():
    assert HashLevel.from_dict({"fields": ["seller", "campaign"], "size": 1 << 30, "salt": "s"}) == LEVEL
    assert HashLevel.from_dict(None) is None
