"""What a network learns: one contract (`objective.py`), one folder per objective."""
