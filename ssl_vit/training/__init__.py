"""Training: plan, loop, engine, checkpoints, metrics. Knows objectives only by their contract."""
