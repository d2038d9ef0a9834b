"""What a simulated user really wants: a synthetic market's own click model, as a scorer that no training may see.

In a market of ``data.sources.synthetic`` the preference behind every click is known. As ``gold_model`` of
recipes/grpo_sr.py, or beside the reward in a table, it says whether a rising reward is a rising truth.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Float, Int
from typing_extensions import override

from genrec_rl.data.sources.synthetic import Market
from genrec_rl.rewards.protocol import RewardModel
from genrec_rl.types import Context
from reward_models.manifest import digest_of

_FILE = "truth.npz"


class TruePreference(RewardModel):
    """The probability that the user clicks an examined item at the second of the request.

    Args:
        market: users, items and their latent vectors.
    """

    def __init__(self, market: Market) -> None:
        self.market = market

    @property
    @override
    def fingerprint(self) -> str:
        return digest_of({name: array.tobytes() for name, array in self.market.arrays().items()})

    @override
    def score(self, contexts: Sequence[Context], candidates: Int[np.ndarray, "P G"]) -> Float[np.ndarray, "P G"]:
        users = np.array([context.user_id for context in contexts])
        times = np.array([context.time for context in contexts], dtype=np.int64)
        return self.market.true_preference(users[:, None], candidates, times[:, None]).astype(np.float32)

    @override
    def save_pretrained(self, path: str | Path) -> None:
        Path(path).mkdir(parents=True, exist_ok=True)
        np.savez(Path(path) / _FILE, allow_pickle=False, **self.market.arrays())

    @classmethod
    @override
    def from_pretrained(cls, path: str | Path) -> Self:
        """Load from the folder of prepared synthetic data.

        Raises:
            DataError: when it holds no market's truth.
        """
        return cls(Market.load(Path(path) / _FILE))
