import hashlib
import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec_rl.data.store import items_fingerprint
from genrec_rl.errors import ConfigError, DataError
from genrec_rl.sids import rq_kmeans
from genrec_rl.sids.catalog import Catalog
from genrec_rl.sids.catalog_files import FILES
from genrec_rl.sids.hash_level import HashLevel
from genrec_rl.types import NO_ITEM


def unit_vectors(n: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(n, 6)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def by_hand(codes, sizes=(2, 3), popularity=None, **changes) -> Catalog:
    n = len(codes)
    fields = {
        "codes": np.asarray(codes, np.int32),
        "codebook_sizes": sizes,
        "item_ids": np.array([f"i{row}" for row in range(n)]),
        "vectors": unit_vectors(n),
        "centroids": [],
        "items_fingerprint": "f" * 64,
        "popularity": np.asarray(popularity if popularity is not None else [0] * n, np.int64),
    }
    return Catalog(**(fields | changes))


def built(n=60, sizes=(4, 4, 8), policy="reassign", seed=0) -> Catalog:
    vectors = unit_vectors(n, seed)
    return Catalog.build(
        vectors,
        item_ids=np.arange(n) * 10,
        centroids=rq_kmeans.fit(vectors, codebook_sizes=sizes, seed=0, niter=5),
        policy=policy,
        popularity=np.arange(n),
    )[0]


def test_rows_of_finds_each_item():
    catalog = by_hand([[1, 2], [0, 0], [1, 0]])
    assert catalog.rows_of(np.array([[0, 0], [1, 0], [1, 2]])).tolist() == [1, 2, 0]


@pytest.mark.parametrize("sid", [[0, 1], [0, 3], [-1, 2], [2, -3], [1, 99]])
def test_sid_of_no_item_is_no_item_even_when_its_packed_key_is_taken(sid):
    catalog = by_hand([[1, 2], [0, 0], [1, 0]])
    assert catalog.rows_of(np.array([sid])).tolist() == [NO_ITEM]


def test_shared_sid_means_its_most_popular_item_and_of_equals_the_first():
    codes = [[0, 1], [0, 1], [0, 1], [1, 1], [1, 1]]
    catalog = by_hand(codes, popularity=[1, 5, 2, 3, 3])
    assert catalog.rows_of(np.array([[0, 1], [1, 1]])).tolist() == [1, 3]


def test_rows_of_keeps_leading_axes_and_answers_tensor_with_tensor():
    catalog = by_hand([[1, 2], [0, 0]])
    sids = torch.tensor([[[1, 2], [0, 2]], [[0, 0], [1, 2]]])
    rows = catalog.rows_of(sids)
    assert isinstance(rows, torch.Tensor)
    assert rows.dtype == torch.int64
    assert rows.tolist() == [[0, NO_ITEM], [1, 0]]
    assert catalog.rows_of(np.zeros((0, 2), np.int64)).shape == (0,)


def test_rows_of_int32_codes_does_not_overflow():
    catalog = by_hand([[8000, 8000, 8000]], sizes=(8192, 8192, 8192))
    assert catalog.rows_of(np.array([[8000, 8000, 8000]], np.int32)).tolist() == [0]


def test_rows_of_refuses_another_depth():
    with pytest.raises(DataError, match="SIDs of 3 codes, but the catalogue has 2 levels"):
        by_hand([[0, 0]]).rows_of(np.zeros((1, 3), np.int64))


@settings(deadline=None, max_examples=30)
@given(st.sets(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1))
def test_rows_of_is_the_inverse_of_codes(sids):
    catalog = by_hand([list(sid) for sid in sids], sizes=(4, 5))
    assert catalog.rows_of(catalog.codes).tolist() == list(range(len(sids)))
    every = np.stack(np.meshgrid(np.arange(4), np.arange(5), indexing="ij"), axis=-1)
    assert int((catalog.rows_of(every) != NO_ITEM).sum()) == len(sids) == catalog.trie.n_sids


def test_build_reassigns_to_unique_sids():
    catalog = built()
    assert len(np.unique(catalog.codes, axis=0)) == 60
    assert (catalog.codes[:, :1] == rq_kmeans.encode(catalog.vectors, catalog.centroids)[:, :1]).all()


def test_build_with_bucket_keeps_the_quantiser_codes():
    catalog = built(sizes=(2, 2), policy="bucket")
    assert (catalog.codes == rq_kmeans.encode(catalog.vectors, catalog.centroids)).all()


def test_build_with_extra_code_adds_a_level_with_room():
    catalog = built(sizes=(2, 4), policy="extra_code")
    assert catalog.n_levels == 3
    assert len(np.unique(catalog.codes, axis=0)) == 60
    assert catalog.codes[:, 2].max() + 1 < catalog.codebook_sizes[2]


def test_unknown_policy_offers_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'reassign'"):
        built(policy="reasign")


def test_assign_takes_a_free_leaf_and_moves_nobody():
    catalog = built()
    assigned = catalog.assign(catalog.vectors[:3])
    assert (assigned[:, :1] == catalog.codes[:3, :1]).all()
    assert catalog.rows_of(assigned).tolist() == [NO_ITEM] * 3
    assert len(np.unique(assigned, axis=0)) == 3


def test_extend_appends_items_and_changes_the_fingerprint():
    catalog = built()
    longer = catalog.extend(np.array([7, 8]), unit_vectors(2, seed=9))
    assert (longer.codes[:60] == catalog.codes).all()
    assert longer.rows_of(longer.codes).tolist() == list(range(62))
    assert longer.item_ids[-2:].tolist() == [7, 8]
    assert longer.fingerprint != catalog.fingerprint


def test_extended_catalogue_fits_the_longer_item_table():
    longer = built(n=8, sizes=(4, 4)).extend(np.array([7, 8]), unit_vectors(2, seed=9))
    longer.check_items(items_fingerprint(pl.DataFrame({"item_id": [*range(0, 80, 10), 7, 8]})))


def test_known_item_cannot_be_added_again():
    with pytest.raises(DataError, match="item 20 is already in the catalogue"):
        built().extend(np.array([7, 20]), unit_vectors(2))


def test_codes_from_elsewhere_are_kept_with_their_collisions():
    catalog, report = Catalog.from_codes(
        np.array([[0, 1], [0, 1], [1, 0]], np.int32),
        codebook_sizes=(2, 2),
        item_ids=np.array(["a", "b", "c"]),
        vectors=unit_vectors(3),
        popularity=np.array([0, 4, 0]),
    )
    assert catalog.rows_of(catalog.codes).tolist() == [1, 1, 2]
    assert (report.col_after, report.error_after) == (pytest.approx(2 / 3), None)


def test_new_item_under_bucket_shares_the_sid_of_its_twin():
    catalog = built(sizes=(2, 2), policy="bucket")
    assert (catalog.assign(catalog.vectors[:5]) == catalog.codes[:5]).all()


def test_extra_code_without_room_is_refused_by_sid():
    catalog = built(n=4, sizes=(1,), policy="extra_code")
    assert catalog.codebook_sizes == (1, 8)
    with pytest.raises(DataError, match="SID 0 already numbers 8 items"):
        catalog.assign(unit_vectors(5, seed=1))


def test_catalogue_without_codebooks_cannot_assign():
    with pytest.raises(ConfigError, match="came from a file"):
        by_hand([[0, 0]]).assign(unit_vectors(1))


def test_fingerprint_depends_on_codes_sizes_and_items():
    catalogs = [
        by_hand([[0, 0]]),
        by_hand([[0, 1]]),
        by_hand([[0, 0]], sizes=(2, 4)),
        by_hand([[0, 0]], items_fingerprint="e" * 64),
    ]
    assert len({catalog.fingerprint for catalog in catalogs}) == 4
    assert by_hand([[0, 0]]).fingerprint == catalogs[0].fingerprint


def test_other_items_are_refused_with_both_fingerprints():
    by_hand([[0, 0]]).check_items("f" * 64)
    with pytest.raises(DataError, match=r"items ffffffffffffffff, .* items 0000000000000000; build it again"):
        by_hand([[0, 0]]).check_items("0" * 64)


@pytest.mark.parametrize("code", [-1, 3])
def test_code_outside_its_codebook_names_row_item_and_level(code):
    with pytest.raises(DataError, match=rf"row 1 \(item i1\) has code {code} at level 1, outside 0 to 2"):
        by_hand([[0, 0], [1, code]])


def test_arrays_of_different_lengths_are_refused():
    with pytest.raises(DataError, match="1 popularity for 2 items"):
        by_hand([[0, 0], [1, 1]], popularity=[1])


def test_sids_beyond_64_bits_are_refused():
    with pytest.raises(ConfigError, match=r"2\^63"):
        by_hand([[0] * 5], sizes=(8192,) * 5)


@pytest.mark.parametrize("policy", ["reassign", "bucket", "extra_code"])
def test_save_and_load_is_bit_equal(tmp_path, policy):
    catalog = built(policy=policy)
    catalog.save(tmp_path)
    loaded = Catalog.load(tmp_path)
    for name in ("codes", "item_ids", "vectors", "popularity"):
        saved, found = getattr(catalog, name), getattr(loaded, name)
        assert saved.dtype == found.dtype
        assert (saved == found).all()
    assert all((a == b).all() for a, b in zip(catalog.centroids, loaded.centroids, strict=True))
    assert loaded.fingerprint == catalog.fingerprint
    assert (loaded.codebook_sizes, loaded.policy) == (catalog.codebook_sizes, policy)
    assert isinstance(loaded.vectors, np.memmap)


def test_loaded_catalogue_assigns_as_the_saved_one(tmp_path):
    catalog = built()
    catalog.save(tmp_path)
    new = unit_vectors(5, seed=4)
    assert (Catalog.load(tmp_path).assign(new) == catalog.assign(new)).all()


def test_string_ids_survive_a_round_trip(tmp_path):
    by_hand([[0, 0], [1, 2]]).save(tmp_path)
    assert Catalog.load(tmp_path).item_ids.tolist() == ["i0", "i1"]


def test_saved_table_is_readable_by_a_person(tmp_path):
    by_hand([[0, 0], [1, 2]]).save(tmp_path)
    table = pl.read_parquet(tmp_path / "catalog.parquet")
    assert table.row(1) == ("i1", 1, 2, 0)
    assert table.columns == ["item_id", "code_0", "code_1", "popularity"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damaged_file_is_refused_by_name(tmp_path, name, damage):
    built().save(tmp_path)
    path = tmp_path / name
    data = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(data[:-7])
    else:
        data[-9] ^= 1
        path.write_bytes(data)
    with pytest.raises(DataError, match=name):
        Catalog.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}'])
def test_damaged_manifest_is_refused_by_name(tmp_path, text):
    built().save(tmp_path)
    (tmp_path / "catalog.json").write_text(text)
    with pytest.raises(DataError, match=r"catalog\.json"):
        Catalog.load(tmp_path)


def test_edited_codebook_sizes_do_not_pass_the_fingerprint(tmp_path):
    built().save(tmp_path)
    path = tmp_path / "catalog.json"
    manifest = json.loads(path.read_text()) | {"codebook_sizes": [4, 4, 16]}
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="does not match the codes"):
        Catalog.load(tmp_path)


