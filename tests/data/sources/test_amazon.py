import gzip

import pytest

from genrec_rl.data.sources.amazon import read_amazon
from genrec_rl.data.store import load_dataset, write_dataset
from genrec_rl.errors import DataError

DAY = 86_400
FILES = {
    "interactions.csv.gz": (
        "user_id,item_id,pos,timestamp\n"
        f"1,2,0,{DAY}\n1,1,1,{2 * DAY}\n1,3,2,{2 * DAY}\n1,4,3,{2 * DAY}\n2,4,0,{DAY}\n2,1,1,{DAY}\n2,2,2,{DAY}\n"
    ),
    "items.csv": (
        "item_id,asin,title,key_phrase,attribute_ids\n"
        '1,X1,"Lacquer, red",lacquer red,17 1\n2,X2,,cream,5\n3,X3,Brush,brush,\n4,X4,Comb,comb,9\n'
    ),
    "sequences_s3rec.txt": "1 2 1 3 4\n2 4 1 2",
}


def folder_with(path, **changes):
    for name, text in (FILES | changes).items():
        (path / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def test_every_event_is_an_order_at_its_s3rec_position(tmp_path):
    events = read_amazon(folder_with(tmp_path)).events.collect()
    assert events.columns == ["user_id", "item_id", "timestamp", "action", "position", "value"]
    assert set(events["action"]) == {"order"}
    assert set(events["value"]) == {1.0}
    assert events["position"].to_list() == [0, 1, 2, 3, 0, 1, 2]


def test_items_keep_text_and_attributes(tmp_path):
    items = read_amazon(folder_with(tmp_path)).items
    assert items.rows()[:3] == [
        (1, "Lacquer, red", "lacquer red", [17, 1]), (2, "", "cream", [5]), (3, "Brush", "brush", []),
    ]  # fmt: skip


def test_leave_one_out_follows_the_sequences_inside_a_day(tmp_path):
    write_dataset(read_amazon(folder_with(tmp_path)), tmp_path / "data", split="leave_one_out")
    data = load_dataset(tmp_path / "data")
    sequences = [[*e.context.history.tolist(), *e.items.tolist()] for e in data.examples("test")]
    assert sequences == [[1, 0, 2, 3], [3, 0, 1]]


@pytest.mark.parametrize("sequences", ["1 2 3 1 4\n2 4 1 2", "1 2 1 3 4", "1 2 1 3 4\n2 4 1 2\n3 1"])
def test_other_sequences_are_refused(tmp_path, sequences):
    with pytest.raises(DataError, match=r"user \d \(and 0 more\) has items .* sequences_s3rec\.txt says"):
        read_amazon(folder_with(tmp_path, **{"sequences_s3rec.txt": sequences}))


def test_positions_against_time_are_refused(tmp_path):
    shuffled = FILES["interactions.csv.gz"].replace(f"1,2,0,{DAY}", f"1,2,0,{3 * DAY}")
    with pytest.raises(DataError, match="user 1 "):
        read_amazon(folder_with(tmp_path, **{"interactions.csv.gz": shuffled}))


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_named(tmp_path, name):
    (folder_with(tmp_path) / name).unlink()
    with pytest.raises(DataError, match=rf"{name}: no such file; --input must name a folder"):
        read_amazon(tmp_path)


def test_missing_column_is_named(tmp_path):
    with pytest.raises(DataError, match=r"items\.csv: column 'key_phrase' is missing"):
        read_amazon(folder_with(tmp_path, **{"items.csv": "item_id,title,attribute_ids\n1,a,2\n"}))


def test_truncated_archive_is_named(tmp_path):
    path = folder_with(tmp_path) / "interactions.csv.gz"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"interactions\.csv\.gz: truncated, corrupt"):
        read_amazon(tmp_path)
