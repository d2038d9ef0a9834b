import fcntl
import json
import os
import shutil
import signal
from functools import partial

import pytest

from benchmarks.tables.cells import CELL_FILE, Cell, work_off
from genrec_rl.errors import ConfigError


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


def test_a_cell_that_is_named_twice_is_done_once(tmp_path):
    done = []
    shared, *others = (make_cell(tmp_path, done, name) for name in "abc")
    work_off([shared, others[0], make_cell(tmp_path, done, "a"), others[1]])
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


def copies(source, folder, *, needs=()) -> Cell:
    """A cell that other processes can run: it copies a file into its folder."""
    return Cell(folder.name, folder, {}, partial(shutil.copy, source), minutes=1, needs=tuple(needs))


def test_side_by_side_a_cell_waits_for_what_it_needs(tmp_path):
    (tmp_path / "source.txt").write_text("made")
    first = copies(tmp_path / "source.txt", tmp_path / "first")
    second = copies(first.folder / "source.txt", tmp_path / "second", needs=[first.folder])
    work_off([second, first], jobs=2)
    assert (second.folder / "source.txt").read_text() == "made"
    assert [cell.record() is not None for cell in (first, second)] == [True, True]


def test_side_by_side_a_cell_waits_for_what_a_finished_need_needs(tmp_path):
    """What was made of ``first`` is done, ``first`` itself must be done anew: who reads both waits."""
    source = tmp_path / "source.txt"
    source.write_text("old")
    first = copies(source, tmp_path / "first")
    second = copies(source, tmp_path / "second", needs=[first.folder])
    third = copies(first.folder / source.name, tmp_path / "third", needs=[second.folder])
    work_off([first, second])
    shutil.rmtree(first.folder)
    source.write_text("new")
    work_off([first, second, third], jobs=2)
    assert (third.folder / source.name).read_text() == "new"


def test_a_cell_that_another_process_does_is_refused(tmp_path):
    cell = make_cell(tmp_path, [])
    with (tmp_path / ".a.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="a is being done by another process"):
            work_off([cell])
    work_off([cell])
    assert cell.record() is not None


def test_side_by_side_a_killed_process_is_told(tmp_path):
    doomed = Cell("doomed", tmp_path / "doomed", {}, end_this_process, minutes=1)
    with pytest.raises(ConfigError, match=r"doomed or one beside it.*log.txt.*fewer --jobs"):
        work_off([doomed], jobs=2)


def end_this_process(folder):
    os.kill(os.getpid(), signal.SIGKILL)


def test_side_by_side_a_failure_is_raised_and_the_others_are_kept(tmp_path, capsys):
    (tmp_path / "source.txt").touch()
    good, bad = (copies(tmp_path / name, tmp_path / name[0]) for name in ("source.txt", "missing.txt"))
    with pytest.raises(FileNotFoundError):
        work_off([good, bad], jobs=2)
    assert f"m failed; see {bad.folder}" in capsys.readouterr().out.replace("\n", "")
    assert good.record() is not None
    assert bad.record() is None


def test_no_cells_at_a_time_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="jobs 0 must be at least 1"):
        work_off([make_cell(tmp_path, [])], jobs=0)
