"""The work behind a table, cut into cells: each is done once, and a run that was killed goes on where it stopped.

A cell's folder holds ``cell.json`` when it is done: what it was made with, how long it took, and of which commit.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from genrec_rl.tracking import console, source_commit

CELL_FILE, BEGUN_FILE = "cell.json", "begun.txt"


@dataclass(frozen=True, slots=True)
class Cell:
    """A piece of work: ``run(folder)`` does it; ``facts`` say what with, so that other settings do it again."""

    name: str
    folder: Path
    facts: dict[str, Any]
    run: Callable[[Path], None]
    minutes: float

    @property
    def key(self) -> str:
        """Digest of the facts."""
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()[:16]

    def record(self) -> dict[str, Any] | None:
        """Return what the cell left when it was done with these facts, else None."""
        file = self.folder / CELL_FILE
        record = json.loads(file.read_text()) if file.is_file() else None
        return record if record is not None and record["key"] == self.key else None


def work_off(cells: Sequence[Cell]) -> None:
    """Do all cells that are not done, with a bar that says what runs and how long the rest will take.

    The estimate is each cell's own guess, corrected by how long the finished ones took against theirs.
    """
    records = [cell.record() for cell in cells]
    todo = [cell for cell, record in zip(cells, records, strict=True) if record is None]
    done = [(cell.minutes, record["seconds"] / 60) for cell, record in zip(cells, records, strict=True) if record]
    console.print(f"{len(cells)} cells, {len(cells) - len(todo)} done before")
    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=console)
    with bar:
        task = bar.add_task("", total=len(cells), completed=len(cells) - len(todo))
        for number, cell in enumerate(todo):
            left = sum(c.minutes for c in todo[number:]) * _slowness(done)
            bar.update(task, description=f"{cell.name}, about {_duration(left)} left")
            begun = time.time()
            _begin(cell)
            cell.run(cell.folder)
            seconds = time.time() - begun
            _write_record(cell, seconds)
            done.append((cell.minutes, seconds / 60))
            bar.advance(task)


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
