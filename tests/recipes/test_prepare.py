import json

import polars as pl
import pytest

from genrec_rl.data.store import load_dataset
from genrec_rl.errors import ConfigError
from recipes import prepare

MARKET = ["--source", "synthetic", "--n_users", "30", "--n_items", "30", "--n_requests", "300"]


def test_recipe_writes_a_loadable_stage_and_says_what_a_page_is(tmp_path, capsys):
    prepare.main([*MARKET, "--output_dir", str(tmp_path / "data")])
    names = {path.name for path in (tmp_path / "data").iterdir()}
    assert names == {"events.parquet", "items.parquet", "dataset.json", "truth.npz", "stage.json"}
    assert len(load_dataset(tmp_path / "data").pages) == 300
    printed = capsys.readouterr().out
    assert "300" in printed
    assert "A page is one logged request" in printed
    assert "value held by the top 10 % of items" in printed
    assert "Value: the item's price where it was ordered" in printed


def test_page_rule_and_split_reach_the_card(tmp_path):
    prepare.main([*MARKET, "--page_rule", "gap:2h", "--split", "leave_one_out", "--output_dir", str(tmp_path)])
    card = json.loads((tmp_path / "dataset.json").read_text())
    assert (card["page_rule"], card["split"]) == ("gap:2h", "leave_one_out")


def test_who_knows_better_than_the_source_says_that_exposed_is_taken(tmp_path, capsys):
    for name, words in (("as_source", []), ("taken", ["--exposed_is_taken", "true"])):
        prepare.main([*MARKET, *words, "--output_dir", str(tmp_path / name)])
    shown, taken = capsys.readouterr().out.split("Data set", 2)[1:]
    assert ("taken and not liked" in shown, "taken and not liked" in taken) == (False, True)
    known = load_dataset(tmp_path / "taken").examples("test")
    assert any(len(example.context.disliked) for example in known)


def test_ties_can_be_shuffled_and_the_card_says_so(tmp_path):
    shown = {}
    for name, words in (("as_logged", []), ("shuffled", ["--shuffle_ties", "true"])):
        prepare.main([*MARKET, *words, "--output_dir", str(tmp_path / name)])
        events = pl.read_parquet(tmp_path / name / "events.parquet")
        shown[name] = events.select("user_id", "timestamp", "item_id").rows()
    assert shown["shuffled"] != shown["as_logged"]
    assert sorted(shown["shuffled"]) == sorted(shown["as_logged"])
    assert "in random order, seed 0" in json.loads((tmp_path / "shuffled" / "dataset.json").read_text())["page"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--source", "amazon"], "source 'amazon' reads a folder; name it with --input PATH"),
        (["--source", "folder"], "source 'folder' reads a folder"),
        (["--source", "synthetic", "--input", "x"], "input: 'x' has no use"),
        ([*MARKET, "--page_rule", "sameday"], "'sameday' is none of .*did you mean 'same_day'"),
        (["--source", "movielense"], "argument --source: invalid choice"),
        (["--sauce", "movielens"], "unknown option '--sauce'; did you mean '--source'"),
    ],
)
def test_wrong_settings_are_one_error_and_write_nothing(tmp_path, words, message):
    with pytest.raises(ConfigError, match=message):
        prepare.main([*words, "--output_dir", str(tmp_path / "data")])
    assert list(tmp_path.iterdir()) == []


def test_yaml_defaults_make_the_demo_from_movielens(monkeypatch):
    seen = []
    monkeypatch.setattr(prepare, "read_movielens", lambda path: seen.append(path))
    monkeypatch.setattr(prepare, "write_dataset", lambda *given, **named: seen.append((given, named)) or given)
    monkeypatch.setattr(prepare, "finish_stage", lambda folder, **_: seen.append(folder))
    monkeypatch.setattr(prepare, "print_card", lambda card: None)
    prepare.main([])
    settings = {"page_rule": None, "split": "leave_last_page_out"}
    assert seen == [None, ((None, "runs/demo/data"), settings), "runs/demo/data"]
