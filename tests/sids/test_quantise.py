import numpy as np
import polars as pl
import pytest

from genrec_rl.errors import ConfigError
from genrec_rl.sids.quantise import QuantiserSettings, quantise

ITEMS = pl.DataFrame({"item_id": range(40), "seller": [f"s{row % 5}" for row in range(40)]})
VECTORS = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)


def quantised(items=ITEMS, **settings):
    known = {"popularity": np.zeros(40, np.int64), "seed": 0}
    return quantise(VECTORS, items, settings=QuantiserSettings(niter=3, **settings), **known)


def test_defaults_reassign_three_equal_codebooks():
    catalog, report = quantised()
    assert (catalog.codebook_sizes, catalog.policy, catalog.hash_level) == ((16, 16, 16), "reassign", None)
    assert report.col_after == 0


def test_ua_sid_has_shrinking_balanced_codebooks_and_a_hash_with_buckets():
    chosen = {"multi_resolution": True, "balanced": True, "last_level": "hash", "hash_fields": ["seller"]}
    catalog, report = quantised(**chosen, hash_salt="x")
    assert (catalog.codebook_sizes, catalog.policy) == ((32, 16, 4), "bucket")
    assert (len(catalog.centroids), len(catalog.prices)) == (2, 2)
    assert (catalog.hash_level.fields, catalog.hash_level.salt) == (("seller",), "x")
    assert [level.kind for level in report.levels] == ["code", "code", "hash"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"last_level": "hash"}, "last_level hash reads hash_fields"),
        ({"hash_fields": ["seller"]}, "have no use here; add `--last_level hash`"),
        ({"last_level": "hash", "hash_fields": ["seller"], "collision": "reassign"}, "collision 'reassign' would"),
        ({"last_level": "hash", "hash_fields": ["seller"], "codebook_sizes": [8]}, "last of at least two levels"),
        ({"last_level": "hash", "hash_fields": ["sellers"]}, "no column of items; did you mean 'seller'"),
        ({"multi_resolution": True, "codebook_sizes": [8, 8]}, "give one of the two"),
        ({"balanced": True, "balance_slack": 0.5}, "balance_slack is 0.5"),
    ],
)
def test_contradictions_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        quantised(**settings)


def test_balanced_books_are_sized_by_distinct_contents():
    vectors = np.eye(8, dtype=np.float32).repeat(40, axis=0)  # 320 items of 8 contents
    assert QuantiserSettings(balanced=True).sizes(vectors) == QuantiserSettings().sizes(np.eye(8, dtype=np.float32))
    assert QuantiserSettings().sizes(vectors) == (32, 32, 32)  # 32^2 >= 640
