import json
import pickle

import pytest
import torch

from benchmarks import gr4ad
from benchmarks.gr4ad import Settings, UpTo, as_markdown, cells_of, config_of, of_data, requests_per_second, step
from benchmarks.gr4ad_rows import PAIRS, POLICIES, ROWS, Aligned
from genrec_rl.decoding.recommender import BeamRecommender
from genrec_rl.types import NO_ITEM
from tests.fixtures import make_catalog, make_context, make_policy


def test_each_policy_is_made_after_what_it_is_made_of():
    order = [*cells_of(Settings(), 0)]
    for name, spec in POLICIES.items():
        before = order[: order.index(f"policy_{name}")]
        assert f"sids_{spec.sids}" in before
        assert not isinstance(spec, Aligned) or {f"policy_{spec.start}", "reward"} <= {*before}
    for row in ROWS:
        assert f"policy_{row.policy}" in order[: order.index(row.name)]


def test_side_by_side_each_cell_waits_for_what_it_reads():
    cells = cells_of(Settings(), 0)
    waits = {name: {other for other in cells if cells[other].folder in cell.needs} for name, cell in cells.items()}
    assert waits["policy_base"] == {"sids_plain"}
    assert waits["reward"] == {"policy_vsl"}
    assert waits["policy_lazy_unified"] == {"policy_lazy", "reward"}
    assert waits["dynamic"] == waits["speed_dynamic"] == {"policy_unified"}
    order = [*cells]
    assert all(order.index(other) < order.index(name) for name, others in waits.items() for other in others)


def test_what_is_timed_has_nothing_beside_it(monkeypatch):
    asked = []
    monkeypatch.setattr(gr4ad, "work_off", lambda cells, jobs=1: asked.append((jobs, {cell.name for cell in cells})))
    monkeypatch.setattr(gr4ad, "report", lambda settings: None)
    monkeypatch.setattr("sys.argv", ["gr4ad.py", "--seeds", "0", "1", "--jobs", "3"])
    gr4ad.main()
    (jobs, trained), (jobs_of_timed, timed) = asked
    assert (jobs, jobs_of_timed) == (3, 1)
    assert timed == {f"speed_{row.name}, seed {seed}" for row in ROWS for seed in (0, 1)}
    assert {"policy_vsl, seed 1", "unified, seed 0"} <= trained
    assert not trained & timed


def test_cells_can_be_done_in_other_processes():
    for cell in cells_of(Settings(), 0).values():
        assert pickle.loads(pickle.dumps(cell.run)).args == cell.run.args


def test_pairs_are_of_rows():
    names = {row.name for row in ROWS}
    assert {name for pair in PAIRS for name in pair} <= names


def test_a_changed_start_makes_what_follows_again(monkeypatch):
    before = cells_of(Settings(), 0)
    changed = dict(POLICIES) | {"vsl": POLICIES["ua_sid"]}
    monkeypatch.setattr(gr4ad, "POLICIES", changed)
    after = cells_of(Settings(), 0)
    moved = {name for name in before if before[name].key != after[name].key}
    rows = ("vsl", "vsl_dpo", "vsl_grpo", "vsl_rspo", "unified", "dynamic", "lazy_ar")
    assert moved == {
        *("policy_vsl", "reward", "policy_vsl_dpo", "policy_vsl_grpo", "policy_vsl_rspo", "policy_unified"),
        *("policy_lazy_unified", *rows, *(f"speed_{row}" for row in rows)),
    }


@pytest.mark.parametrize("data", ["synthetic", "beauty"])
def test_its_settings_are_those_of_the_tables_and_of_rl(data):
    assert all(config_of(Settings(data=data), spec).is_file() for spec in POLICIES.values())


def test_speed_counts_requests_a_cpu_second():
    catalog = make_catalog()
    recommender = BeamRecommender(make_policy(catalog), catalog=catalog, beam_widths=(2, 4, 8))
    assert requests_per_second(recommender, [make_context([1, 2])] * 3, rounds=1) > 0


def test_places_that_narrow_levels_leave_empty_hold_no_item_and_are_no_invalid_sids():
    catalog = make_catalog()
    narrow = BeamRecommender(make_policy(catalog), catalog=catalog, beam_widths=(1, 1, 8))
    found = UpTo(narrow).recommend([make_context([1, 2])], k=8, constrained=True)
    is_empty = found.rows_PG == NO_ITEM
    assert found.rows_PG.shape == found.log_probs_PG.shape == found.sids_PGL.shape[:2] == (1, 8)
    assert is_empty.any()
    assert not is_empty.all()
    assert (is_empty == (found.log_probs_PG == -torch.inf)).all()


