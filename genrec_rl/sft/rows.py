"""One training row an answer: the prompt, then the answer (GenRec, eq. 3 and 4)."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Bool, Int
from torch import Tensor

from genrec_rl.models.prompts import PromptEncoder
from genrec_rl.sft.targets import Answers
from genrec_rl.sft.worth import Worth
from genrec_rl.types import Context

IGNORED = -100


def training_row(
    prompts: PromptEncoder,
    context: Context,
    items: Int[np.ndarray, " m"],
    value_tokens: Int[np.ndarray, " v"] | None = None,
) -> dict[str, list[Any]]:
    """Write one row; the loss is on the answer's tokens only, of which value tokens are the last."""
    behind = np.zeros(0, np.int64) if value_tokens is None else value_tokens
    prompt = prompts.prompt(context)
    answer = np.concatenate([prompts.answer(items), behind])
    return {
        "input_ids": np.concatenate([prompt, prompts.read_answer(items), behind]).tolist(),
        "labels": [IGNORED] * len(prompt) + answer.tolist(),
    }


def draw_kept(n: int, *, dropout: float) -> Bool[np.ndarray, " n"]:
    """Draw which of n history items a prompt keeps, each with probability 1 - dropout.

    From torch's generator, which trainers seed, and give each data loader's process anew.
    """
    return (torch.rand(n) >= dropout).numpy()


def build_rows(
    answers: Answers, prompts: PromptEncoder, worth: Worth | None = None, *, history_dropout: float = 0.0
) -> Dataset:
    """Return a dataset of ``input_ids`` and ``labels``, written when a row is read; with ``worth`` also ``weights``.

    ``history_dropout`` is the share of a prompt's items that are left out, others each time.
    """
    max_history = prompts.grammar.max_history

    def row_of(i: int, context: Context) -> dict[str, list[Any]]:
        if worth is None:
            return training_row(prompts, context, answers.items(i))
        row = training_row(prompts, context, answers.items(i), worth.value_tokens(i))
        weights = worth.token_weights(i, n_levels=prompts.vocab.n_levels).tolist()
        return row | {"weights": [0.0] * (len(row["labels"]) - len(weights)) + weights}

    def write(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        contexts = [answers.context(i, max_history=max_history) for i in batch["answer"]]
        if history_dropout:
            contexts = [
                context.only(draw_kept(len(context.history), dropout=history_dropout)) for context in contexts
            ]
        rows = [row_of(i, context) for i, context in zip(batch["answer"], contexts, strict=True)]
        return {key: [row[key] for row in rows] for key in rows[0]}

    return Dataset.from_dict({"answer": np.arange(len(answers))}).with_transform(write)


class WeightedRows:
    """A collator of plain rows that also pads the rows' ``weights``, where they have any, with 0."""

    def __init__(self, pad: Callable[[Sequence[dict[str, Any]]], dict[str, Tensor]]) -> None:
        self.pad = pad

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return the batch, with a weight for each label."""
        if "weights" not in rows[0]:
            return self.pad(rows)
        batch = self.pad([{name: row[name] for name in ("input_ids", "labels")} for row in rows])
        batch["weights"] = torch.zeros(batch["labels"].shape)
        for b, row in enumerate(rows):
            batch["weights"][b, : len(row["weights"])] = torch.tensor(row["weights"])
        return batch
