"""A folder whose files are checked before they are read: ``manifest.json`` holds each file's sha256."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from genrec_rl.errors import DataError

_NAME = "manifest.json"


def write_files(path: str | Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder, and their manifest last: without it the folder counts as incomplete."""
    folder = open_folder(path)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    _write_manifest(folder, files)


def open_folder(path: str | Path) -> Path:
    """Make a folder, or open one without its manifest: until that is written again it counts as incomplete."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _NAME).unlink(missing_ok=True)
    return folder


def seal_folder(path: str | Path, names: Iterable[str]) -> None:
    """Write the manifest of files that lie in a folder, or below it, already."""
    folder = Path(path)
    _write_manifest(folder, {name: (folder / name).read_bytes() for name in sorted(names)})


def check_folder(path: str | Path) -> None:
    """Check every file that a folder's manifest names.

    Raises:
        DataError: naming the file that is missing or differs.
    """
    for name, digest in _read_manifest(Path(path)).items():
        _read_checked(Path(path) / name, digest)


def read_files(path: str | Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """Read files of a folder that ``write_files`` wrote.

    Raises:
        DataError: naming the file that is missing or differs from the manifest.
    """
    folder = Path(path)
    digests = _read_manifest(folder)
    return {name: _read_checked(folder / name, digests.get(name)) for name in names}


def _write_manifest(folder: Path, files: Mapping[str, bytes]) -> None:
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    (folder / _NAME).write_text(json.dumps({"sha256": digests}, indent=2) + "\n")


def _read_manifest(folder: Path) -> dict[str, str]:
    if not (folder / _NAME).is_file():
        raise DataError(
            f"{folder}: no {_NAME}, so no complete reward model lies here; train it or name another folder"
        )
    try:
        return dict(json.loads((folder / _NAME).read_text())["sha256"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{folder / _NAME}: not a manifest ({error!r}); write the model again") from None


def digest_of(files: Mapping[str, bytes]) -> str:
    """Return one hex digest of several files' names and contents."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}:{len(files[name])}:".encode())
        digest.update(files[name])
    return digest.hexdigest()


def _read_checked(file: Path, expected: str | None) -> bytes:
    if expected is None or not file.is_file():
        raise DataError(f"{file}: missing from the reward model's folder; copy the whole folder again")
    content = file.read_bytes()
    actual = hashlib.sha256(content).hexdigest()
    if actual != expected:
        raise DataError(
            f"{file}: sha256 {actual[:12]} differs from the manifest's {expected[:12]}; "
            "the file was changed or cut, copy the folder again or train anew"
        )
    return content
