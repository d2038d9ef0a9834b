import json

import pytest

from benchmarks.tables.cells import CELL_FILE, Cell, work_off


def make_cell(folder, done: list[str], name="a", *, fails=False, **facts) -> Cell:
    def run(where):
        assert where.is_dir()
        done.append(name)
        if fails:
            raise RuntimeError("killed")

    return Cell(name, folder / name, facts, run, minutes=1)


def test_done_cells_are_not_done_again(tmp_path):
    done = []
    cells = [make_cell(tmp_path, done, name) for name in "ab"]
    work_off(cells)
    work_off([*cells, make_cell(tmp_path, done, "c")])
    assert done == ["a", "b", "c"]


def test_cell_with_other_facts_is_done_again(tmp_path):
    done = []
    work_off([make_cell(tmp_path, done, seed=0)])
    work_off([make_cell(tmp_path, done, seed=1)])
    assert done == ["a", "a"]
    assert json.loads((tmp_path / "a" / CELL_FILE).read_text())["facts"] == {"seed": 1}


def test_cell_that_was_cut_off_is_not_done(tmp_path):
    done = []
    with pytest.raises(RuntimeError):
        work_off([make_cell(tmp_path, done, fails=True)])
    work_off([make_cell(tmp_path, done)])
    assert done == ["a", "a"]


def test_cell_being_done_again_is_no_longer_done(tmp_path):
    work_off([make_cell(tmp_path, [], seed=0)])
    with pytest.raises(RuntimeError):
        work_off([make_cell(tmp_path, [], fails=True, seed=1)])
    assert make_cell(tmp_path, [], seed=0).record() is None


def test_other_facts_find_nothing_of_the_old_ones(tmp_path):
    def cell(seed: int, left: list[str]) -> Cell:
        def run(folder):
            left.extend(path.name for path in folder.glob("policy*"))
            (folder / "policy").touch()
            raise RuntimeError("killed")

        return Cell("a", tmp_path / "a", {"seed": seed}, run, minutes=1)

    for seed, expected in ((0, []), (0, ["policy"]), (1, [])):
        left = []
        with pytest.raises(RuntimeError):
            work_off([cell(seed, left)])
        assert left == expected