def test_missing_catalogue_names_the_command(tmp_path):
    with pytest.raises(DataError, match=r"no finished catalogue .* recipes/build_sids\.py"):
        Catalog.load(tmp_path)


def test_interrupted_save_leaves_no_catalogue(tmp_path, monkeypatch):
    built().save(tmp_path)

    def out_of_space(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", out_of_space)
    with pytest.raises(OSError, match="No space"):
        built(seed=1).save(tmp_path)
    with pytest.raises(DataError, match="no finished catalogue"):
        Catalog.load(tmp_path)


COLUMNS = pl.DataFrame({"seller": [f"s{row % 7}" for row in range(60)]})
LEVEL = HashLevel(("seller",), size=16, salt="x")


def hashed(**changes) -> Catalog:
    vectors = unit_vectors(60)
    given = {"policy": "bucket", "hash_level": LEVEL, "items": COLUMNS}
    centroids = rq_kmeans.fit(vectors, codebook_sizes=(4, 4), seed=0, niter=5)
    return Catalog.build(vectors, item_ids=np.arange(60), centroids=centroids, **given | changes)[0]


def test_last_code_is_the_hash_of_the_columns_and_the_others_are_semantic():
    catalog = hashed()
    assert catalog.codebook_sizes == (4, 4, 16)
    assert (catalog.codes[:, 2] == LEVEL.codes(COLUMNS)).all()
    assert (catalog.semantic_codes == rq_kmeans.encode(catalog.vectors, catalog.centroids)).all()
    assert built().semantic_codes.shape[1] == 3


def test_an_item_is_found_again_from_vector_and_columns_alone():
    catalog = hashed()
    assert (catalog.assign(catalog.vectors, COLUMNS) == catalog.codes).all()
    longer = catalog.extend(np.array([100]), catalog.vectors[:1], items=COLUMNS[1:2])
    assert longer.codes[-1].tolist() == [*catalog.codes[0, :2], catalog.codes[1, 2]]


def test_hash_level_needs_its_columns_and_bucket():
    with pytest.raises(DataError, match="reads seller of 60 items, none were given"):
        hashed(items=None)
    with pytest.raises(ConfigError, match="collision 'reassign' does not go with a hash level"):
        hashed(policy="reassign")
    with pytest.raises(ConfigError, match="the hash is the last of at least two levels"):
        by_hand([[0, 0]], policy="bucket", hash_level=LEVEL)


def test_hash_level_and_prices_survive_a_round_trip_and_another_salt_does_not_pass(tmp_path):
    catalog = hashed(prices=[np.array([0, 0.5, 0, 0], np.float32), np.zeros(4, np.float32)])
    catalog.save(tmp_path)
    loaded = Catalog.load(tmp_path)
    assert loaded.hash_level == LEVEL
    assert (loaded.assign(catalog.vectors, COLUMNS) == catalog.codes).all()
    manifest = json.loads((tmp_path / "catalog.json").read_text())
    assert manifest["semantic_levels"] == 2
    manifest["hash_level"]["salt"] = "y"
    (tmp_path / "catalog.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="does not match the codes"):
        Catalog.load(tmp_path)


def test_fingerprint_of_a_catalogue_without_a_hash_is_that_of_earlier_versions():
    digest = hashlib.sha256(f"(2, 3) {'f' * 64}".encode() + np.zeros((1, 2), "<i4").tobytes())
    assert by_hand([[0, 0]]).fingerprint == digest.hexdigest()


def test_extended_catalogue_knows_how_many_rows_each_older_one_had(tmp_path):
    catalog = built()
    once = catalog.extend(np.array([1]), unit_vectors(1, seed=8))
    twice = once.extend(np.array([2, 3]), unit_vectors(2, seed=9))
    twice.save(tmp_path)
    loaded = Catalog.load(tmp_path)
    assert [loaded.rows_known_to(c.fingerprint) for c in (catalog, once, twice)] == [60, 61, 63]
    assert loaded.rows_known_to(built(seed=1).fingerprint) is None
    assert catalog.rows_known_to(once.fingerprint) is None


def test_a_claim_to_extend_is_checked_against_the_rows():
    catalog = built()
    liar = replace(catalog.extend(np.array([1]), unit_vectors(1, seed=8)), extended_from=(59,))
    assert liar.rows_known_to(catalog.fingerprint) is None
