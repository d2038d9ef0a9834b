"""Where rollouts come from: searches of the policy, or of the start, each step with a noise of its own."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Bool, Int
from peft import PeftModel
from torch import Tensor
from trl.models import unwrap_model_for_generation

from genrec_rl.decoding.beam_search import BeamPlan, Beams
from genrec_rl.decoding.exclusion import SeenItems
from genrec_rl.models.policy import Policy
from genrec_rl.models.trunk import Trunk, in_eval_mode
from genrec_rl.rl.config import GRPOSRConfig
from genrec_rl.rl.reading import Reader
from genrec_rl.rl.rollouts import roll_out_from
from genrec_rl.rl.start import Start
from genrec_rl.sids.catalog import Catalog
from genrec_rl.types import Context, Example


class RolloutSearch:
    """Searches G rollouts of each prompt.

    Args:
        policy: the policy under training.
        catalog: of its items.
        reader: reads prompts.
        accelerator: of the training.
        args: the choices of rollouts.
        start: searched in the policy's place where ``rollouts_from`` says so.
        examples: all that prompts may be made of.

    Raises:
        RolloutError: when ``exclude_seen`` leaves one of the examples fewer SIDs than a group has.
    """

    def __init__(
        self,
        policy: Policy,
        catalog: Catalog,
        reader: Reader,
        accelerator: Accelerator,
        *,
        args: GRPOSRConfig,
        start: Start | None,
        examples: Sequence[Example],
    ) -> None:
        self._reader, self._accelerator, self._args, self._start = reader, accelerator, args, start
        plan = BeamPlan((args.num_generations or 0,) * policy.vocab.n_levels, policy.model.config.softmax)
        trie = catalog.trie if args.constrained_rollouts else None
        self._settings: dict[str, Any] = {"kind": args.rollouts, "vocab": policy.vocab, "plan": plan, "trie": trie}
        self._seen = SeenItems(catalog, policy.vocab) if args.exclude_seen else None
        if self._seen is not None and trie is not None:
            self._seen.check((example.context for example in examples), at_least=args.num_generations or 0)

    def __call__(
        self,
        trained: Any,
        ids_PS: Int[Tensor, "P S"],
        is_prompt_PS: Bool[Tensor, "P S"],
        *,
        trunk: Trunk | None,
        contexts: Sequence[Context],
        seeds: tuple[int, ...],
    ) -> Beams:
        """Search.

        Args:
            trained: the policy's network, wrapped as it is trained.
            ids_PS: prompts.
            is_prompt_PS: what of them is no padding.
            trunk: of these prompts and this network, where they have been read already.
            contexts: the prompts' own, with whole histories whatever the prompts kept of them.
            seeds: of the noise; a resumed run finds it again.
        """
        excluded = None if self._seen is None else self._seen.of(contexts).to(ids_PS.device)
        settings = self._settings | {"excluded": excluded, "generator": self._noise(seeds)}
        with torch.no_grad(), unwrap_model_for_generation(trained, self._accelerator) as wrapped:
            if self._args.rollouts_from == "start":
                assert self._start is not None
                with self._start.network(wrapped) as start, self._accelerator.autocast():
                    return roll_out_from(start, self._reader.trunk(start, ids_PS, is_prompt_PS), **settings)
            model = wrapped.get_base_model() if isinstance(wrapped, PeftModel) else wrapped
            with in_eval_mode(model), self._accelerator.autocast():
                trunk = trunk or self._reader.trunk(model, ids_PS, is_prompt_PS)
                return roll_out_from(model, trunk, **settings)

    def _noise(self, seeds: tuple[int, ...]) -> torch.Generator:
        seed = int(np.random.SeedSequence(seeds).generate_state(1)[0])
        return torch.Generator(self._accelerator.device).manual_seed(seed)
