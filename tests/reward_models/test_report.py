import io

import numpy as np
import pytest
from rich.console import Console

from genrec_rl.rewards.gates import GateReport
from genrec_rl.types import Action, Context, Example
from reward_models.candidates import NegativeSampler
from reward_models.report import judge, plot_reliability, print_report
from reward_models.scripted import Popularity

NOTHING = np.empty(0, dtype=np.int64)
POPULARITY = np.array([1, 2, 4, 8, 16])
SAMPLER = NegativeSampler(POPULARITY, popular_share=0.5)


def pages(exposed=True):
    """Everyone takes the most popular item, and leaves the least popular one."""
    actions = [Action.CLICK, Action.EXPOSE] if exposed else [Action.CLICK]
    items = [4, 0][: len(actions)]
    return [
        Example(
            f"r{p}", Context(f"u{p}", 9, NOTHING, NOTHING, NOTHING), np.array(items), np.array(actions, dtype=np.int8)
        )
        for p in range(30)
    ]


def report(examples, model=None):
    return judge(
        model or Popularity(POPULARITY),
        examples,
        sampler=SAMPLER,
        popularity=POPULARITY,
        negatives_per_positive=1,
        seed=0,
    )


def test_a_model_that_is_popularity_equals_its_bar():
    for part in report(pages()).slices.values():
        assert part.model == part.popularity
        assert part.model.gauc.mean == 1


class Reversed(Popularity):
    def score(self, contexts, candidates):
        return 1 - super().score(contexts, candidates)


def test_a_model_that_ranks_the_wrong_way_round_shows_it():
    assert report(pages(), Reversed(POPULARITY)).slices["exposed"].model.auc.mean == 0


def test_a_log_without_exposures_has_no_slice_of_them():
    assert set(report(pages()).slices) == {"exposed", "uniform", "popular"}
    assert set(report(pages(exposed=False)).slices) == {"uniform", "popular"}


def test_calibration_is_over_positives_exposed_and_drawn():
    quality = report(pages())
    assert quality.calibration.n_candidates == 30 * 3
    assert quality.calibration.base_rate == pytest.approx(1 / 3)
    assert sum(quality.reliability.sizes) == 30 * 3


def test_every_number_has_a_name_for_the_log():
    flat = report(pages()).flat()
    assert flat["reward/exposed/model/gauc"] == 1
    assert {"reward/ece", "reward/slope", "reward/uniform/popularity/auc"} < set(flat)


def test_tables_and_plot_are_made(tmp_path):
    out = io.StringIO()
    gates = {"embedding": GateReport(tau=0.25, positives_pass=0.95, random_pass=0.5, n_positives=30)}
    print_report(Console(file=out, width=120), report(pages()), gates, seconds=1.0)
    for part in ("30 pages of 30 held-out users", "exposed", "1.000 [1.000, 1.000]", "95.0%", "50.0%"):
        assert part in out.getvalue()
    plot_reliability(report(pages()), tmp_path / "reliability.png", name="SIM")
    assert (tmp_path / "reliability.png").read_bytes().startswith(b"\x89PNG")
