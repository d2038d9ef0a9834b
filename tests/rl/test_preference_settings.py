import math

import pytest
import torch

from genrec_rl.errors import ConfigError
from genrec_rl.rl.config import GRPOSRConfig
from genrec_rl.rl.preference import dpo, rspo, s_dpo


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy_term": "rspo", "rank_by": "luck"}, "rank_by 'luck' is not one of reward, model"),
        ({"policy_term": "rspo", "preference_gain": "exp"}, "preference_gain 'exp' is not one of linear, log1p"),
        ({"policy_term": "rspo", "preference_beta": 0.0}, "preference_beta is 0.0; it must be a positive number"),
        ({"policy_term": "dpo", "preference_beta": math.nan}, "preference_beta is nan"),
        ({"policy_term": "rspo", "reference_delta": math.nan}, "reference_delta is nan"),
        ({"policy_term": "rspo", "unified": True, "z_max": -1.0}, "z_max is -1.0"),
        ({"policy_term": "rspo", "z_max": 2.0}, "z_max 2.0 is read with unified alone"),
        ({"policy_term": "rspo", "unified": True, "nll_coef": 0.0}, "unified weighs the NLL of positives"),
        ({"policy_term": "rspo", "unified": True, "anchor_positives": False}, "set anchor_positives: true"),
        ({"policy_term": "dpo", "unified": True}, "unified True is not read by policy_term dpo.*policy_term rspo"),
        ({"policy_term": "s_dpo", "rank_by": "model"}, "rank_by model is not read by policy_term s_dpo"),
        (
            {"preference_beta": 1.0},
            "not read by policy_term grpo: leave it at 0.5, or set policy_term rspo or dpo or",
        ),
        ({"policy_term": "dpo", "beta": 0.1}, r"beta 0.1 is of TRL's policy loss.*of preferences: preference_beta"),
        ({"policy_term": "rspo", "delta": 5.0}, r"delta 5.0 is of TRL's policy loss.*of rspo: reference_delta"),
    ],
)
def test_preferences_that_cannot_be_or_are_not_read_are_refused(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        GRPOSRConfig(output_dir=str(tmp_path), **settings)


def test_rollouts_of_the_start_may_be_preferred(tmp_path):
    for term in ("rspo", "dpo", "s_dpo"):
        args = GRPOSRConfig(output_dir=str(tmp_path), policy_term=term, rollouts_from="start")
        assert args.rollouts_from == "start"


def test_term_chooses_the_loss_and_hands_over_its_settings(tmp_path):
    log_probs, start = torch.tensor([[-2.0, -5.0, -3.0]]), torch.tensor([[-4.0, -2.0, -3.0]])
    values = torch.tensor([[0.1, 0.9, 0.4]])
    open_points = {"reference_delta": -0.5, "rank_by": "model", "preference_gain": "log1p"}
    expected = {
        "rspo": rspo(log_probs, start, values, beta=0.8, delta=-0.5, rank_by="model", gain="log1p"),
        "dpo": dpo(log_probs, start, values, beta=0.8),
        "s_dpo": s_dpo(log_probs, start, values, beta=0.8),
    }
    for term, wanted in expected.items():
        settings = {"policy_term": term, "preference_beta": 0.8} | (open_points if term == "rspo" else {})
        found = GRPOSRConfig(output_dir=str(tmp_path), **settings).preference_loss()(log_probs, start, values)
        assert torch.equal(found.loss_PG, wanted.loss_PG)
