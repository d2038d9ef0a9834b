import json

import pytest

from benchmarks.tables.scaling import (
    Curve,
    count_parameters,
    draw_curves,
    draw_targets,
    fit_power_law,
    read_curve,
    scaling_facts,
)
from genrec_rl.errors import DataError
from genrec_rl.models.qwen2 import GenRecQwen2Config, GenRecQwen2ForCausalLM
from tests.fixtures import make_catalog, make_policy

SIZES = (100_000, 400_000, 1_600_000, 6_400_000, 25_600_000)


def curve(n_parameters: int, loss: float) -> Curve:
    return Curve(n_parameters, [1.0, 2.0], [loss + 1, loss], [1e6, 2e6], [60.0, 120.0])


def test_power_law_is_found_again():
    law = fit_power_law([curve(n, 2 + 0.5 * (n / 1e6) ** -0.3) for n in SIZES])
    assert (law.floor, law.scale, law.exponent) == pytest.approx((2, 0.5, 0.3), rel=1e-3)


def test_facts_hold_sizes_losses_and_law():
    facts = scaling_facts({"a": [curve(SIZES[0], 3.0), curve(SIZES[0], 3.5)], "b": [curve(SIZES[1], 2.0)]})
    assert facts == {
        "sizes": {
            "a": {"parameters": SIZES[0], "lowest_loss": [3.0, 3.5]},
            "b": {"parameters": SIZES[1], "lowest_loss": [2.0]},
        },
        "law": None,
    }
    law = scaling_facts({str(n): [curve(n, 2 + 0.5 * (n / 1e6) ** -0.3)] for n in SIZES})["law"]
    assert law == pytest.approx({"floor": 2, "scale": 0.5, "exponent": 0.3}, rel=1e-3)


def test_three_sizes_are_too_few_for_a_law():
    assert fit_power_law([curve(n, 2.0) for n in (*SIZES[:3], SIZES[0])]) is None


def test_curve_is_read_off_a_run(tmp_path):
    rows = [
        training_row(1, seconds=3.0),
        training_row(2, seconds=2.0) | {"eval/loss": 4.0},
        training_row(3, seconds=2.0),
        training_row(4, seconds=2.5) | {"eval/loss": 3.0},
    ]
    found = read_curve(write_run(tmp_path, rows))
    assert (found.epochs, found.losses, found.best) == ([0.5, 1.0], [4.0, 3.0], 3.0)
    assert (found.tokens, found.seconds) == ([140, 280], [5.0, 9.5])


def test_steps_that_a_resumed_run_did_again_count_once(tmp_path):
    rows = [training_row(step, seconds=1.0) for step in (1, 2, 3, 2, 3)]
    found = read_curve(write_run(tmp_path, [*rows, training_row(4, seconds=1.0) | {"eval/loss": 3.0}]))
    assert found.seconds == [4.0]


def test_size_is_that_of_the_network_and_needs_no_weights(tmp_path):
    folder = write_run(tmp_path, [])
    network = GenRecQwen2ForCausalLM(GenRecQwen2Config.from_pretrained(folder))
    assert count_parameters(folder) == sum(p.numel() for p in network.parameters()) > 1000
    assert not (folder / "model.safetensors").exists()


def training_row(step: int, *, seconds: float) -> dict[str, float]:
    """Four steps an epoch, 70 tokens a step."""
    counted = {"train/epoch": step / 4, "train/num_input_tokens_seen": 70 * step}
    return {"step": step, "train/seconds": seconds} | counted


def write_run(folder, rows):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_policy(make_catalog()).model.config.save_pretrained(folder)
    return folder


def test_run_without_evaluation_is_refused(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "train/loss": 1}) + "\n")
    with pytest.raises(DataError, match="no eval/loss"):
        read_curve(tmp_path)


def test_pictures_of_targets_are_drawn(tmp_path):
    draw_targets({"page": [curve(10, 3.0)], "item": [curve(10, 2.5), curve(10, 2.6)]}, tmp_path / "t.png")
    assert (tmp_path / "t.png").stat().st_size > 10_000


def test_picture_holds_all_sizes(tmp_path):
    draw_curves({str(n): [curve(n, 2 + n**-0.1)] for n in SIZES}, tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 10_000


def test_the_law_is_drawn_from_the_smallest_size_to_the_largest(tmp_path, monkeypatch):
    """Sizes over three orders of magnitude: limits of a linear axis begin below 0."""
    figures = []
    monkeypatch.setattr("benchmarks.tables.scaling._save", lambda figure, _: figures.append(figure))
    draw_curves({str(n): [curve(n, 2 + 0.5 * (n / 1e6) ** -0.3)] for n in SIZES}, tmp_path / "c.png")
    (law,) = (line for line in figures[0].axes[1].lines if len(line.get_xdata()) > 1)
    assert law.get_xdata()[[0, -1]] == pytest.approx([SIZES[0], SIZES[-1]])
    assert law.get_ydata()[-1] == pytest.approx(2 + 0.5 * 25.6**-0.3, rel=1e-3)
