"""4. Beam search on prompts that are read once."""
