"""The parts of README.md that scripts write, each between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``."""

from pathlib import Path

from genrec_rl.errors import DataError

README = Path("README.md")


def fill_readme(name: str, text: str) -> None:
    """Replace the part called ``name``.

    Raises:
        DataError: when README.md lacks its markers.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, has_begin, rest = README.read_text().partition(begin)
    _, has_end, after = rest.partition(end)
    if not (has_begin and has_end):
        raise DataError(f"README.md lacks the markers {begin} and {end}; put them back")
    README.write_text(f"{before}{begin}\n{text}\n{end}{after}")
