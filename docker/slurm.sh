#!/bin/bash
# A sweep in one SLURM job, in the Apptainer image; it is requeued, and goes on, until it is done:
#   sbatch docker/slurm.sh dataset=owt,tinystories seed=42,49 sweep=my-sweep launcher=local
#SBATCH --job-name=sae-sweep
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300
# Five minutes before the time is up, and at a preemption, the command gets SIGTERM: it saves every run and exits with 143.
set -uo pipefail

SIF=${SIF:-$PWD/sae-sweep.sif}
export XDG_CACHE_HOME=${SCRATCH:-$HOME}/cache # with room for downloads and activations, and seen by every node
mkdir -p "$XDG_CACHE_HOME"
unset PYTHONPATH # of the host
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not take it over by itself since SLURM 22.05

trap : TERM # the signal is for the command; this shell goes on
srun apptainer run --nv --bind "$PWD,$XDG_CACHE_HOME" --pwd "$PWD" "$SIF" "$@"
status=$?
if [[ $status -eq 143 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
