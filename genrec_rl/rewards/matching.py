"""Which rollouts are real positives of the page (D+ = ordered and clicked).

P   prompts        G   rollouts per prompt
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from genrec_rl.types import NO_ITEM


def match_positives(rows_PG: Int[Tensor, "P G"], positives: Sequence[Int[np.ndarray, " m"]]) -> Bool[Tensor, "P G"]:
    """Return whether each rollout's item is among its own page's positives; an invalid SID never is.

    Rollouts are matched by SID: where items share one, pass both sides through ``Catalog.rows_of``, which names
    one item for all of them.
    """
    if len(rows_PG) != len(positives):
        raise ValueError(f"{len(rows_PG)} rollout groups for {len(positives)} pages; one page per group")
    hits = [np.isin(rows, page) for rows, page in zip(rows_PG.cpu().numpy(), positives, strict=True)]
    is_hit_PG = torch.from_numpy(np.stack(hits)) if hits else torch.zeros(rows_PG.shape, dtype=torch.bool)
    return is_hit_PG.to(rows_PG.device) & (rows_PG != NO_ITEM)
