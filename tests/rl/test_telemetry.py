import pytest
import torch

from genrec_rl.rewards.calibration import calibrate_rewards
from genrec_rl.rl.telemetry import TABLE_COLUMNS, group_totals, rollout_metrics, rollout_table
from genrec_rl.types import NO_ITEM, Rollouts
from tests.fixtures import make_example

ROWS = torch.tensor([[0, 1, NO_ITEM, 3], [0, 2, 2, NO_ITEM]])
REWARDS = calibrate_rewards(
    torch.tensor([[0.2, 0.4, 0.0, 0.8], [0.5, 0.5, 0.5, 0.0]]),
    torch.tensor([[True, True, False, False], [False, False, False, False]]),
    torch.tensor([[True, False, False, False], [False, True, False, False]]),
)


def test_group_totals_of_hand_made_groups():
    raw = torch.tensor([[0.2, 0.4], [0.5, 0.0]])
    relevant = torch.tensor([[True, False], [False, False]])
    hits = torch.tensor([[False, True], [False, False]])
    found = group_totals(calibrate_rewards(raw, relevant, hits), torch.tensor([[1, 2], [3, NO_ITEM]]))
    # the first group's hit earns the best, .2: no spread in either group
    assert found == {
        "gate_pass_rate": (1.0, 3.0),
        "fully_gated_share": (1.0, 2.0),
        "zero_advantage_share": (2.0, 2.0),
        "positive_in_group_rate": (1.0, 2.0),
        "group_std": (0.0, 2.0),
    }


def test_hand_worked_summary():
    found = rollout_metrics(REWARDS, ROWS, n_items=8)
    assert found == pytest.approx(
        {
            "reward/raw": 2.9 / 8,
            "reward/gated": 0.6 / 8,
            "reward/anchored": 0.8 / 8,
            "reward/best_in_group": 0.2,
            "reward/group_std": torch.tensor([0.4, 0.4, 0.0, 0.0]).std().item() / 2,
            "rollout/hallucination_rate": 2 / 8,
            "rollout/gate_pass_rate": 2 / 6,
            "rollout/fully_gated_share": 0.5,
            "rollout/positive_in_group_rate": 1.0,
            "rollout/zero_advantage_share": 0.5,
            "rollout/coverage": 4 / 8,
            "rollout/distinct_at_1": 0.5,
        }
    )


def test_table_names_items_by_title_and_says_where_there_is_none():
    rollouts = Rollouts(sids_PGL=torch.zeros(2, 4, 3, dtype=torch.long), rows_PG=ROWS, log_probs_PG=torch.zeros(2, 4))
    table = rollout_table([make_example([0], [1])] * 2, rollouts, REWARDS, list("abcdefgh"), users=1, ranks=3)
    assert [row[TABLE_COLUMNS.index("title")] for row in table] == ["a", "b", "(no such item)"]
    assert all(len(row) == len(TABLE_COLUMNS) for row in table)
