"""The arms of the comparison: recipes/grpo_sr.py's arguments, over those of the data set's YAML."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import yaml

from genrec_rl.rl.unlabelled import is_held_out
from genrec_rl.types import Example

Teacher = Literal["reward", "gold", "ensemble", "refreshed"]
RATE = ("--learning_rate", "1e-4")
GENTLE = (*RATE, "--nll_coef", "0.2")
"""A policy gradient at the distillation's rate leaves what SFT learnt at once (LOG.md)."""
GENTLER = ("--learning_rate", "5e-5", "--nll_coef", "0.2")
"""Half the rate: it kept 98 % of SFT's first items on validation, one seed (LOG.md)."""
FEW_STEPS = (
    *("--per_device_train_batch_size", "4096", "--max_steps", "250"),
    *("--eval_steps", "250", "--save_steps", "250"),
)
LIGHT = (*RATE, "--scale_rewards", "none", "--nll_coef", "0.02")
"""Without division advantages are as small as rewards are, so that the NLL must weigh less for them to count."""
CONSTANT = ("--learning_rate", "2e-5", "--lr_scheduler_type", "constant", "--nll_coef", "0.2")
PLAIN = (*RATE, "--anchor_positives", "false", "--nll_coef", "0")
CONTROL = (*RATE, "--unlabelled_share", "0")
"""All its prompts are labelled, at a rate at which it does not fall."""
NO_GATE = ("--gate", "none")
DISTILLED = ("--policy_term", "listwise_kl")
GENTLE_UNCHECKED = (*GENTLE, "--check_reward", "false")
UNCHECKED = (*DISTILLED, "--check_reward", "false")
WEIGHED = ("--rollout_weights", "policy", "--scale_rewards", "none")
"""Each beam counts by its probability: the gradient of the expected reward, which pushes nothing out of the beam."""


def held_out_by(config: Path) -> Callable[[Example], bool] | None:
    """Return what says whose validation requests were no unlabelled prompts of a config's runs; None without such."""
    settings = yaml.safe_load(config.read_text())
    if not settings.get("unlabelled_share"):
        return None
    return partial(is_held_out, users=float(settings["unlabelled_users"]))


@dataclass(frozen=True, slots=True)
class Arm:
    """One row. ``arguments`` are None for a row that trains nothing; ``is_reranked`` lets the reward order the beams.

    ``after`` is the arm whose policy it goes on from, in place of SFT's: a second round with a start, warm-up and
    schedule of its own. ``taught_by`` names the reward: the judges' own, the gold model in its place, their ensemble
    (the mean less half a deviation: of two, three parts of the lower and one of the higher), or the reward trained
    anew on proposals of the policy that the arm goes on from. ``paper`` is the row of the paper's Table 3 (HR@50,
    R@1, HaR), on its own data.
    """

    name: str
    title: str
    arguments: tuple[str, ...] | None = None
    is_reranked: bool = False
    after: str | None = None
    taught_by: Teacher = "reward"
    paper: tuple[float, float, float] | None = None

    @property
    def draws_samples(self) -> bool:
        """Whether its rollouts are independent draws, of which nothing can be excluded."""
        return ("--rollouts", "sample") in pairwise(self.arguments or ())


ARMS = MappingProxyType(
    {
        arm.name: arm
        for arm in (
            Arm("sft", "SFT", paper=(0.7192, 0.1027, 0.0496)),
            Arm("sft_continued", "SFT continued: NLL alone, as many steps", (*CONTROL, "--policy_term", "none")),
            Arm("best_of_n", "SFT's beams re-ranked by the reward model", is_reranked=True),
            Arm("grpo", "GRPO", PLAIN, paper=(0.7248, 0.1177, 0.0603)),
            Arm("grpo_sr", "GRPO-SR", GENTLE, paper=(0.7438, 0.1212, 0.0268)),
            Arm("grpo_sr_gentler", "GRPO-SR at half the rate", GENTLER),
            Arm("grpo_sr_few_steps", "GRPO-SR at half the rate, 64,000 prompts in 250 steps", (*GENTLER, *FEW_STEPS)),
            Arm("grpo_no_gate", "GRPO without gate", (*PLAIN, *NO_GATE), paper=(0.6975, 0.1045, 0.0175)),
            Arm("grpo_sr_no_gate", "GRPO-SR without gate", (*GENTLE, *NO_GATE), paper=(0.7016, 0.1067, 0.0196)),
            Arm("grpo_sr_no_anchor", "GRPO-SR without anchoring", (*GENTLE, "--anchor_positives", "false")),
            Arm("grpo_sr_weighed", "GRPO-SR, beams weighed by the policy, no division", (*GENTLE, *WEIGHED)),
            Arm("grpo_sr_gumbel", "GRPO-SR, Gumbel rollouts", (*GENTLE, "--rollouts", "gumbel")),
            Arm("grpo_sr_sampled", "GRPO-SR, independent samples", (*GENTLE, "--rollouts", "sample")),
            Arm("grpo_sr_levels", "GRPO-SR, credit by level", (*GENTLE, "--credit", "level")),
            Arm("grpo_sr_undivided", "GRPO-SR, no division", (*GENTLE, "--scale_rewards", "none")),
            Arm("grpo_sr_light", "GRPO-SR, no division, a tenth of the NLL", LIGHT),
            Arm("grpo_sr_leashed", "GRPO-SR, KL leash .1", (*GENTLE, "--beta", "0.1")),
            Arm("grpo_sr_constant", "GRPO-SR, constant rate 2e-5", CONSTANT),
            Arm("grpo_sr_by_gold", "GRPO-SR, taught by the gold model", GENTLE_UNCHECKED, taught_by="gold"),
            Arm(
                "grpo_sr_ensemble",
                "GRPO-SR, taught by reward and gold together",
                GENTLE_UNCHECKED,
                taught_by="ensemble",
            ),
            Arm("grpo_sr_again", "GRPO-SR, a second round", GENTLE_UNCHECKED, after="grpo_sr"),
            Arm(
                "grpo_sr_refreshed",
                "the same, reward refreshed",
                GENTLE_UNCHECKED,
                after="grpo_sr",
                taught_by="refreshed",
            ),
            Arm("listwise_kl", "listwise KL", DISTILLED),
            Arm("listwise_kl_by_gold", "listwise KL, taught by the gold model", UNCHECKED, taught_by="gold"),
            Arm("listwise_kl_ensemble", "listwise KL, taught by both together", UNCHECKED, taught_by="ensemble"),
            Arm("listwise_kl_again", "listwise KL, a second round", UNCHECKED, after="listwise_kl"),
            Arm(
                "listwise_kl_refreshed",
                "the same, reward refreshed",
                UNCHECKED,
                after="listwise_kl",
                taught_by="refreshed",
            ),
            Arm("listwise_kl_per_mass", "listwise KL, groups counted alike", (*DISTILLED, "--per_mass", "true")),
        )
    }
)

