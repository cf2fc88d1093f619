"""From a run folder to a job: submitit on SLURM, or on this machine."""
