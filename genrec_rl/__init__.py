"""Aligning generative recommenders with reinforcement learning: GenRec and GRPO-SR on TRL."""