LONG = ("sft", "sft_continued", "best_of_n", "grpo_sr_few_steps", "listwise_kl_per_mass")
"""Of a long run: what gained most in short ones, and its controls; GRPO-SR with as many prompts as in a short one."""
TAUGHT = tuple(arm.name for arm in ARMS.values() if arm.taught_by != "reward" or arm.after)
TRIED = (
    *("grpo_sr_gentler", "grpo_sr_constant", "grpo_sr_gumbel", "grpo_sr_sampled", "grpo_sr_levels"),
    *("grpo_sr_undivided", "grpo_sr_light", "grpo_sr_leashed", *TAUGHT),
)
"""What else was tried: of the policy gradient, other rewards, a second round. ``--arms tried`` runs it."""
USUAL = tuple(name for name in ARMS if name not in (*TRIED, "grpo_sr_few_steps"))
"""Of a short run."""
NO_GOLD = tuple(arm.name for arm in ARMS.values() if arm.taught_by in ("gold", "ensemble"))
"""Arms that the gold model taught: it cannot judge them."""
DISTILLING = ("listwise_kl", "listwise_kl_per_mass")
PAIRS = (
    *((name, "sft") for name in ARMS if name != "sft"),
    *((name, "sft_continued") for name in ("grpo", "grpo_sr", "grpo_sr_few_steps", "grpo_sr_weighed", *DISTILLING)),
    ("grpo_sr", "grpo"),
    ("grpo_sr_gentler", "grpo"),
    *((name, "grpo_sr") for name in TRIED if name.startswith("grpo_sr")),
    ("grpo_sr_refreshed", "grpo_sr_again"),
    *((name, "listwise_kl") for name in TRIED if name.startswith("listwise_kl")),
    ("listwise_kl_refreshed", "listwise_kl_again"),
    ("grpo_sr_weighed", "grpo_sr"),
    ("grpo_sr", "grpo_sr_no_anchor"),
    ("grpo_sr", "grpo_sr_no_gate"),
    ("grpo", "grpo_no_gate"),
    ("grpo_sr_no_gate", "grpo_no_gate"),
    *((name, "best_of_n") for name in DISTILLING),
    ("listwise_kl_per_mass", "listwise_kl"),
)
GAINS = (
    *((a, b) for a in (*DISTILLING, "grpo_sr", "grpo_sr_few_steps") for b in ("sft", "sft_continued")),
    ("grpo_sr", "grpo"),
)
"""Pairs that say whether RL gained, told seed by seed and stratum by stratum."""
STRATA = ("same_day", "new_day", "unlabelled", "held_out")
SHOWN = ("HR@1", "HR@10", "HR@50", "NDCG@10", "HaR@10", "R@1", "R@10", "gold@1", "gold@10")
WHERE_KNOWN = ("NDCG@10/unseen", "true_mean@1", "true_mean@10")
"""NDCG@10 once what the user has taken already is left out of the answers; and of the synthetic market: the
probability that the user clicks the first, or one of the first ten, once examined."""
SIGNS = (
    (("grpo", "grpo_no_gate"), "HaR@10", "+"),
    (("grpo", "grpo_no_gate"), "HR@50", "+"),
    (("grpo_sr", "grpo_sr_no_gate"), "HaR@10", "+"),
    (("grpo_sr", "grpo_sr_no_gate"), "HR@50", "+"),
    (("grpo_sr", "grpo"), "HaR@10", "-"),
    (("grpo_sr", "grpo"), "HR@50", "+"),
    (("grpo_sr_no_gate", "grpo_no_gate"), "HR@50", "+"),
    (("grpo", "sft"), "HaR@10", "+"),
    (("grpo", "sft"), "R@1", "+"),
    (("grpo_sr", "sft"), "HaR@10", "-"),
    (("grpo_sr", "sft"), "HR@50", "+"),
    (("grpo_sr", "sft"), "R@1", "+"),
)
"""What the paper's Table 3 says of its pairs, by the published rows above."""
OF_LISTS = ("distinct@1", "coverage@10", "zero_advantage_share")
"""Metrics of all lists, or of the training, together: they have no paired interval."""
