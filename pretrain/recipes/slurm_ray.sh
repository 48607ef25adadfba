#!/bin/bash
# Pretraining on several nodes of a Slurm cluster, on Ray. Never run by us on a cluster.
#
#   sbatch --nodes 2 slurm_ray.sh base_8gpu --registry /shared/registry --out /shared/runs/base
#
# The words after the script go to `core-mri pretrain run`. All nodes see the folder of the registry,
# that of the run, and the environment with core-mri. Submitted again, or put back into the queue
# when its time is over or a node was lost, the job goes on from its newest checkpoint.
#
# `ray symmetric-run` would be shorter, but ends without an error when its head did not start.
#SBATCH --job-name=core-mri
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=96
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

cpus=${SLURM_CPUS_PER_TASK:-1}
gpus=${SLURM_GPUS_ON_NODE:-0}
workers=${WORKERS:-$((SLURM_JOB_NUM_NODES * (gpus > 0 ? gpus : 1)))}
port=${RAY_PORT:-$((20000 + SLURM_JOB_ID % 10000))}
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
ip=$(srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
address=$ip:$port
node=(--num-cpus="$cpus" --num-gpus="$gpus" --disable-usage-stats --block)

started=()
stop() { kill "${started[@]}" 2>/dev/null || true; wait; }
trap stop EXIT

srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
  ray start --head --node-ip-address="$ip" --port="$port" "${node[@]}" &
started+=($!)
for _ in {1..60}; do
  ray status --address "$address" >/dev/null 2>&1 && break
  sleep 2
done
if ((SLURM_JOB_NUM_NODES > 1)); then
  srun --overlap --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) \
    --exclude="$head" ray start --address="$address" "${node[@]}" &
  started+=($!)
fi

core-mri pretrain run "$@" --ray "$address" --num-workers "$workers" &
run=$!
started+=("$run")
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
