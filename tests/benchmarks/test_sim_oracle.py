import json
from dataclasses import replace

import pytest

from benchmarks import sim_oracle
from benchmarks.sim_oracle import Settings, as_markdown, oracle_cells, report
from genrec_rl.errors import ConfigError


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setattr(sim_oracle, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(sim_oracle, "RESULTS", tmp_path)
    for stage in ("data", "sids"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "stage.json").write_text(json.dumps({"key": stage}))
    return Settings(data_dir=str(tmp_path / "data"), sid_dir=str(tmp_path / "sids"))


def keys(settings):
    return {made.name: made.key for made in oracle_cells(settings)}


@pytest.mark.parametrize("change", [{"epochs": 3}, {"learning_rate": 0.1}, {"embedding_dim": 3}])
def test_fuxictrs_settings_make_other_cells_of_its_networks_alone(settings, change):
    before, after = keys(settings), keys(replace(settings, **change))
    assert {name for name in before if before[name] != after[name]} == {name for name in before if "fuxi" in name}


def test_other_data_of_the_same_folder_make_all_cells_anew(settings, tmp_path):
    before = keys(settings)
    (tmp_path / "sids" / "stage.json").write_text(json.dumps({"key": "other"}))
    assert not set(before.values()) & set(keys(settings).values())
    assert len(set(before.values())) == 12


def test_how_many_at_a_time_and_which_does_not_make_other_cells(settings):
    assert keys(replace(settings, jobs=2)) == keys(settings)
    assert keys(replace(settings, systems=["ours"])).items() < keys(settings).items()


def test_table_has_means_of_what_is_done_whatever_was_asked_for(settings, tmp_path):
    made = {cell.name: cell for cell in oracle_cells(settings)}
    for name, auc in (("ours, seed 0", 0.7), ("ours, seed 1", 0.8), ("fuxi_din, seed 0", 0.65)):
        made[name].folder.mkdir(parents=True)
        (made[name].folder / "measures.json").write_text(json.dumps({"exposed_auc": auc}))
        (made[name].folder / "cell.json").write_text(json.dumps({"key": made[name].key, "seconds": 1.0}))
    report(replace(settings, systems=["ours"]))
    found = json.loads((tmp_path / "sim_oracle_movielens.json").read_text())["systems"]
    assert found == {"ours": {"exposed_auc": [0.7, 0.8]}, "fuxi_din": {"exposed_auc": [0.65]}}
    assert "| **ours**, our SIM | 2 | .7500 ± .0707 |" in (tmp_path / "sim_oracle_movielens.md").read_text()


def test_unknown_system_offers_the_nearest(monkeypatch):
    monkeypatch.setattr("sys.argv", ["sim_oracle.py", "--systems", "fuxi_dinn"])
    with pytest.raises(ConfigError, match=r"fuxi_dinn.*did you mean 'fuxi_din'"):
        sim_oracle.main()


def test_table_names_every_measure():
    result = {"command": "x", "commit": "abc", "systems": {"ours": {"exposed_auc": [0.7], "ece": [0.01]}}}
    assert "| | seeds | exposed_auc | ece |" in as_markdown(result)
