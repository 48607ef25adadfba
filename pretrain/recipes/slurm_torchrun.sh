#!/bin/bash
# Pretraining on the GPUs of one node of a Slurm cluster, with torchrun. Never run by us on a cluster.
#
#   sbatch slurm_torchrun.sh base_8gpu --registry /shared/registry --out /shared/runs/base
#
# The words after the script go to `core-mri pretrain run`. Submitted again, or put back into the
# queue when its time is over, the job goes on from its newest checkpoint. For several nodes take
# slurm_ray.sh.
#SBATCH --job-name=core-mri
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=96
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

workers=${WORKERS:-${SLURM_GPUS_ON_NODE:-1}}
core-mri pretrain run "$@" --launcher torchrun --num-workers "$workers" &
run=$!
trap 'kill -TERM "$run"' TERM
code=0
wait "$run" || code=$?
if ((code > 128)) && kill -0 "$run" 2>/dev/null; then # the signal ended `wait`, not the run
  code=0
  wait "$run" || code=$?
fi
if ((code == 130)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
