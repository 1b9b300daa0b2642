#!/usr/bin/env bash
# One training on one or several nodes, submitted from the project's folder, which all nodes share:
#
#     sbatch --nodes 2 --gpus-per-node 4 examples/slurm/train.sh stage1_vqvae.train
#
# Five minutes before its time is over the training saves its state, and the job goes back into the queue. So it does
# when it is preempted and when a node fails, then from the last saved state. Of a finished training nothing is trained
# again.
#SBATCH --job-name=tessera
#SBATCH --ntasks-per-node=1
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

module=${1:?give a training, such as stage1_vqvae.train}
processes=${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
port=$((20000 + SLURM_JOB_ID % 20000))
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p) # head would close the pipe early
# shellcheck disable=SC1091
[[ -f .venv/bin/activate ]] && source .venv/bin/activate

# After a signal torchrun waits so many seconds for processes that save. By default it kills them after 30.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}
srun --kill-on-bad-exit=1 torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$processes" \
    --rdzv-backend c10d --rdzv-endpoint "$first:$port" --rdzv-id "$SLURM_JOB_ID" -m "$module" &
running=$!

save_and_requeue() {
    trap '' TERM
    kill -TERM "$running" # srun passes it on to every node, and torchrun to every process
    wait "$running" || true
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap save_and_requeue TERM
wait "$running"
