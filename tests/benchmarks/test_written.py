import pytest

from benchmarks.written import fill_part
from genrec_rl.errors import DataError


def test_a_part_is_replaced_and_what_stands_around_it_stays(tmp_path):
    file = tmp_path / "README.md"
    file.write_text("before\n<!-- table:begin -->\nold\n<!-- table:end -->\nafter\n")
    fill_part(file, "table", "new")
    assert file.read_text() == "before\n<!-- table:begin -->\nnew\n<!-- table:end -->\nafter\n"


@pytest.mark.parametrize("text", ["nothing", "<!-- table:begin -->\nold", "old\n<!-- table:end -->"])
def test_a_file_without_both_markers_is_refused_and_left_alone(tmp_path, text):
    file = tmp_path / "README.md"
    file.write_text(text)
    with pytest.raises(DataError, match="lacks the markers <!-- table:begin -->"):
        fill_part(file, "table", "new")
    assert file.read_text() == text
