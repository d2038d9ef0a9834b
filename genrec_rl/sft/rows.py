"""One training row an answer: the prompt, then the answer (GenRec, eq. 3 and 4)."""

from typing import Any

import numpy as np
from datasets import Dataset
from jaxtyping import Int

from genrec_rl.models.prompts import PromptEncoder
from genrec_rl.sft.targets import Answers
from genrec_rl.types import Context

IGNORED = -100


def training_row(prompts: PromptEncoder, context: Context, items: Int[np.ndarray, " m"]) -> dict[str, list[int]]:
    """Write one row; the loss is on the answer's tokens only."""
    prompt = prompts.prompt(context)
    answer = prompts.answer(items)
    return {
        "input_ids": np.concatenate([prompt, answer]).tolist(),
        "labels": [IGNORED] * len(prompt) + answer.tolist(),
    }


def build_rows(answers: Answers, prompts: PromptEncoder) -> Dataset:
    """Return a dataset of ``input_ids`` and ``labels``, written when a row is read."""
    max_history = prompts.grammar.max_history

    def write(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        rows = [
            training_row(prompts, answers.context(i, max_history=max_history), answers.items(i))
            for i in batch["answer"]
        ]
        return {key: [row[key] for row in rows] for key in ("input_ids", "labels")}

    return Dataset.from_dict({"answer": np.arange(len(answers))}).with_transform(write)
