"""One training row an answer: the prompt, then the answer (GenRec, eq. 3 and 4)."""

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Bool, Int

from genrec_rl.models.prompts import PromptEncoder
from genrec_rl.sft.targets import Answers
from genrec_rl.types import Context

IGNORED = -100


def training_row(prompts: PromptEncoder, context: Context, items: Int[np.ndarray, " m"]) -> dict[str, list[int]]:
    """Write one row; the loss is on the answer's tokens only."""
    prompt = prompts.prompt(context)
    answer = prompts.answer(items)
    return {
        "input_ids": np.concatenate([prompt, prompts.read_answer(items)]).tolist(),
        "labels": [IGNORED] * len(prompt) + answer.tolist(),
    }


def draw_kept(n: int, *, dropout: float) -> Bool[np.ndarray, " n"]:
    """Draw which of n history items a prompt keeps, each with probability 1 - dropout.

    From torch's generator, which trainers seed, and give each data loader's process anew.
    """
    return (torch.rand(n) >= dropout).numpy()


def build_rows(answers: Answers, prompts: PromptEncoder, *, history_dropout: float = 0.0) -> Dataset:
    """Return a dataset of ``input_ids`` and ``labels``, written when a row is read.

    ``history_dropout`` is the share of a prompt's items that are left out, others each time.
    """
    max_history = prompts.grammar.max_history

    def write(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        contexts = [answers.context(i, max_history=max_history) for i in batch["answer"]]
        if history_dropout:
            contexts = [
                context.only(draw_kept(len(context.history), dropout=history_dropout)) for context in contexts
            ]
        rows = [
            training_row(prompts, context, answers.items(i))
            for i, context in zip(batch["answer"], contexts, strict=True)
        ]
        return {key: [row[key] for row in rows] for key in ("input_ids", "labels")}

    return Dataset.from_dict({"answer": np.arange(len(answers))}).with_transform(write)
