"""The command line and the whole of a job: strings become objects here and nowhere else."""
