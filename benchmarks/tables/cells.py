"""The work behind a table, cut into cells: each is done once, and a run that was killed goes on where it stopped.

A cell's folder holds ``cell.json`` when it is done: what it was made with, how long it took, and of which commit.
Several can be worked off side by side, each in a process of its own, which then prints into the folder's ``log.txt``
(on a CPU set OMP_NUM_THREADS=1, so that they do not take each other's cores).
"""

import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from genrec_rl.errors import ConfigError
from genrec_rl.tracking import console, source_commit

CELL_FILE, BEGUN_FILE, LOG_FILE = "cell.json", "begun.txt", "log.txt"


@dataclass(frozen=True, slots=True)
class Cell:
    """A piece of work: ``run(folder)`` does it; ``facts`` say what with, so that other settings do it again.

    ``needs`` are the folders of cells that must be done before, and with them what those need.
    """

    name: str
    folder: Path
    facts: dict[str, Any]
    run: Callable[[Path], None]
    minutes: float
    needs: tuple[Path, ...] = ()

    @property
    def key(self) -> str:
        """Digest of the facts."""
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()[:16]

    def record(self) -> dict[str, Any] | None:
        """Return what the cell left when it was done with these facts, else None."""
        file = self.folder / CELL_FILE
        record = json.loads(file.read_text()) if file.is_file() else None
        return record if record is not None and record["key"] == self.key else None


def work_off(cells: Sequence[Cell], *, jobs: int = 1) -> None:
    """Do all cells that are not done, with a bar that says what runs and how long the rest will take.

    The estimate is each cell's own guess, corrected by how long the finished ones took against theirs, as if none
    waited for another. Cells stand in an order in which each comes after what it needs; ``jobs`` of them run at a
    time. One that is named twice (the data of every seed) is done once.

    Raises:
        ConfigError: ``jobs`` is below 1, a cell is being done by another process, or one was killed.
    """
    if jobs < 1:
        raise ConfigError(f"jobs {jobs} must be at least 1, for one cell at a time")
    cells = [*{cell.folder: cell for cell in cells}.values()]
    records = [cell.record() for cell in cells]
    todo = [cell for cell, record in zip(cells, records, strict=True) if record is None]
    done = [(cell.minutes, record["seconds"] / 60) for cell, record in zip(cells, records, strict=True) if record]
    console.print(f"{len(cells)} cells, {len(cells) - len(todo)} done before")
    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=console)
    with bar:
        task = bar.add_task("", total=len(cells), completed=len(cells) - len(todo))
        left = {cell.folder: cell for cell in todo}

        def show(running: Sequence[Cell]) -> None:
            minutes = sum(cell.minutes for cell in left.values()) * _slowness(done) / min(jobs, len(left))
            names = running[0].name if len(running) == 1 else f"{len(running)} at once, {running[-1].name} the newest"
            bar.update(task, description=f"{names}, about {_duration(minutes)} left")

        for cell, seconds in (
            _in_turn(todo, show) if jobs == 1 else _side_by_side(todo, _all_needs(cells), jobs, show)
        ):
            del left[cell.folder]
            done.append((cell.minutes, seconds / 60))
            bar.advance(task)


def _in_turn(todo: Sequence[Cell], show: Callable[[Sequence[Cell]], None]) -> Iterator[tuple[Cell, float]]:
    """Do one cell after the other, and yield each with its seconds."""
    for cell in todo:
        show([cell])
        yield cell, _do(cell)


def _all_needs(cells: Sequence[Cell]) -> dict[Path, frozenset[Path]]:
    """Return each cell's needs with what those need, also through cells that are done."""
    found: dict[Path, frozenset[Path]] = {}
    for cell in cells:
        found[cell.folder] = frozenset(cell.needs).union(*(found.get(folder, ()) for folder in cell.needs))
    return found


def _side_by_side(
    todo: Sequence[Cell], needs: Mapping[Path, frozenset[Path]], jobs: int, show: Callable[[Sequence[Cell]], None]
) -> Iterator[tuple[Cell, float]]:
    """Do up to ``jobs`` cells at a time, each when what it needs is done, and yield them as they are finished.

    Of a cell that fails the others that run are finished first; then its error is raised.
    """
    waiting = {cell.folder: cell for cell in todo}
    running: dict[Future[float], Cell] = {}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        while waiting or running:
            undone = {*waiting, *(cell.folder for cell in running.values())}
            ready = [cell for cell in waiting.values() if undone.isdisjoint(needs[cell.folder])]
            for cell in ready[: jobs - len(running)]:
                del waiting[cell.folder]
                running[pool.submit(_do_quietly, cell)] = cell
            show([*running.values()])
            for finished in wait(running, return_when=FIRST_COMPLETED).done:
                yield (cell := running.pop(finished)), _seconds_of(finished, cell)


def _seconds_of(finished: Future[float], cell: Cell) -> float:
    """Return how long a cell took, or say at once where to read why it failed."""
    try:
        return finished.result()
    except BrokenProcessPool:
        raise ConfigError(
            f"a process was killed, perhaps for memory: {cell.name} or one beside it; see {cell.folder / LOG_FILE}, "
            "end what still runs, and start again with fewer --jobs"
        ) from None
    except Exception:  # whatever it was: where to read it is said before it goes on
        console.print(f"{cell.name} failed; see {cell.folder / LOG_FILE}", markup=False)
        raise


def _do(cell: Cell, *, prints_to_folder: bool = False) -> float:
    """Do a cell, and return its seconds."""
    begun = time.time()
    with _alone_in(cell):
        _begin(cell)
        if prints_to_folder:
            with (cell.folder / LOG_FILE).open("a") as log:
                for stream in (sys.stdout, sys.stderr):
                    os.dup2(log.fileno(), stream.fileno())
        cell.run(cell.folder)
        seconds = time.time() - begun
        _write_record(cell, seconds)
    return seconds


_do_quietly = partial(_do, prints_to_folder=True)
"""In a process of its own, whose output and that of its scripts goes into the cell's folder."""


@contextmanager
def _alone_in(cell: Cell) -> Iterator[None]:
    """Keep other processes from doing the cell too: those of a run that was killed may work on."""
    file = cell.folder.with_name(f".{cell.folder.name}.lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{cell.name} is being done by another process, perhaps of a run that was killed; wait for it "
                "or end it"
            ) from None
        yield


def _begin(cell: Cell) -> None:
    """Clear the folder, unless it holds what a run of the same facts left when it was cut off."""
    begun = cell.folder / BEGUN_FILE
    if cell.folder.exists() and (not begun.is_file() or begun.read_text() != cell.key):
        shutil.rmtree(cell.folder)
    cell.folder.mkdir(parents=True, exist_ok=True)
    begun.write_text(cell.key)


def _write_record(cell: Cell, seconds: float) -> None:
    record = {"key": cell.key, "facts": cell.facts, "seconds": round(seconds, 1), "commit": source_commit()}
    part = cell.folder / f"{CELL_FILE}.part"
    part.write_text(json.dumps(record, indent=1) + "\n")
    part.replace(cell.folder / CELL_FILE)


def _slowness(done: Sequence[tuple[float, float]]) -> float:
    """Return the minutes that finished cells took over those that were guessed."""
    guessed = sum(guess for guess, _ in done)
    return sum(took for _, took in done) / guessed if guessed else 1.0


def _duration(minutes: float) -> str:
    return f"{minutes / 60:.1f} hours" if minutes >= 90 else f"{minutes:.0f} minutes"
