"""Two stages: a policy proposes, a reward model has a say in the order. No training, one more model to serve.

    score of candidate i = log pi(i | context) + weight * logit r(i)

the order of the KL-regularised optimum pi* ~ pi r-odds^weight inside the beam (METHODS section 7): weight 0 is the
policy's own order, a large one the reward model's.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from genrec_rl.decoding.recommender import Recommender
from genrec_rl.errors import ConfigError
from genrec_rl.rewards.calibration import log_odds
from genrec_rl.rewards.protocol import RewardModel
from genrec_rl.rewards.scoring import GatedReward, score_candidates
from genrec_rl.types import Context, Rollouts


def rerank(
    proposed: Rollouts, reward_model: RewardModel | GatedReward, contexts: Sequence[Context], *, weight: float
) -> Rollouts:
    """Return proposals in their new order; ``log_probs_PG`` then holds the scores that order them."""
    rewards_PG = torch.from_numpy(score_candidates(reward_model, contexts, proposed.rows_PG.numpy()))
    return reorder(proposed, proposed.log_probs_PG + weight * log_odds(rewards_PG))


def reorder(proposed: Rollouts, scores_PG: Float[Tensor, "P G"]) -> Rollouts:
    """Return proposals by falling score, which then stands in ``log_probs_PG``; of equal ones the earlier first."""
    order_PG = scores_PG.argsort(dim=1, descending=True, stable=True)
    return Rollouts(
        sids_PGL=proposed.sids_PGL.take_along_dim(order_PG[..., None], dim=1),
        rows_PG=proposed.rows_PG.take_along_dim(order_PG, dim=1),
        log_probs_PG=scores_PG.take_along_dim(order_PG, dim=1),
    )


class Reranker:
    """Recommends what a policy proposes, in an order that a reward model has a say in.

    Args:
        recommender: the policy behind its beam search.
        reward_model: scores in [0, 1].
        weight: of the reward's log-odds, against the policy's log-probability.
    """

    def __init__(self, recommender: Recommender, reward_model: RewardModel, *, weight: float) -> None:
        check_weight(weight)
        self.recommender = recommender
        self.reward_model = reward_model
        self.weight = weight

    def recommend(self, contexts: Sequence[Context], *, k: int, constrained: bool) -> Rollouts:
        """Return the policy's k answers in their new order."""
        proposed = self.recommender.recommend(contexts, k=k, constrained=constrained)
        return rerank(proposed, self.reward_model, contexts, weight=self.weight)


def check_weight(weight: float) -> None:
    """Refuse a weight that would put the worst first.

    Raises:
        ConfigError: when it is negative, infinite or no number.
    """
    if not 0 <= weight < math.inf:
        raise ConfigError(f"rerank weight {weight} must be finite and at least 0: below, the worst come first")
