"""How what is taught becomes rows: a user's answers in one tree, or one row each."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from datasets import Dataset as Rows

from genrec_rl.data.store import Dataset
from genrec_rl.errors import ConfigError
from genrec_rl.models.policy import Policy
from genrec_rl.sft.rows import build_rows
from genrec_rl.sft.siblings import Siblings
from genrec_rl.sft.targets import answers_of
from genrec_rl.sft.user_tree import TreeCollator, build_trees
from genrec_rl.sft.worth import WeightPlan, worth_of
from genrec_rl.sids.catalog import Catalog


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """Rows to train on and to validate with, and their collator (None: TRL's own)."""

    train: Rows
    valid: Rows
    collator: TreeCollator | None = None


def pack(
    dataset: Dataset,
    policy: Policy,
    catalog: Catalog,
    *,
    packing: Literal["user_tree", "none"],
    target: str,
    max_items: int,
    max_exposed: int,
    history_dropout: float = 0.0,
    learn_valid: bool = False,
    teaches_value: bool = False,
    weights: WeightPlan | None = None,
) -> Packed:
    """Write the train and valid pages as rows.

    ``user_tree`` costs several times less (the history is read once, not once an answer) and gives the same loss
    where a history fits ``max_history``. Valid rows ask for each positive after the history before its page,
    whatever is taught, so that the losses of different targets can be compared. ``history_dropout`` leaves that share
    of a training prompt's items out, others each epoch: what came two or three items before is then learnt as what
    came last, and a user's history is never the same twice. ``learn_valid`` also teaches the valid pages: for a
    policy that is served, or asked for test pages alone, when its settings are chosen. ``teaches_value`` puts the
    token of its value behind a taught item, and ``weights`` says how much it counts (VSL, ``sft/worth.py``); valid
    rows have neither.

    Raises:
        ConfigError: for an unknown packing or target, a dropout that is no share below 1, value tokens behind whole
            pages, a policy with a softmax over children without trees, or pages for a LazyAR policy that reads
            finished items as codes.
        DataError: when values are wanted of data that have none.
    """
    if not 0 <= history_dropout < 1:
        raise ConfigError(f"history_dropout {history_dropout} must be at least 0 and below 1")
    softmax = policy.model.config.softmax
    if softmax == "children" and packing == "none":
        raise ConfigError("softmax children is made for trees: set packing_pages user_tree, or softmax vocabulary")
    if packing not in ("user_tree", "none"):
        raise ConfigError(f"packing_pages '{packing}' is not one of user_tree, none")
    if policy.model.config.is_lazy and "page" in target.split("+") and policy.prompts.grammar.page_items == "codes":
        raise ConfigError(
            "lazy_layers: the lower layers read none of an answer's codes, so target page needs its finished items "
            "merged: set page_items merged, or target item or running"
        )
    limits = {"max_items": max_items, "max_exposed": max_exposed}
    taught = np.union1d(dataset.split.train, dataset.split.valid) if learn_valid else dataset.split.train
    train = answers_of(dataset.pages, taught, target=target, **limits)
    valid = answers_of(dataset.pages, dataset.split.valid, target="item", **limits)
    worth = worth_of(train, dataset.split.train, policy, teaches_value=teaches_value, plan=weights or WeightPlan())
    if packing == "none":
        train_rows = build_rows(train, policy.prompts, worth, history_dropout=history_dropout)
        return Packed(train_rows, build_rows(valid, policy.prompts))
    siblings = Siblings(catalog, policy.vocab) if softmax == "children" else None
    train_rows = build_trees(train, policy.prompts, siblings, worth, history_dropout=history_dropout)
    valid_rows = build_trees(valid, policy.prompts, siblings)
    collator = TreeCollator(policy.model, pad_id=policy.vocab.pad_id, siblings=siblings)
    return Packed(train_rows, valid_rows, collator)
