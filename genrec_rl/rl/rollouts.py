"""Pages to RL prompts, prompts to rollouts, and rollouts to rewards in all their stages.

P   prompts        G   rollouts per prompt        L   SID levels
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Bool, Float, Int
from torch import Tensor

from genrec_rl.decoding.beam_search import BeamPlan, Beams, search_from
from genrec_rl.decoding.exclusion import Exclusion
from genrec_rl.decoding.sampling import sample_from
from genrec_rl.errors import RolloutError
from genrec_rl.models.prompts import PromptEncoder
from genrec_rl.models.trunk import Trunk
from genrec_rl.rewards.matching import match_positives
from genrec_rl.rewards.protocol import Gate, RewardModel
from genrec_rl.rewards.scoring import pass_gate, score_candidates
from genrec_rl.sft.rows import draw_kept
from genrec_rl.sids.catalog import Catalog
from genrec_rl.sids.trie import SidTrie
from genrec_rl.sids.vocab import SidVocab
from genrec_rl.types import Context, Example, Rollouts


def build_prompts(
    examples: Sequence[Example],
    encode: Callable[[Context], Int[np.ndarray, " S"]],
    *,
    history_dropout: float = 0.0,
) -> Dataset:
    """Return a dataset of ``prompt`` (an array of ids) and ``page`` (index into ``examples``), encoded when read.

    The page travels in the row, so that a reward can never be bound to another page with the same history. With
    ``history_dropout``, that share of a history's items is left out, others each time, and ``kept`` says which
    stayed: ``asked`` returns the request that the prompt tells of.
    """

    def write(batch: dict[str, list[int]]) -> dict[str, list]:
        pages = batch["page"]
        contexts = {page: examples[page].context for page in dict.fromkeys(pages)}  # (a page comes G times)
        if not history_dropout:
            prompts = {page: encode(context) for page, context in contexts.items()}
            return {"prompt": [prompts[page] for page in pages], "page": pages}
        kept = {page: draw_kept(len(context.history), dropout=history_dropout) for page, context in contexts.items()}
        prompts = {page: encode(context.only(kept[page])) for page, context in contexts.items()}
        return {
            "prompt": [prompts[page] for page in pages],
            "page": pages,
            "kept": [kept[page].tolist() for page in pages],
        }

    return Dataset.from_dict({"page": np.arange(len(examples))}).with_transform(write)


def asked(row: Mapping[str, Any], examples: Sequence[Example]) -> Example:
    """Return the request that a prompt's row tells of, with the history that the prompt kept."""
    example = examples[row["page"]]
    if "kept" not in row:
        return example
    return replace(example, context=example.context.only(np.array(row["kept"], dtype=bool)))


def roll_out_from(
    model: Any,
    trunk: Trunk,
    *,
    kind: Literal["beam", "gumbel", "sample"],
    vocab: SidVocab,
    plan: BeamPlan,
    trie: SidTrie | None,
    generator: torch.Generator,
    excluded: Exclusion | None,
) -> Beams:
    """Return a prompt's G rollouts: the best, draws without repeats, or draws with repeats.

    Raises:
        RolloutError: for draws with repeats (sample) of which something is excluded.
    """
    if kind == "sample" and excluded is not None:
        raise RolloutError("rollouts sample draws from the whole policy, exclude_seen from a part; use gumbel")
    if kind == "sample":
        return sample_from(model, trunk, vocab=vocab, plan=plan, trie=trie, generator=generator)
    noise = generator if kind == "gumbel" else None
    return search_from(model, trunk, vocab=vocab, plan=plan, trie=trie, generator=noise, excluded=excluded)


