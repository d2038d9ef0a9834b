import numpy as np
import pytest
import torch
from accelerate import Accelerator

from genrec_rl.decoding.validation import Proposals
from genrec_rl.errors import ConfigError
from genrec_rl.rl.diagnostics import MAGNET_COLUMNS, HackingWatch, concentration, first_illegal_level
from genrec_rl.rl.rollouts import RolloutScorer
from genrec_rl.types import NO_ITEM, Rollouts
from tests.fixtures import CODES, make_example


class ByRow:
    """Row r is worth r * slope."""

    fingerprint = "by row"

    def __init__(self, slope=0.05):
        self.slope = slope

    def score(self, contexts, candidates):
        return (candidates * self.slope).astype(np.float32)


def rollouts(rows, sids=None):
    rows = torch.tensor(rows)
    sids = torch.from_numpy(CODES)[rows] if sids is None else sids
    return Rollouts(sids_PGL=sids, rows_PG=rows, log_probs_PG=torch.zeros(rows.shape))


def test_first_illegal_level_of_hand_made_sids(catalog):
    sids = torch.tensor([[[0, 0, 1], [0, 0, 2], [0, 3, 0], [2, 1, 0], [-1, 0, 0], [0, -1, 0], [0, 0, 9]]])
    assert first_illegal_level(sids, catalog).tolist() == [[0, 3, 2, 2, 1, 2, 3]]


def test_every_sid_that_is_no_item_breaks_at_some_level_and_no_item_does(catalog):
    every = torch.cartesian_prod(*[torch.arange(-1, 5)] * 3)[None]
    assert torch.equal(first_illegal_level(every, catalog) > 0, catalog.rows_of(every) == NO_ITEM)


def test_concentration_of_hand_made_counts():
    found = concentration(np.array([2.0, 0, 0, 0]), np.array([2.0, 1, 1, 0]), np.array([10, 4, 0, 7]))
    assert found == {"coverage@10": 0.75, "distinct@1": 1.0, "top_item_share@10": 0.5, "mean_popularity@10": 6.0}
    assert concentration(np.zeros(4), np.zeros(4), np.ones(4, int))["top_item_share@10"] == 0


def watch(catalog, **settings):
    scorer = RolloutScorer(ByRow(), None, catalog)
    return HackingWatch(scorer, popularity=np.arange(12), group_size=4, **settings)


PAGES = [make_example([0], [1]), make_example([2], [11])]
PROPOSED = rollouts([[1, *range(2, 11)], [1, *range(2, 11)]])


def test_proxy_and_gold_of_the_first_ten_and_the_magnets(catalog):
    looking = watch(catalog, gold_model=ByRow(0.01))
    found = looking(Proposals(PAGES, PROPOSED, None), Accelerator(cpu=True))
    assert found["R@1"] == pytest.approx(0.05)
    assert found["R_mean@10"] == pytest.approx(0.05 * 5.5)
    assert found["gold_mean@10"] == pytest.approx(0.01 * 5.5)
    assert found["coverage@10"] == pytest.approx(10 / 12)
    assert found["distinct@1"] == 1
    assert found["positive_in_group_rate"] == 0.5
    table = looking.magnets([f"title {i}" for i in range(12)])
    assert len(table) == 10
    assert dict(zip(MAGNET_COLUMNS, table[0], strict=True)) == {
        "rank": 1, "item_id": "item1", "title": "title 1", "share": 0.1, "popularity": 1, "reward": 0.05,
        "gold": 0.01,
    }  # fmt: skip


def test_without_gold_there_is_none_and_free_beams_are_counted_by_level(catalog):
    sids = torch.tensor([[0, 0, 2]] * 3 + [[0, 0, 0]] * 7).expand(2, -1, -1)
    free = rollouts([[NO_ITEM] * 3 + [0] * 7] * 2, sids)
    found = watch(catalog)(Proposals(PAGES, PROPOSED, free), Accelerator(cpu=True))
    assert [found[f"har@10_level_{level}"] for level in (1, 2, 3)] == pytest.approx([0, 0, 0.3])
    assert not [name for name in found if name.startswith("gold")]


def test_groups_are_of_beams_decoded_as_rollouts_are(catalog):
    proposals = Proposals(PAGES, PROPOSED, rollouts([[0] * 10] * 2))
    free, constrained = (
        watch(catalog, constrained=is_constrained)(proposals, Accelerator(cpu=True))["positive_in_group_rate"]
        for is_constrained in (False, True)
    )
    assert (free, constrained) == (0, 0.5)


class Two:
    """Stands in for accelerate on two processes: what the other one sends is added."""

    device = torch.device("cpu")

    def __init__(self, other=0.0):
        self.other, self.sent = other, None

    def reduce(self, x, reduction):
        assert reduction == "sum"
        self.sent = x
        return x + self.other


def test_a_process_without_pages_finds_what_the_other_one_does(catalog):
    has_pages, has_none = watch(catalog), watch(catalog)
    assert has_none.magnets([]) == []
    first = Two()
    found = has_pages(Proposals(PAGES, PROPOSED, None), first)
    assert has_none(None, Two(first.sent)) == found
    assert has_none.magnets(["title"] * catalog.n_items) == has_pages.magnets(["title"] * catalog.n_items)


def test_what_was_not_measured_is_left_out_and_not_said_to_be_0(catalog):
    found = watch(catalog)(Proposals(PAGES, PROPOSED, None), Accelerator(cpu=True))
    assert not any(name.startswith("har@10") for name in found)


def test_popularity_of_another_catalogue_is_refused(catalog):
    with pytest.raises(ConfigError, match="popularity of 3 items"):
        HackingWatch(RolloutScorer(ByRow(), None, catalog), popularity=np.ones(3, int), group_size=4)
