"""Reward models: each implements ``genrec_rl.rewards.protocol.RewardModel``."""
