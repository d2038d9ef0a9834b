import json
import math

import numpy as np
import pytest
from rich.console import Console

from genrec_rl.sids.quality import bucket_sizes, entropy_bits, gini, measure, shared_share

BEFORE = np.array([[0, 0], [0, 0], [0, 1], [1, 3]], np.int32)
AFTER = np.array([[0, 0], [0, 2], [0, 1], [1, 3]], np.int32)


def report(before=BEFORE, after=AFTER, **changes):
    return measure(before, after, **({"codebook_sizes": (2, 4), "policy": "reassign"} | changes))


def test_entropy_of_hand_worked_counts():
    assert entropy_bits(np.array([2, 1, 1, 0])) == pytest.approx(1.5)
    assert entropy_bits(np.array([5, 0])) == 0.0


def test_gini_of_hand_worked_counts():
    assert gini(np.array([3, 3, 3])) == 0.0
    assert gini(np.array([1, 3])) == pytest.approx(0.25)


def test_shared_share_counts_items_not_sids():
    assert shared_share(BEFORE, (2, 4)) == 0.5
    assert shared_share(BEFORE[:, :1], (2,)) == 0.75


def test_bucket_sizes_of_distinct_sids():
    assert sorted(bucket_sizes(BEFORE, (2, 4))) == [1, 1, 2]


def test_levels_report_use_entropy_and_collisions_before_and_after():
    first, second = report().levels
    assert (first.size, first.utilisation, first.shared_before, first.shared_after) == (2, 1.0, 0.75, 0.75)
    assert first.entropy == pytest.approx(-(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)))
    assert (second.utilisation, second.perplexity) == (1.0, pytest.approx(4.0))
    assert (second.shared_before, second.shared_after) == (0.5, 0.0)


def test_compression_collisions_and_capacity():
    kept = report(after=BEFORE)
    assert (kept.cpr, kept.col_after, kept.util) == (pytest.approx(4 / 3), 0.5, pytest.approx(3 / 8))
    assert (kept.distinct_sids, kept.largest_bucket, kept.n_moved) == (3, 2, 0)
    assert (report().cpr, report().col_after, report().n_moved) == (1.0, 0.0, 1)


def test_error_is_relative_and_grows_by_the_move():
    centroids = [np.array([[1], [2]], np.float32), np.array([[0], [0.5], [1], [0]], np.float32)]
    vectors = np.array([[1], [1], [1.5], [2]], np.float32)
    moved = report(vectors=vectors, centroids=centroids)
    assert moved.error_before == 0.0
    assert moved.error_after == pytest.approx(1 / (1 + 1 + 2.25 + 4))


def test_codes_without_codebooks_have_no_error():
    assert report().error_before is None


def test_overfull_prefix_is_named_with_its_items():
    codes = np.array([[1, 0], [1, 1], [1, 1], [0, 0]], np.int32)
    assert report(before=codes, after=codes, codebook_sizes=(2, 2)).overfull_prefixes == (("1", 3),)


def test_prefix_that_is_just_full_is_not_overfull():
    codes = np.array([[1, 0], [1, 1], [0, 0]], np.int32)
    assert report(before=codes, after=codes, codebook_sizes=(2, 2)).overfull_prefixes == ()


def test_extra_level_is_measured_without_counting_as_a_move():
    after = np.column_stack([BEFORE, [0, 1, 0, 0]]).astype(np.int32)
    longer = report(after=after, codebook_sizes=(2, 4, 4))
    assert (longer.n_moved, len(longer.levels), longer.col_after) == (0, 3, 0.0)


def test_saved_report_is_plain_json(tmp_path):
    report().save(tmp_path / "sid_report.json")
    assert json.loads((tmp_path / "sid_report.json").read_text())["levels"][0]["size"] == 2


def test_table_shows_a_row_for_each_level():
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(report().table())
    text = console.export_text()
    assert "1/2" in text
    assert "2/2" in text
    assert "4 items, 4 distinct SIDs (reassign)" in text


def test_numbers_of_the_papers_table_for_six_items():
    # three items share 0-0, two share 0-1, one has 1-3: Cpr 6 / 3, Col 5 / 6, Util 3 / 8
    codes = np.array([[0, 0], [0, 0], [0, 0], [0, 1], [0, 1], [1, 3]], np.int32)
    found = report(before=codes, after=codes)
    assert (found.cpr, found.col_after, found.util) == (2.0, pytest.approx(5 / 6), pytest.approx(3 / 8))


def test_hash_level_is_named_and_carries_no_error():
    centroids = [np.array([[1], [2]], np.float32)]
    vectors = np.array([[1], [1], [1], [2]], np.float32)
    found = report(after=BEFORE, vectors=vectors, centroids=centroids, has_hash=True)
    assert [level.kind for level in found.levels] == ["code", "hash"]
    assert found.error_after == 0.0
    assert "level_2/kind" not in found.numbers()
