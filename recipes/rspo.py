"""RSPO: align an SFT policy by preferences among its own rollouts (GR4AD, arXiv:2602.22732).

    accelerate launch recipes/rspo.py
    accelerate launch recipes/rspo.py --config recipes/variants/s_dpo.yaml

It is recipes/grpo_sr.py with another policy term: the same settings, reward model, gate, validation and logs.

Reads   data, catalogue, the SFT policy and a reward model; recipes/rspo.yaml names those of `make demo`.
Writes  what grpo_sr writes: the aligned policy, metrics.jsonl, rollouts.jsonl, the offline W&B run, checkpoints.
Watch   train/preference/ordered_pair_share should rise, and eval/ndcg@10 not fall;
        train/preference/tied_group_share is the share of groups that teach nothing, as all their rewards are equal.
"""

from genrec_rl.tracking import run_recipe
from recipes import grpo_sr


def main(argv: list[str] | None = None) -> None:
    grpo_sr.main(argv, recipe_file=__file__)


if __name__ == "__main__":
    run_recipe(main)
