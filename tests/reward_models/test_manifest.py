import pytest

from genrec_rl.errors import DataError
from reward_models.manifest import check_folder, open_folder, read_files, seal_folder, write_files


def test_a_sealed_folder_is_checked_to_the_last_file_below_it(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.txt").write_text("a")
    seal_folder(tmp_path, ["inner/a.txt"])
    check_folder(tmp_path)
    (tmp_path / "inner" / "a.txt").write_text("b")
    with pytest.raises(DataError, match=r"inner/a\.txt: sha256"):
        check_folder(tmp_path)


def test_a_folder_that_is_being_written_counts_as_incomplete(tmp_path):
    write_files(tmp_path, {"a.txt": b"a"})
    assert read_files(tmp_path, ("a.txt",)) == {"a.txt": b"a"}
    open_folder(tmp_path)
    with pytest.raises(DataError, match="no complete reward model"):
        read_files(tmp_path, ("a.txt",))


@pytest.mark.parametrize("content", [b"{}", b"[]", b"\xff\xfe", b'{"sha256": 3}'])
def test_a_damaged_manifest_is_refused(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(DataError, match="not a manifest"):
        check_folder(tmp_path)
