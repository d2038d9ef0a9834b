import numpy as np

from benchmarks.rl.arms import ARMS, TRIED
from benchmarks.rl.pictures import CURVES, GAINED, draw, gains, smoothed, style, told

RESULT = {
    "systems": {"sft": {}, "grpo": {}, "listwise_kl": {}},
    "paired": {
        "grpo-sft": {"NDCG@10": {"diff": -0.1, "lo": -0.2, "hi": -0.05}},
        "listwise_kl-sft": {
            "NDCG@10": {"diff": 0.1, "lo": -0.1, "hi": 0.3},
            "HaR@10": {"diff": 0.0, "lo": 0.0, "hi": 0.0},
        },
    },
}


def test_gains_are_differences_to_sft_of_the_arms_that_have_them():
    assert [*gains(RESULT, "NDCG@10")] == ["grpo", "listwise_kl"]
    assert gains(RESULT, "HaR@10") == {"listwise_kl": {"diff": 0.0, "lo": 0.0, "hi": 0.0}}
    assert gains(RESULT, "gold@10") == {}


def test_a_start_and_an_end_are_no_curve():
    curves = {"grpo": ([0, 10], [1.0, 2.0]), "listwise_kl": ([0, 5, 10], [1.0, 2.0, 3.0])}
    assert [*told(curves)] == ["listwise_kl"]


def test_a_long_curve_is_its_running_mean_and_a_short_one_itself():
    steps = np.arange(24.0)
    x, y = smoothed(steps, np.tile([0.0, 3.0, 6.0], 8))
    np.testing.assert_allclose(y, 3.0)
    np.testing.assert_allclose(x, steps[1:-1])
    assert smoothed(steps[:5], steps[:5])[1].tolist() == [0, 1, 2, 3, 4]


def test_a_family_shares_its_colour_and_what_is_left_out_its_dashes():
    assert style("grpo_sr")[0] == style("grpo_sr_no_gate")[0] != style("grpo")[0]
    assert style("grpo_no_gate")[1] == style("grpo_sr_no_gate")[1] != style("grpo")[1]
    drawn = set(ARMS) - {"sft", *TRIED}
    assert len({style(name) for name in drawn}) == len(drawn)


def test_a_picture_is_drawn_with_and_without_curves(tmp_path):
    curves = {"eval/ndcg@10": {"grpo": ([0, 1, 2], [0.1, 0.2, 0.3])}}
    for name, of in (("with.png", curves), ("without.png", {})):
        draw(RESULT, of, tmp_path / name, title="market")
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert set(curves) <= set(CURVES)
    assert "NDCG@10" in GAINED
