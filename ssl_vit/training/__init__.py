"""How learning runs: plan, loop, engine, checkpoints, metrics. Knows objectives by their contract
only.
"""
