"""What a network learns: one contract (`objective.py`), one file an objective."""
