"""Search-based interest model (Pi et al. 2020, arXiv:2006.05639), the paper's reward model."""

from reward_models.sim.reward import SIM

__all__ = ["SIM"]
