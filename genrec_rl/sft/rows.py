"""Pages to training rows: the prompt, and the page as the answer (GenRec, eq. 3 and 4).

``target: page``   one row a page: its positives, by intensity, as one answer (page-wise NTP).
``target: item``   one row a positive: that item alone after the same prompt (the paper's vanilla NTP).
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from jaxtyping import Int

from genrec_rl.errors import ConfigError
from genrec_rl.models.prompts import PromptEncoder
from genrec_rl.types import Action, Example

IGNORED = -100
Target = Literal["page", "item"]


def target_items(example: Example, *, max_items: int, max_exposed: int = 0) -> Int[np.ndarray, " m"]:
    """Return the items of a page that are supervised: its best positives, then up to ``max_exposed`` exposures."""
    exposed = example.items[example.actions == Action.EXPOSE][:max_exposed]
    return np.concatenate([example.positives, exposed])[:max_items]


def training_row(prompts: PromptEncoder, example: Example, items: Int[np.ndarray, " m"]) -> dict[str, list[int]]:
    """Write one row; the loss is on the answer's tokens only."""
    prompt = prompts.prompt(example.context)
    answer = prompts.answer(items)
    return {
        "input_ids": np.concatenate([prompt, answer]).tolist(),
        "labels": [IGNORED] * len(prompt) + answer.tolist(),
    }


def build_rows(
    examples: Sequence[Example],
    prompts: PromptEncoder,
    *,
    target: Target,
    max_items: int,
    max_exposed: int = 0,
) -> Dataset:
    """Return a dataset of ``input_ids`` and ``labels``, written when a row is read.

    Only two integers a row are kept in memory: the page, and which of its items (-1: all).

    Raises:
        ConfigError: for an unknown target.
    """
    if target not in ("page", "item"):
        raise ConfigError(f"target '{target}' is not one of page, item")
    if target == "page":
        pages, places = np.arange(len(examples)), np.full(len(examples), -1)
    else:
        counts = np.array([min(len(example.positives), max_items) for example in examples])
        pages = np.repeat(np.arange(len(examples)), counts)
        places = np.arange(len(pages)) - np.repeat(counts.cumsum() - counts, counts)

    def write(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        rows = []
        for page, place in zip(batch["page"], batch["place"], strict=True):
            example = examples[page]
            items = target_items(example, max_items=max_items, max_exposed=max_exposed)
            if place >= 0:
                items = example.positives[place : place + 1]
            rows.append(training_row(prompts, example, items))
        return {key: [row[key] for row in rows] for key in ("input_ids", "labels")}

    return Dataset.from_dict({"page": pages, "place": places}).with_transform(write)
