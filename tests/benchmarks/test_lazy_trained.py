import pytest

from benchmarks.lazy_trained import GOALS, WAYS, Settings, as_markdown, cells_of, goal_of, time_in_turn
from genrec_rl.decoding.recommender import BeamRecommender
from tests.fixtures import make_catalog, make_context, make_policy

RESULT = {
    "command": "c",
    "commit": "0" * 12,
    "systems": {
        "plain": {"NDCG@10": [0.1, 0.1], "HR@10": [0.2], "HR@50": [0.3], "ms_per_request": [60.0]},
        "lazy": {"NDCG@10": [0.098, 0.1], "HR@10": [0.2], "HR@50": [0.3], "ms_per_request": [30.0]},
    },
    "paired": {},
}


def test_each_way_comes_after_its_policy_and_both_policies_have_one_depth():
    cells = cells_of(Settings(), 0)
    order = [*cells]
    for way, (name, widths) in WAYS.items():
        assert order.index(f"policy_{name}") < order.index(way)
        assert widths[-1] == 512
    arguments = [cells[f"policy_{name}"].facts["arguments"] for name in ("plain", "lazy")]
    assert arguments[1] == (*arguments[0], "--lazy_layers", "4")


def test_a_goal_is_met_by_speed_and_accuracy_together():
    goal = goal_of("lazy", RESULT)
    assert (goal["times_faster"], goal["met"]) == (2.0, True)
    assert goal["lost"] == pytest.approx(0.01)
    worse = RESULT | {"systems": RESULT["systems"] | {"lazy": RESULT["systems"]["lazy"] | {"NDCG@10": [0.097]}}}
    assert not goal_of("lazy", worse)["met"]
    slower = RESULT | {
        "systems": RESULT["systems"] | {"lazy": RESULT["systems"]["lazy"] | {"ms_per_request": [41.0]}}
    }
    assert not goal_of("lazy", slower)["met"]


def test_the_table_says_what_each_way_saves_and_loses():
    lines = as_markdown(RESULT | {"goals": {"lazy": goal_of("lazy", RESULT)}}).splitlines()
    assert "| **plain** | .1000 | .2000 | .3000 | 60.0 |  |  |  |" in lines
    assert f"| **lazy** | .0990 | .2000 | .3000 | 30.0 | 2.00 | {GOALS['lazy']} | +1.0% |" in lines


def test_ways_are_timed_in_turn(monkeypatch):
    catalog, asked = make_catalog(), []
    recommender = BeamRecommender(make_policy(catalog), catalog=catalog)
    monkeypatch.setattr(recommender, "propose", lambda contexts, widths, constrained: asked.append(widths))
    monkeypatch.setattr("benchmarks.lazy_trained.WAYS", {"a": ("plain", (2, 2, 2)), "b": ("plain", (2, 4, 8))})
    seconds = time_in_turn({"a": recommender, "b": recommender}, [make_context([1, 2])], rounds=1)
    assert {way: len(of_way) for way, of_way in seconds.items()} == {"a": 1, "b": 1}
    assert asked == [(2, 2, 2), (2, 4, 8)] * 2
