"""GRPO-SR (GenRec, eq. 6 to 8) on ``trl.GRPOTrainer``: beam rollouts, anchored rewards, and an NLL term on D+.

With ``policy_term: listwise_kl`` the same rewards of the same rollouts make a target to be fitted (``rl.listwise``)
in place of eq. 8's policy term; with ``rspo``, ``dpo`` or ``s_dpo`` they are preferences (``rl.preference``).

TRL keeps its own loop, losses, KL and logging. What is overridden here moves tensors to the pure functions of
``rewards.calibration``, ``rl.losses`` and ``models.prefix_tree``. One buffered row is one whole rollout group, so
that TRL's shuffling and splitting never tear a group apart.

    P   prompts        G   rollouts per prompt        M   positives per prompt        C   tokens of a SID
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather
from torch import Tensor
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput
from trl import GRPOTrainer
from typing_extensions import override

from genrec_rl.decoding.beam_search import Beams
from genrec_rl.decoding.recommender import resolve
from genrec_rl.decoding.validation import Validation
from genrec_rl.errors import RolloutError
from genrec_rl.models.policy import Policy
from genrec_rl.models.prefix_tree import BranchLogits, BranchScores, score_branches
from genrec_rl.models.trunk import Trunk, in_eval_mode
from genrec_rl.rewards.calibration import calibrate_rewards, log_odds
from genrec_rl.rl.choices import FROM_START, refuse_for_policy
from genrec_rl.rl.config import GRPOSRConfig
from genrec_rl.rl.diagnostics import HackingWatch
from genrec_rl.rl.fused import fuses
from genrec_rl.rl.listwise import listwise_kl
from genrec_rl.rl.losses import positive_nll
from genrec_rl.rl.preference import pair_statistics, preference_metrics
from genrec_rl.rl.preference_settings import PREFERENCE_TERMS
from genrec_rl.rl.reading import Reader
from genrec_rl.rl.rollouts import (
    RolloutScorer,
    asked,
    build_prompts,
    inject_positives,
    page_answers,
    sample_positives,
)
from genrec_rl.rl.search import RolloutSearch
from genrec_rl.rl.selection import guarded
from genrec_rl.rl.start import Start, StartProbe, draw_requests
from genrec_rl.rl.telemetry import rollout_metrics, rollout_table
from genrec_rl.rl.unified import candidate_list, unified_weights
from genrec_rl.types import NO_ITEM, CalibratedRewards, Context, Example, Rollouts

_GROUP_KEYS = ("completion_ids", "completion_mask", "advantages", "old_per_token_logps", "ref_per_token_logps")
_PROMPT_KEYS = ("prompt_ids", "prompt_mask")
_UNINFORMATIVE = ("completions/", "clip_ratio/", "rewards/", "reward_std", "frac_reward_zero_std")


class GRPOSRTrainer(GRPOTrainer):
    """Aligns a policy by GRPO-SR.

    Args:
        policy: the SFT policy; trained in place.
        args: settings.
        examples: training pages.
        scorer: reward model, gate and catalogue.
        validation: what evaluation measures; the best checkpoint is chosen by it.
        continue_page: prompts read the items of the request's own day as the beginning of the answer, as
            ``validation``'s recommender should too.
        **kwargs: passed to ``trl.GRPOTrainer`` (``callbacks``, ``peft_config``, ``optimizers``).
    """

    args: GRPOSRConfig
    model: Any
    num_generations: int

    def __init__(
        self,
        policy: Policy,
        *,
        args: GRPOSRConfig,
        examples: Sequence[Example],
        scorer: RolloutScorer,
        validation: Validation | None = None,
        continue_page: bool = False,
        **kwargs: Any,
    ) -> None:
        refuse_for_policy(args, policy, n_sids=scorer.catalog.trie.n_sids)
        self._start: Start | None = None
        if args.policy_term in FROM_START:
            self._start = Start(policy.model, is_adapted=kwargs.get("peft_config") is not None)
        self.policy, self.examples, self.scorer, self.validation = policy, examples, scorer, validation
        self._newest: tuple[Sequence[Example], Rollouts, CalibratedRewards] | None = None
        self._batch: tuple[Sequence[Example], Sequence[Sequence[int]]] = ((), ())
        self._contexts: Sequence[Context] = ()
        self._beams: Beams | None = None
        self._divisor_P1: Tensor | None = None
        self._positives: tuple[Tensor, Tensor] | None = None
        self._trunk: Trunk | None = None
        self._positive_log_probs: Tensor | None = None
        self._positive_weights: Tensor | None = None
        args.max_completion_length = policy.vocab.n_levels
        write = policy.prompts.running_prompt if continue_page else policy.prompts.prompt
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*rollout_func.*")
            super().__init__(
                model=policy.model,
                reward_funcs=_scored_by_trainer,
                args=args,
                train_dataset=build_prompts(examples, write, history_dropout=args.history_dropout),
                eval_dataset=build_prompts(validation.examples, write) if validation else None,
                processing_class=policy.tokenizer,
                rollout_func=_roll_out,
                **kwargs,
            )
        self._reader = Reader(policy, scorer.catalog, self.accelerator, length_groups=args.length_groups)
        self.is_fused, self.why_not_fused = fuses(args, self.model, is_deepspeed=self.is_deepspeed_enabled)
        self._search = RolloutSearch(
            policy, scorer.catalog, self._reader, self.accelerator, args=args, start=self._start, examples=examples
        )
        if validation is not None and isinstance(validation.watch, HackingWatch) and args.probe_requests:
            requests = draw_requests(validation.examples, n=args.probe_requests,
                                     process=args.process_index, n_processes=args.world_size)  # fmt: skip
            validation.watch.probe = StartProbe(self._read_policy, requests, policy.prompts, write=write)

    def roll_out(self, prompts: list[np.ndarray]) -> dict[str, Any]:
        """Search G continuations of each distinct prompt; prompts come G times each, neighbours equal."""
        size = self.num_generations
        distinct = prompts[::size]
        if not all(np.array_equal(prompt, distinct[row // size]) for row, prompt in enumerate(prompts)):
            raise RolloutError(f"prompts do not come in whole groups of {size}; do not replace TRL's sampler")
        batch = self.policy.prompts.batch(distinct)
        ids, is_prompt = (x.to(self.accelerator.device) for x in batch)
        if self.is_fused:
            self._trunk = self._reader.trunk(self.model_wrapped, ids, is_prompt)
        micro_step = self._step % self.args.gradient_accumulation_steps
        noise = (self.args.seed, self.state.global_step, micro_step, self.accelerator.process_index)
        self._beams = self._search(
            self.model_wrapped, ids, is_prompt, trunk=self._trunk, contexts=self._contexts, seeds=noise
        )
        tokens = self._beams.tokens_BWL
        if self.args.inject_positives:
            examples, seeds = self._batch
            tokens, is_missed = inject_positives(tokens, examples, self.policy.prompts, seeds=seeds)
            self._log_metric("rollout/injected_share", is_missed.float().mean().item())
        return {"prompt_ids": prompts, "completion_ids": tokens.flatten(0, 1).tolist(), "logprobs": None}

    @override
    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list, completions: list, completion_ids_list: list
    ) -> Tensor:
        """Score local rollouts, gather whole groups, gate and anchor them (eq. 6 and 7)."""
        size = self.num_generations
        tokens_PGL = torch.tensor(completion_ids_list).unflatten(0, (-1, size))
        examples, _ = self._batch
        assert self._beams is not None
        rollouts = resolve(tokens_PGL, self._beams.log_probs_BW, vocab=self.policy.vocab, catalog=self.scorer.catalog)
        local = [*self.scorer.score(examples, rollouts), rollouts.rows_PG]
        device = self.accelerator.device
        raw, relevant, hit, rows = (gather(x.to(device).contiguous()) for x in local)
        rewards = calibrate_rewards(raw, relevant.bool(), hit.bool(), anchor=self.args.anchor_positives)
        for name, value in rollout_metrics(rewards, rows, n_items=self.scorer.catalog.n_items).items():
            self._metrics["train"][name].append(value)
        self._newest = (examples, rollouts, rewards)
        self._divisor_P1 = self.args.shaping.divisor(rewards.calibrated_PG, rows != NO_ITEM)
        return rewards.calibrated_PG.reshape(-1, 1)

    @override
    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Fold TRL's rows to one row a group, and add the page's positives."""
        size = self.num_generations
        examples = [asked(row, self.examples) for row in inputs[::size]]
        seeds = [(self.args.seed, self.state.global_step, row["page"]) for row in inputs[::size]]
        self._batch = (examples, seeds)
        self._contexts = [self.examples[row["page"]].context for row in inputs[::size]]
        output = super()._generate_and_score_completions(inputs)
        for name in _GROUP_KEYS:
            if output.get(name) is not None:
                output[name] = output[name].unflatten(0, (-1, size))
        for name in _PROMPT_KEYS:
            output[name] = output[name][::size]
        tokens, is_positive = sample_positives(
            examples, self.policy.prompts, limit=self.args.max_positives, seeds=seeds
        )
        extra = {"positive_ids": tokens, "is_positive": is_positive, "group": torch.arange(len(tokens))}
        assert self._newest is not None
        _, rollouts, rewards = self._newest
        first = self.accelerator.process_index * len(tokens)  # rewards are those of all processes
        here = slice(first, first + len(tokens))
        if self._start is not None:
            extra["values"] = rewards.calibrated_PG[here]
        if not self.args.shaping.is_trls:
            assert self._divisor_P1 is not None
            extra["advantages"] = self.args.shaping.advantages(
                rewards.calibrated_PG[here].cpu(), rollouts.is_valid_PG, divisor_P1=self._divisor_P1[here].cpu(),
                log_probs_PG=rollouts.log_probs_PG, tokens_PGC=output["completion_ids"].cpu(), seeds=seeds,
            )  # fmt: skip
        if self.args.page_coef > 0:
            page = page_answers(examples, self.policy.prompts, limit=self.args.max_page_items)
            extra["page_ids"], extra["is_page_item"] = page
        return output | {name: x.to(self.accelerator.device) for name, x in extra.items()}

    @override
    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Return the policy term plus ``nll_coef`` times the NLL of the positives (eq. 8)."""
        rows = dict(inputs)
        group = rows.pop("group")
        if self._trunk is not None:  # TRL shuffled the groups; the trunk lies in the order of the rollouts
            order = group.argsort()
            rows = {name: x[order] if torch.is_tensor(x) and x.ndim else x for name, x in rows.items()}
        tokens, is_positive = rows.pop("positive_ids"), rows.pop("is_positive")
        page = (rows.pop("page_ids"), rows.pop("is_page_item")) if self.args.page_coef > 0 else None
        self._positives = (tokens, is_positive) if self.args.nll_coef > 0 else None
        terms = {"grpo": self._grpo, "listwise_kl": self._listwise_kl, "none": self._nll_alone}
        terms |= dict.fromkeys(PREFERENCE_TERMS, self._preference)
        page_loss = self.args.page_coef * self._page_nll(model, rows, *page) if page is not None else 0.0
        loss = terms[self.args.policy_term](model, rows) + page_loss
        self._positives = self._trunk = None
        if self.args.nll_coef == 0:
            return loss
        positive_log_probs, self._positive_log_probs = self._positive_log_probs, None
        assert positive_log_probs is not None
        nll = positive_nll(positive_log_probs, is_positive, reduction=self.args.nll_reduction)
        self._log_mean("nll", nll)
        if self._positive_weights is not None:
            weights, self._positive_weights = self._positive_weights, None
            nll = positive_nll(positive_log_probs, is_positive, reduction=self.args.nll_reduction, weights_PM=weights)
            self._log_mean("unified/nll", nll)
        return loss + self.args.nll_coef * nll / self.current_gradient_accumulation_steps

    def _page_nll(self, model: Any, rows: dict[str, Any], tokens_PNC: Tensor, is_item_PN: Tensor) -> Tensor:
        """Return eq. 4 of the same prompts: the page's positives, each after those before it."""
        page = tokens_PNC.flatten(1)[:, None]
        policy = self._log_probs(model, rows["prompt_ids"], rows["prompt_mask"].bool(), page)
        log_probs = score_branches(policy, page).log_probs_BGC.view(tokens_PNC.shape)
        nll = positive_nll(log_probs, is_item_PN, reduction=self.args.nll_reduction)
        self._log_mean("page_nll", nll)
        return nll / self.current_gradient_accumulation_steps

    def _grpo(self, model: Any, rows: dict[str, Any]) -> Tensor:
        """Return TRL's policy loss of groups, which it reads one rollout a row."""
        size = rows["completion_ids"].shape[1]
        for name in _GROUP_KEYS:
            if rows.get(name) is not None:
                rows[name] = rows[name].flatten(0, 1)
        for name in _PROMPT_KEYS:
            rows[name] = rows[name].repeat_interleave(size, dim=0)
        return super()._compute_loss(model, rows)

    def _listwise_kl(self, model: Any, rows: dict[str, Any]) -> Tensor:
        """Return the KL from the target that the rewards make of the start's distribution (``rl.listwise``)."""
        rollouts, prompt = rows["completion_ids"], (rows["prompt_ids"], rows["prompt_mask"].bool())
        size = rollouts.shape[1]
        branches = self._with_positives(rollouts)
        reference = self._read_start(model, prompt, rollouts)
        policy = self._log_probs(model, *prompt, branches)
        self._positive_log_probs = score_branches(policy, branches).log_probs_BGC[:, size:]
        of_rollouts = BranchLogits(policy.first_BV, policy.later_BGWV[:, :size])
        weight, per_mass = self.args.margin_weight, self.args.per_mass
        margins = log_odds(rows["values"].cpu()).to(rollouts.device)  # (in float64, which not every GPU has)
        kl = listwise_kl(of_rollouts, reference, rollouts, margins, weight=weight, per_mass=per_mass).mean()
        self._log_mean("listwise_kl", kl)
        return kl / self.current_gradient_accumulation_steps

    def _preference(self, model: Any, rows: dict[str, Any]) -> Tensor:
        """Return the loss of preferences among rollouts (``rl.preference``), weighed if ``unified``."""
        rollouts, values = rows["completion_ids"], rows["values"]
        prompt, size = (rows["prompt_ids"], rows["prompt_mask"].bool()), rollouts.shape[1]
        branches = self._with_positives(rollouts)
        scored = score_branches(self._log_probs(model, *prompt, branches), branches).log_probs_BGC
        self._positive_log_probs = scored[:, size:]
        candidates, scale, options = rollouts, None, {}
        if self.args.unified:
            assert self._positives is not None
            listed = candidate_list(rollouts, values, *self._positives)
            scale, imitation = unified_weights(scored.sum(-1), listed, z_max=self.args.z_max)
            self._positive_weights = imitation[:, size:]
            candidates, values, options = branches, listed.values_PN, {"is_candidate_PG": listed.is_candidate_PN}
        start = score_branches(self._read_start(model, prompt, candidates), candidates).log_probs_BGC.sum(-1)
        log_probs = scored[:, : start.shape[1]].sum(-1)
        found = self.args.preference_loss()(log_probs, start, values, **options)
        loss = found.mean(scale)
        self._log_mean(self.args.policy_term, loss)
        statistics = self.accelerator.gather(pair_statistics(found, log_probs.detach()))
        for name, value in preference_metrics(statistics).items():
            self._metrics["train"][name].append(value)
        return loss / self.current_gradient_accumulation_steps

    def _read_start(self, model: Any, prompt: tuple[Tensor, Tensor], branches: Tensor) -> BranchLogits:
        """Read branches under the policy that RL started from."""
        assert self._start is not None
        trained = self.accelerator.unwrap_model(model)
        with torch.no_grad(), self._start.network(trained) as start:
            return self._reader.on_trunk(start, self._reader.trunk(start, *prompt), branches)

    def _nll_alone(self, model: Any, rows: dict[str, Any]) -> Tensor:
        """Score the positives alone: supervised training on the same pages, steps and schedule, as a control."""
        if self._positives is None:  # nll_coef is 0, and page_coef teaches alone
            return rows["advantages"].new_zeros(())
        tokens = self._positives[0]
        policy = self._log_probs(model, rows["prompt_ids"], rows["prompt_mask"].bool(), tokens)
        self._positive_log_probs = score_branches(policy, tokens).log_probs_BGC
        return self._positive_log_probs.new_zeros(())

    def _with_positives(self, rollouts: Tensor) -> Tensor:
        """Return the branches to read: the rollouts, and behind them the positives that the NLL asks for."""
        return rollouts if self._positives is None else torch.cat([rollouts, self._positives[0]], dim=1)

    def _log_mean(self, name: str, values: Tensor) -> None:
        """Log the mean over all processes."""
        self._metrics["train"][name].append(self.accelerator.gather(values.detach()).mean().item())

    def _log_probs(self, model: Any, prompt_ids: Tensor, is_prompt: Tensor, branches: Tensor) -> BranchLogits:
        """Read branches along their prompts, which a fused step has read already."""
        if self._trunk is not None and torch.is_grad_enabled():
            return self._reader.on_trunk(model, self._trunk, branches)
        return self._reader.in_one_forward(model, prompt_ids, is_prompt, branches)

    @torch.no_grad()
    def _read_policy(self, *batch: Tensor) -> BranchLogits:
        with in_eval_mode(self.policy.model):
            return self._log_probs(self.policy.model, *(x.to(self.policy.model.device) for x in batch))

    @override
    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **multimodal: Any,
    ) -> tuple[Tensor, Tensor | None, None]:
        """Score rollouts, and the positives with them, as branches of one tree a prompt."""
        size = self.num_generations
        prompt_ids = input_ids[::size, :-logits_to_keep]
        is_prompt = attention_mask[::size, :-logits_to_keep].bool()
        branches = self._with_positives(input_ids[:, -logits_to_keep:].unflatten(0, (-1, size)))
        fused = self._trunk is not None and torch.is_grad_enabled()
        chunk = len(branches) if fused else max((batch_size or len(input_ids)) // size, 1)
        scores = [
            score_branches(self._log_probs(model, *part), part[2], train_entropy=self._entropy_bonus_enabled)
            for part in zip(prompt_ids.split(chunk), is_prompt.split(chunk), branches.split(chunk), strict=True)
        ]
        scored = BranchScores(*(torch.cat(part) for part in zip(*scores, strict=True)))
        self._positive_log_probs = scored.log_probs_BGC[:, size:]
        entropies = scored.entropies_BGC[:, :size].flatten(0, 1) if compute_entropy else None
        return scored.log_probs_BGC[:, :size].flatten(0, 1), entropies, None

    @override
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate, and log it as an evaluation: TRL tells by the model's mode whose metrics a row takes."""
        with in_eval_mode(self.model):
            return super().evaluate(*args, **kwargs)

    @override
    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Recommend for the validation pages; rollouts and losses say nothing about them."""
        assert self.validation is not None
        measured = self.validation.measure(self.accelerator)
        named = {f"{metric_key_prefix}_{name}": value for name, value in measured.items()}
        if self.args.guard:
            named |= guarded(named, self.state.log_history)
        return EvalLoopOutput(np.empty(0), None, named, len(self.validation.examples))

    @override
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log without what is constant for answers of three tokens."""
        for name in [n for n in self._metrics["train"] if n.startswith(_UNINFORMATIVE)]:
            del self._metrics["train"][name]
        super().log(logs, start_time)

    def rollout_table(self, titles: Sequence[str]) -> list[tuple[Any, ...]]:
        """Return a sample of the newest rollouts as rows of ``telemetry.TABLE_COLUMNS``."""
        return rollout_table(*self._newest, titles) if self._newest else []


def _roll_out(prompts: list[np.ndarray], trainer: GRPOSRTrainer) -> dict[str, Any]:
    return trainer.roll_out(prompts)


def _scored_by_trainer(**_: Any) -> list[float]:
    """Stand in the place of TRL's reward functions: ``_calculate_rewards`` never calls them."""
    raise NotImplementedError
