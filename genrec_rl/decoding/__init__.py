"""4. Beam search on one shared prompt cache."""
