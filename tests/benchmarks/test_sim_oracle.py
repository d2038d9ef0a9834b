import json

import pytest

from benchmarks import sim_oracle
from benchmarks.sim_oracle import Settings, as_markdown, oracle_cells, report
from genrec_rl.errors import ConfigError


def test_a_cell_knows_its_system_seed_and_settings():
    one, other = (oracle_cells(Settings(systems=["fuxi_sim"], seeds=[0], epochs=n))[0] for n in (1, 2))
    assert one.folder == other.folder
    assert one.key != other.key
    assert len({made.key for made in oracle_cells(Settings())}) == 12


def test_how_many_at_a_time_does_not_make_other_cells():
    assert [made.key for made in oracle_cells(Settings(jobs=2))] == [made.key for made in oracle_cells(Settings())]


def test_table_has_means_of_what_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(sim_oracle, "RUNS", tmp_path)
    monkeypatch.setattr(sim_oracle, "RESULT", tmp_path / "sim_oracle.json")
    settings = Settings(systems=["ours", "fuxi_din"], seeds=[0, 1])
    for made, auc in zip(oracle_cells(settings)[:3], (0.7, 0.65, 0.8), strict=True):
        made.folder.mkdir(parents=True)
        (made.folder / "measures.json").write_text(json.dumps({"exposed_auc": auc}))
        (made.folder / "cell.json").write_text(json.dumps({"key": made.key, "seconds": 1.0}))
    report(settings)
    found = json.loads((tmp_path / "sim_oracle.json").read_text())["systems"]
    assert found == {"ours": {"exposed_auc": [0.7, 0.8]}, "fuxi_din": {"exposed_auc": [0.65]}}
    assert "| **ours**, our SIM | 2 | .7500 ± .0707 |" in (tmp_path / "sim_oracle.md").read_text()


def test_unknown_system_offers_the_nearest(monkeypatch):
    monkeypatch.setattr("sys.argv", ["sim_oracle.py", "--systems", "fuxi_dinn"])
    with pytest.raises(ConfigError, match=r"fuxi_dinn.*did you mean 'fuxi_din'"):
        sim_oracle.main()


def test_table_names_every_measure():
    result = {"command": "x", "commit": "abc", "systems": {"ours": {"exposed_auc": [0.7], "ece": [0.01]}}}
    assert "| | seeds | exposed_auc | ece |" in as_markdown(result)
