"""Runs as jobs: on SLURM through submitit, or on this machine."""
