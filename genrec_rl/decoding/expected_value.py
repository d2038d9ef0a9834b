"""What a policy expects an item to be worth, read off the value tokens that it learnt to write behind it (VSL).

    E[v | y, X] = sum over buckets b of p(b | y, X) * mean training value of b
    score       = log p(y | X) + weight * log1p(E[v | y, X])

One more step of a branch that holds the whole item; beams are still the item's L tokens.

    P requests   G items of each   L levels   B buckets
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from genrec_rl.decoding.recommender import BeamRecommender
from genrec_rl.decoding.rerank import check_weight, reorder
from genrec_rl.errors import ConfigError
from genrec_rl.models.policy import Policy
from genrec_rl.models.trunk import Branches, Trunk, in_eval_mode, read_trunk
from genrec_rl.types import NO_ITEM, Context, Rollouts


def value_probabilities(policy: Policy, trunk: Trunk, rows_PG: Int[np.ndarray, "P G"]) -> Float[Tensor, "P G B"]:
    """Return each item's probabilities over the value tokens alone, behind the prompt that was read.

    Raises:
        ConfigError: for a policy without value tokens.
    """
    tokens = policy.vocab.value_tokens
    if not tokens:
        raise ConfigError("the policy has no value tokens; train one with `recipes/sft.py --n_value_buckets 32`")
    n_prompts, n_items = rows_PG.shape
    ids = torch.from_numpy(policy.prompts.read_answer(rows_PG.reshape(-1))).view(n_prompts, -1)
    branches = Branches(trunk, n_branches=n_items)
    hidden = branches.read(policy.model.model, ids.to(trunk.is_prompt_BP.device)).last_hidden_state
    last = hidden.unflatten(1, (n_items, policy.vocab.n_levels))[:, :, -1]
    head = policy.model.get_output_embeddings().weight[tokens.start : tokens.stop]
    return functional.linear(last, head).float().softmax(-1)


@torch.no_grad()
def expected_values(
    policy: Policy,
    contexts: Sequence[Context],
    rows_PG: Int[np.ndarray, "P G"],
    *,
    batch_size: int = 64,
    write: Callable[[Context], Int[np.ndarray, " S"]] | None = None,
) -> Float[Tensor, "P G"]:
    """Return what each item would be worth to each request, in the data's own unit; 0 for ``NO_ITEM``.

    Args:
        policy: with value tokens.
        contexts: the requests.
        rows_PG: catalogue rows.
        batch_size: requests read at once.
        write: how a context is written; None is ``policy.prompts.prompt``.

    Raises:
        ConfigError: for a policy without value tokens.
    """
    means = torch.tensor([] if policy.values is None else policy.values.means)
    write = write or policy.prompts.prompt
    parts = [torch.zeros(0, rows_PG.shape[1])]
    with in_eval_mode(policy.model):
        for start in range(0, len(contexts), batch_size):
            batch = slice(start, start + batch_size)
            prompts = policy.prompts.batch([write(context) for context in contexts[batch]])
            trunk = read_trunk(policy.model, *(x.to(policy.model.device) for x in prompts))
            probabilities = value_probabilities(policy, trunk, rows_PG[batch].clip(min=0))
            parts.append((probabilities.cpu() * means).sum(-1))
    return torch.cat(parts).masked_fill(torch.from_numpy(rows_PG == NO_ITEM), 0)


class ValueReranker:
    """Recommends what a policy proposes, in an order that the values it expects have a say in.

    Args:
        recommender: the policy behind its beam search.
        weight: of log1p of the expected value, against the policy's log-probability.

    Raises:
        ConfigError: for a weight below 0, or a policy without value tokens.
    """

    def __init__(self, recommender: BeamRecommender, *, weight: float) -> None:
        check_weight(weight)
        if recommender.policy.values is None:
            raise ConfigError("rerank_value needs policies with value tokens, made by `sft.py --n_value_buckets 32`")
        self.recommender = recommender
        self.weight = weight

    def recommend(self, contexts: Sequence[Context], *, k: int, constrained: bool) -> Rollouts:
        """Return the policy's k answers in their new order, scores in place of log-probabilities."""
        proposed = self.recommender.recommend(contexts, k=k, constrained=constrained)
        expected_PG = expected_values(
            self.recommender.policy,
            contexts,
            proposed.rows_PG.numpy(),
            batch_size=self.recommender.batch_size,
            write=self.recommender.write,
        )
        return reorder(proposed, proposed.log_probs_PG + self.weight * expected_PG.log1p())
