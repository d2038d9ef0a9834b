"""Gradient-boosted trees over request-time features as a reward model: trained in seconds, read by people."""

from reward_models.xgb.reward import XGB

__all__ = ["XGB"]
