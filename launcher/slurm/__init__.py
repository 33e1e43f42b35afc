"""A run as a chain of Slurm jobs, one for each stage: scripts, submission, and what became of them."""
