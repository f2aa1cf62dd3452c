"""Where groups of runs are trained: in this process, in local workers, on SLURM, through other launchers."""
