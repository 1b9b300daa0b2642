#!/usr/bin/env bash
# One stage in one job:
#
#     sbatch examples/slurm/stage.sh stage0_images.prepare
#SBATCH --job-name=tessera-stage
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

# shellcheck disable=SC1091
[[ -f .venv/bin/activate ]] && source .venv/bin/activate
exec python -m "${1:?give a stage, such as stage0_images.prepare}"
