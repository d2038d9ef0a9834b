import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba

from benchmarks.rl.arms import ARMS, TRIED
from benchmarks.rl.pictures import draw, draw_curves, draw_gains, gains, smoothed, style, told

GRPO = {"diff": -0.1, "lo": -0.2, "hi": -0.05}
LISTWISE = {"diff": 0.1, "lo": -0.1, "hi": 0.3}
RESULT = {
    "systems": {name: {"NDCG@10": [0.1]} for name in ("sft", "grpo", "listwise_kl")},
    "paired": {
        "grpo-sft": {"NDCG@10": GRPO},
        "listwise_kl-sft": {"NDCG@10": LISTWISE, "HaR@10": {"diff": 0.0, "lo": 0.0, "hi": 0.0}},
    },
}


@pytest.fixture
def axes():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def test_gains_are_differences_to_sft_of_the_arms_that_have_them():
    assert [*gains(RESULT, "NDCG@10")] == ["grpo", "listwise_kl"]
    assert gains(RESULT, "HaR@10") == {"listwise_kl": {"diff": 0.0, "lo": 0.0, "hi": 0.0}}
    assert gains(RESULT, "gold@10") == {}


def test_a_start_and_an_end_are_no_curve():
    curves = {"grpo": ([0, 10], [1.0, 2.0]), "listwise_kl": ([0, 5, 10], [1.0, 2.0, 3.0])}
    assert [*told(curves)] == ["listwise_kl"]


def test_a_long_curve_is_its_running_mean_over_an_eighth():
    steps = np.arange(32.0)
    x, y = smoothed(steps, steps % 4)
    np.testing.assert_allclose(y, 1.5)
    np.testing.assert_allclose(x, np.arange(1.5, 30.0))


@pytest.mark.parametrize("n", [5, 19])
def test_a_short_curve_is_drawn_as_it_is(n):
    steps = np.arange(float(n))
    assert smoothed(steps, steps**2)[1].tolist() == (steps**2).tolist()


def test_twenty_points_are_long():
    assert len(smoothed(np.arange(20.0), np.arange(20.0))[1]) == 19


def test_a_family_shares_its_colour_and_what_is_left_out_its_dashes():
    assert style("grpo_sr")[0] == style("grpo_sr_no_gate")[0] != style("grpo")[0]
    assert style("grpo_no_gate")[1] == style("grpo_sr_no_gate")[1] != style("grpo")[1]
    drawn = set(ARMS) - {"sft", "grpo_sr_few_steps", *TRIED}
    assert len({style(name) for name in drawn}) == len(drawn)


def test_a_row_has_its_own_arms_name_and_difference_and_is_hollow_where_the_interval_holds_0(axes):
    draw_gains(axes, {"grpo": 1, "best_of_n": 2, "listwise_kl": 3}, {"grpo": GRPO, "listwise_kl": LISTWISE}, title="")
    labels = {
        int(place): text.get_text() for place, text in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    }
    dots = {labels[int(line.get_ydata()[0])]: line for line in axes.lines if line.get_marker() == "o"}
    assert {name: line.get_xdata()[0] for name, line in dots.items()} == {"grpo (1)": -0.1, "listwise_kl (3)": 0.1}
    assert to_rgba(dots["grpo (1)"].get_markerfacecolor()) == to_rgba(style("grpo")[0])
    assert to_rgba(dots["listwise_kl (3)"].get_markerfacecolor()) == to_rgba("white")
    assert labels[0] == "grpo (1)"
    assert axes.get_ylim()[0] > axes.get_ylim()[1]


def test_the_interval_is_drawn_from_low_to_high(axes):
    draw_gains(axes, {"grpo": 1}, {"grpo": GRPO}, title="")
    assert any([*line.get_xdata()] == [-0.2, -0.05] for line in axes.lines)


def test_a_curve_is_drawn_from_its_first_step_to_its_last(axes):
    draw_curves(axes, {"grpo": ([0, 10, 20], [0.3, 0.2, 0.1])}, title="")
    (line,) = axes.lines
    assert ([*line.get_xdata()], [*line.get_ydata()]) == ([0, 10, 20], [0.3, 0.2, 0.1])
    assert line.get_label() == "grpo"


def test_a_picture_is_drawn_with_and_without_curves_and_not_of_nothing(tmp_path):
    curves = {"eval/ndcg@10": {"grpo": ([0, 1, 2], [0.1, 0.2, 0.3])}}
    for name, of in (("with.png", curves), ("without.png", {})):
        draw(RESULT, of, tmp_path / name, title="market")
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    draw({"systems": {}, "paired": {}}, {}, tmp_path / "with.png", title="market")
    assert not (tmp_path / "with.png").exists()
