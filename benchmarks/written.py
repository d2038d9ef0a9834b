"""The parts of README.md files that scripts write, each between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``."""

from pathlib import Path

from genrec_rl.errors import DataError

README = Path("README.md")
MEASURED = Path("benchmarks/README.md")


def fill_part(file: Path, name: str, text: str) -> None:
    """Replace the part of a file called ``name``.

    Raises:
        DataError: when the file lacks its markers.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, has_begin, rest = file.read_text().partition(begin)
    _, has_end, after = rest.partition(end)
    if not (has_begin and has_end):
        raise DataError(f"{file} lacks the markers {begin} and {end}; put them back")
    file.write_text(f"{before}{begin}\n{text}\n{end}{after}")
