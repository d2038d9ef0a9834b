"""The policy as RL found it: what is read when a step or a measure asks how far training has led away."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from torch import Tensor

from genrec_rl.models.prefix_tree import BranchLogits, score_branches
from genrec_rl.models.prompts import PromptEncoder
from genrec_rl.models.trunk import in_eval_mode
from genrec_rl.rl.rollouts import sample_positives
from genrec_rl.types import Context, Example


class Start:
    """The start's network: a frozen copy, or under LoRA the trained one with its adapters off, which costs nothing.

    Args:
        network: the policy's network before training.
        is_adapted: low-rank layers will be trained, so that the network itself stays.
    """

    def __init__(self, network: Any, *, is_adapted: bool) -> None:
        self._network = network if is_adapted else copy.deepcopy(network).eval().requires_grad_(requires_grad=False)
        self._is_adapted = is_adapted

    @contextmanager
    def network(self, trained: Any) -> Iterator[Any]:
        """Give the start's network for a while, without dropout; ``trained`` is what the optimiser trains."""
        if not self._is_adapted:
            yield self._network.to(trained.device)
            return
        assert isinstance(trained, PeftModel)
        with trained.disable_adapter(), in_eval_mode(self._network):
            yield self._network


def level_kl(policy: BranchLogits, start: BranchLogits) -> Float[Tensor, "P G C"]:
    """Return KL(policy || start) of what follows each prefix of each branch, exactly, over all tokens, in nats."""
    first_P, later_PGW = (
        (of.exp() * (of - to)).where(of > -torch.inf, 0.0).sum(-1) for of, to in zip(policy, start, strict=True)
    )
    n_branches = later_PGW.shape[1]
    return torch.cat([first_P[:, None, None].expand(-1, n_branches, 1), later_PGW], dim=2)


class StartProbe:
    """How far a policy has moved on the way to what users took: along one positive's prefixes a request.

    The start's distributions are kept on the CPU (L times the vocabulary, in float32, a request), so that no second
    network is. What is drawn of a page with several positives is the same at every evaluation.

    Args:
        read: log-softmaxes along branches, of the policy as it is now: ids, their mask, branches.
        requests: held-out requests by number, the seed of what is drawn of each.
        prompts: the policy's grammar.
        write: a request's prompt, as it is trained and served.
        at_once: requests read together.
    """

    def __init__(
        self,
        read: Callable[[Int[Tensor, "P S"], Bool[Tensor, "P S"], Int[Tensor, "P 1 C"]], BranchLogits],
        requests: Mapping[int, Example],
        prompts: PromptEncoder,
        *,
        write: Callable[[Context], Int[np.ndarray, " S"]],
        at_once: int = 64,
    ) -> None:
        self._read = read
        levels = range(1, prompts.vocab.n_levels + 1)
        self.names = tuple(f"{of}_level_{level}" for of in ("kl", "entropy") for level in levels)
        self.names += ("kl_to_start", "positive_log_prob")
        kept = [(example, [number]) for number, example in requests.items() if len(example.positives)]
        self._batches = []
        for begin in range(0, len(kept), at_once):
            part, drawn = zip(*kept[begin : begin + at_once], strict=True)
            ids, is_prompt = prompts.batch([write(example.context) for example in part])
            branches, _ = sample_positives(part, prompts, limit=1, seeds=drawn)
            self._batches.append((ids, is_prompt, branches))
        self._start = [BranchLogits(*(x.cpu() for x in self._read(*batch))) for batch in self._batches]

    def columns(self) -> dict[str, Float[Tensor, " P"]]:
        """Return one number a request: KL to the start and entropy of each level, and log pi of the positive."""
        found: dict[str, list[Tensor]] = {}
        for batch, start in zip(self._batches, self._start, strict=True):
            policy = BranchLogits(*(x.cpu() for x in self._read(*batch)))
            scores = score_branches(policy, batch[2])
            kl_PC, entropies_PC = level_kl(policy, start)[:, 0], scores.entropies_BGC[:, 0]
            columns = [*kl_PC.unbind(1), *entropies_PC.unbind(1), kl_PC.sum(1), scores.log_probs_BGC[:, 0].sum(1)]
            for name, column in zip(self.names, columns, strict=True):
                found.setdefault(name, []).append(column)
        return {name: torch.cat(parts) for name, parts in found.items()}


def draw_requests(examples: Sequence[Example], *, n: int, process: int, n_processes: int) -> dict[int, Example]:
    """Draw n requests, the same in every run, and return this process's share of them, by their numbers."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(examples))[:n])
    return {int(i): examples[i] for i in chosen[process::n_processes]}
