"""A twin of a Slurm cluster and its login node."""
