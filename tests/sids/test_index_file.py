import json

import pytest

from genrec_rl.errors import DataError
from genrec_rl.sids.index_file import read_index


def write(tmp_path, index):
    path = tmp_path / "index.json"
    path.write_text(json.dumps(index))
    return path


LETTER = {"0": ["<a_3>", "<b_0>"], "1": ["<a_1>", "<b_7>"], "2": ["<a_0>", "<b_0>"]}


def test_letter_counts_items_from_zero(tmp_path):
    codes, sizes = read_index(write(tmp_path, LETTER), [2, 1])
    assert codes.tolist() == [[1, 7], [3, 0]]
    assert sizes == (4, 8)


def test_string_ids_are_keys_as_they_are(tmp_path):
    codes, _ = read_index(write(tmp_path, LETTER), ["2", "0"])
    assert codes.tolist() == [[0, 0], [3, 0]]


def test_missing_item_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no SID for item 4 \(key '3'\)"):
        read_index(write(tmp_path, LETTER), [1, 4])


@pytest.mark.parametrize("sid", [["<a_1>"], ["<a_1>", "b7"], []])
def test_sid_of_another_shape_is_named(tmp_path, sid):
    with pytest.raises(DataError, match=r"'1' has .*, expected 2 codes"):
        read_index(write(tmp_path, LETTER | {"1": sid}), [1, 2])


def test_file_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as an index"):
        read_index(tmp_path / "index.json", [1])
