"""7. GRPO-SR on TRL."""
