#!/usr/bin/env bash
# The parts of an extraction or of sampling, made by as many jobs as the array has, wherever there is room for one:
#
#     sbatch --array 0-15 --gpus 1 examples/slurm/parts.sh stage1_vqvae.extract
#
# A job that is stopped goes on at its next part when it runs again. When all jobs are done, the same stage without
# options puts the parts together and publishes them: python -m stage1_vqvae.extract
#SBATCH --job-name=tessera-parts
#SBATCH --ntasks=1
#SBATCH --time=02:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A-%a.log
set -euo pipefail

module=${1:?give stage1_vqvae.extract or sampling.sample}
# shellcheck disable=SC1091
[[ -f .venv/bin/activate ]] && source .venv/bin/activate
exec python -m "$module" --share "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
