import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks.tables.scaling import Curve, draw_curves, fit_power_law, read_curve
from genrec_rl.errors import DataError

SIZES = (100_000, 400_000, 1_600_000, 6_400_000, 25_600_000)


def curve(n_parameters: int, loss: float) -> Curve:
    return Curve(n_parameters, [1.0, 2.0], [loss + 1, loss])


def test_power_law_is_found_again():
    law = fit_power_law([curve(n, 2 + 0.5 * (n / 1e6) ** -0.3) for n in SIZES])
    assert (law.floor, law.scale, law.exponent) == pytest.approx((2, 0.5, 0.3), rel=1e-3)


def test_three_sizes_are_too_few_for_a_law():
    assert fit_power_law([curve(n, 2.0) for n in (*SIZES[:3], SIZES[0])]) is None


def test_curve_is_read_off_a_run(tmp_path):
    rows = [{"step": 1, "train/epoch": 0.5}, {"eval/loss": 4.0}, {"train/epoch": 1.0}, {"eval/loss": 3.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_file({"a": np.zeros((3, 4)), "b": np.zeros(5)}, tmp_path / "model.safetensors")
    found = read_curve(tmp_path)
    assert (found.n_parameters, found.epochs, found.losses, found.best) == (17, [0.5, 1.0], [4.0, 3.0], 3.0)


def test_run_without_evaluation_is_refused(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"train/loss": 1}) + "\n")
    with pytest.raises(DataError, match="no eval/loss"):
        read_curve(tmp_path)


def test_picture_holds_all_sizes(tmp_path):
    draw_curves({str(n): [curve(n, 2 + n**-0.1)] for n in SIZES}, tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 10_000