def inject_positives(
    tokens_PGL: Int[Tensor, "P G L"],
    examples: Sequence[Example],
    prompts: PromptEncoder,
    *,
    seeds: Sequence[Sequence[int]],
) -> tuple[Int[Tensor, "P G L"], Bool[Tensor, " P"]]:
    """Put a random positive in the place of the last rollout of every group that holds none; and say where.

    The loss's ratio is 1 for it as for every rollout of the newest policy, so it is weighted as if drawn.
    """
    injected = tokens_PGL.clone()
    is_missed = torch.zeros(len(examples), dtype=torch.bool)
    for page, (example, seed) in enumerate(zip(examples, seeds, strict=True)):
        positives = torch.from_numpy(prompts.answer(example.positives).reshape(-1, tokens_PGL.shape[2]))
        hits = (injected[page].cpu()[:, None] == positives).all(-1)
        if len(positives) and not hits.any():
            chosen = np.random.default_rng([*seed, 2]).integers(len(positives))
            injected[page, -1] = positives[chosen]
            is_missed[page] = True
    return injected, is_missed


@dataclass(frozen=True, slots=True, eq=False)
class RolloutScorer:
    """Asks the reward model and the gate about rollouts, and looks for the page's positives among them."""

    reward_model: RewardModel
    gate: Gate | None
    catalog: Catalog

    def score(
        self, examples: Sequence[Example], rollouts: Rollouts
    ) -> tuple[Float[Tensor, "P G"], Bool[Tensor, "P G"], Bool[Tensor, "P G"]]:
        """Return r_pref, whether the gate passed, and whether the rollout is in D+.

        Raises:
            RewardError: when the reward model or the gate returns what is no reward.
        """
        contexts = [example.context for example in examples]
        positives = [example.positives for example in examples]
        rows_PG = rollouts.rows_PG.cpu().numpy()
        raw_PG = score_candidates(self.reward_model, contexts, rows_PG)
        is_relevant_PG = pass_gate(self.gate, contexts, rows_PG, positives)
        named = [self.catalog.rows_of(self.catalog.codes[rows]) for rows in positives]
        is_positive_PG = match_positives(rollouts.rows_PG, named)
        return torch.from_numpy(raw_PG), torch.from_numpy(is_relevant_PG), is_positive_PG.cpu()


def sample_positives(
    examples: Sequence[Example], prompts: PromptEncoder, *, limit: int, seeds: Sequence[Sequence[int]]
) -> tuple[Int[Tensor, "P M L"], Bool[Tensor, "P M"]]:
    """Write each page's positives as token ids, M = the most that a page has; True where one is real.

    A page with more than ``limit`` gives a random sample, not its first ones, which are its most intense. Each
    page has its own seed, so that the draw does not depend on which process draws.
    """
    chosen = []
    for example, seed in zip(examples, seeds, strict=True):
        rows = example.positives
        if len(rows) > limit:
            rows = np.random.default_rng(list(seed)).choice(rows, size=limit, replace=False)
        chosen.append(rows)
    return _as_tokens(chosen, prompts)


def page_answers(
    examples: Sequence[Example], prompts: PromptEncoder, *, limit: int
) -> tuple[Int[Tensor, "P N L"], Bool[Tensor, "P N"]]:
    """Write each page's first ``limit`` positives as token ids, in target order (eq. 3); True where one is real."""
    return _as_tokens([example.positives[:limit] for example in examples], prompts)


def _as_tokens(
    chosen: Sequence[Int[np.ndarray, " m"]], prompts: PromptEncoder
) -> tuple[Int[Tensor, "P M L"], Bool[Tensor, "P M"]]:
    width = max(1, *map(len, chosen))
    n_levels = prompts.vocab.n_levels
    tokens = np.tile(prompts.answer(np.array([0])), (len(chosen), width, 1))  # (a real SID where there is none)
    is_positive = np.zeros((len(chosen), width), bool)
    for page, rows in enumerate(chosen):
        tokens[page, : len(rows)] = prompts.answer(rows).reshape(-1, n_levels)
        is_positive[page, : len(rows)] = True
    return torch.from_numpy(tokens), torch.from_numpy(is_positive)
