from dataclasses import replace

import numpy as np
import pytest

from genrec_rl.types import Action, Context, Example
from reward_models.candidates import NegativeSampler, label_proposals
from reward_models.report import judge
from reward_models.scripted import Constant, Popularity
from tests.fixtures import make_catalog

NOTHING = np.empty(0, dtype=np.int64)
POPULARITY = np.array([1, 2, 4, 8, 16])
SAMPLER = NegativeSampler(POPULARITY, popular_share=0.5)


def pages(exposed=True):
    """Everyone takes the most popular item, and leaves the least popular one."""
    actions = [Action.ORDER, Action.EXPOSE] if exposed else [Action.ORDER]
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


def test_every_slice_has_its_calibration_and_ties():
    found = report(pages())
    assert found.slices["exposed"].calibration.n_candidates == 60
    assert found.slices["uniform"].calibration.base_rate == pytest.approx(1 / 6)
    assert found.slices["exposed"].tie_share == 0
    assert report(pages(), Constant(0.5)).slices["exposed"].tie_share == 1


def test_popularity_bands_cover_what_calibration_covers():
    found = report(pages())
    assert sum(band.n_candidates for band in found.popularity_bands) == found.calibration.n_candidates


class Orders(Popularity):
    """Promises a click by popularity, an order never."""

    def probabilities(self, contexts, candidates):
        return {"click": super().score(contexts, candidates), "order": np.full(candidates.shape, 0.25)}

    def score(self, contexts, candidates):
        return self.probabilities(contexts, candidates)["click"] / 2


def test_probabilities_are_held_against_their_own_labels():
    found, plain = report(pages(), Orders(POPULARITY)), report(pages())
    assert found.calibration == plain.calibration
    assert found.order_calibration.base_rate == pytest.approx(1 / 3)
    assert plain.order_calibration is None
    assert found.flat()["reward/order/copc"] == pytest.approx(4 / 3)


def test_where_nothing_was_ordered_orders_have_no_calibration():
    clicked = [replace(page, actions=np.minimum(page.actions, Action.CLICK)) for page in pages()]
    assert report(clicked, Orders(POPULARITY)).order_calibration is None


def test_proposals_are_judged_and_calibrated_on_only_where_they_were_learnt():
    examples = pages()
    proposed = label_proposals(examples, np.tile([4, 3, 3, 0], (30, 1)), catalog=make_catalog())
    settings = {"sampler": SAMPLER, "popularity": POPULARITY, "negatives_per_positive": 1, "seed": 0}
    learnt, judged = (
        judge(Popularity(POPULARITY), examples, **settings, proposed=proposed, learnt_proposals=learnt)
        for learnt in (True, False)
    )
    assert learnt.slices["proposed"] == judged.slices["proposed"]
    assert learnt.slices["proposed"].tie_share == pytest.approx(1 / 6)
    assert learnt.calibration == learnt.slices["proposed"].calibration
    assert judged.calibration == report(examples).calibration