def test_what_one_data_set_left_in_the_file_is_told_from_the_other():
    row = {"NDCG@10": 1, "beauty:NDCG@10": 2}
    assert of_data({"base": row}, "") == {"base": {"NDCG@10": 1}}
    assert of_data({"base": row}, "beauty:") == {"base": {"beauty:NDCG@10": 2}}


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_report_of_one_data_set_leaves_the_other_as_it_was(monkeypatch, tmp_path, has_begun):
    made = {"command": "earlier", "commit": "0" * 12, "seeds": [0, 1]}
    earlier = {"systems": {"base": {"NDCG@10": [0.1]}}, "paired": {}, "made": {"synthetic": made}}
    (tmp_path / "gr4ad.json").write_text(json.dumps(earlier))
    monkeypatch.setattr(gr4ad, "RESULTS", tmp_path)
    monkeypatch.setattr(gr4ad, "seeds_done", lambda data: [2] if data == "beauty" or has_begun else [])
    rows = {"base": {"NDCG@10": [0.3]}}
    monkeypatch.setattr(gr4ad, "measured", lambda settings: ({} if settings.data == "synthetic" else rows, {}))
    gr4ad.report(Settings(data="beauty"))
    found = json.loads((tmp_path / "gr4ad.json").read_text())
    assert found["systems"] == {"base": {"NDCG@10": [0.1], "beauty:NDCG@10": [0.3]}}
    assert found["made"]["synthetic"] == made
    assert found["seeds"] == [0, 1, 2]
    assert "Written by `earlier`" in (tmp_path / "gr4ad.md").read_text()


def test_a_report_of_nothing_leaves_the_file_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(gr4ad, "RESULTS", tmp_path)
    monkeypatch.setattr(gr4ad, "seeds_done", lambda _: [])
    gr4ad.report(Settings())
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(("name", "value"), [("UA_SID", ()), ("FAST_BEAMS", 256), ("BEAMS", 32)])
def test_cells_are_made_again_with_other_constants(monkeypatch, name, value):
    before = cells_of(Settings(), 0)
    monkeypatch.setattr(gr4ad, name, value)
    assert any(made.key != before[cell].key for cell, made in cells_of(Settings(), 0).items())


def test_the_table_holds_rows_in_the_papers_order_and_leaves_out_what_is_not_done():
    row = {"NDCG@10": [0.1, 0.3], "HaR@10": [0.0, 0.0], "requests_per_s": [10.0, 20.0]}
    row |= {f"beauty:{metric}": values[:1] for metric, values in row.items()}
    result = {
        "made": {data: {"command": data, "commit": "0" * 12} for data in ("synthetic", "beauty")},
        "systems": {"vsl": row, "base": row},
        "paired": {"vsl-base": {"NDCG@10": {"diff": 0.1, "lo": 0.0, "hi": 0.2}}},
    }  # fmt: skip
    lines = as_markdown(result).splitlines()
    assert lines[6].startswith(
        "| **base**, running target, plain SIDs | 2 | .2000 ± .1414 |  |  | .0000 ± .0000 | 15.0 |"
    )
    assert lines[7].startswith("| **vsl**")
    assert lines[6].count("|") == lines[7].count("|") == lines[4].count("|")
    assert "- vsl - base: NDCG@10 +0.1000 [+0.0000, +0.2000]" in lines
    beauty = lines[lines.index("## Amazon Beauty, pages") :]
    assert beauty[6].startswith("| **base**, running target, plain SIDs | 1 | .1000 |  |  | .0000 | 10.0 |")
    assert not any(line.startswith("- vsl") for line in beauty)


@pytest.mark.parametrize(
    ("lo", "hi", "verdict"),
    [(0.01, 0.2, "helps"), (-0.2, -0.01, "hurts"), (0.0, 0.2, "no change"), (-1, 1, "no change")],
)
def test_a_step_helps_only_with_an_interval_above_nothing(lo, hi, verdict):
    unified, base = (next(row for row in ROWS if row.name == name) for name in ("unified", "base"))
    of = {"beauty:NDCG@10": {"diff": 0.1, "lo": lo, "hi": hi}}
    paired = {"unified-vsl_rspo": of, "lazy_ar-base": of}
    assert step({"paired": paired}, unified, "beauty:").startswith(verdict)
    assert "to vsl_rspo +0.1000 [" in step({"paired": paired}, unified, "beauty:")
    assert step({"paired": paired}, unified, "") == step({"paired": paired}, base, "beauty:") == ""
