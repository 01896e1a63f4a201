#!/usr/bin/env bash
# Trains on the GPUs of several nodes under SLURM, one process for each GPU.
#
#   sbatch --nodes=4 launch/gpu_slurm.sh --config=... --workdir=...
#   bash launch/gpu_slurm.sh --dry_run --config=... --workdir=...
#
# Runs in the active environment; dataset and workdir stand on a file system that all nodes
# see. If one process dies, all are ended, started again and resume, at most RESTARTS times
# (100); if a node fails, the job is queued again. An error that a user can mend (exit code
# 2) is not tried again.
#SBATCH --job-name=svc_jax
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=svc_jax-%j.log
set -euo pipefail
run=
[[ ${1:-} != --dry_run ]] || { run=echo; shift; }

for ((attempt = 0; attempt <= ${RESTARTS:-100}; attempt++)); do
  code=0
  # JAX reads from SLURM's variables who the others are.
  $run srun --kill-on-bad-exit=1 python -m svc_jax.train "$@" || code=$?
  ((code != 0 && code != 2)) || exit "$code"
  echo "a process ended with code $code: all start again" >&2
done
exit "$code"
