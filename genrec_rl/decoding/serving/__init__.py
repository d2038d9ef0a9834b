"""A policy behind HTTP: micro-batches, beams that follow the load, a result cache."""
