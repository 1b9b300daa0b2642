#!/usr/bin/env bash
# The whole pipeline as jobs that wait for one another; run it on the login node, from the project's folder:
#
#     examples/slurm/pipeline.sh --partition=gpu --account=mine
#
# Its options are passed to every sbatch. NODES, GPUS (of each node) and JOBS (of each array) are taken from the
# environment. Slurm does not know what is still right after an edit: every stage runs again. Only a training that is
# finished and that the edit does not concern is published again without training. Extractions and samples are made
# again, so submit the jobs that you need by hand.
set -euo pipefail

nodes=${NODES:-1} gpus=${GPUS:-1} jobs=${JOBS:-8}
here=$(dirname "$0")
options=("$@")
last=

submit() { # submit OPTION ... SCRIPT ARGUMENT: a job that starts when the one before it has succeeded
    local after=()
    [[ -n $last ]] && after=(--dependency "afterok:$last")
    last=$(sbatch --parsable "${options[@]}" "${after[@]}" "$@")
    last=${last%%;*}
    echo "$last: ${*: -1}"
}

alone() { # alone OPTION ... MODULE: a stage in one process
    submit --ntasks 1 "${@:1:$#-1}" "$here/stage.sh" "${*: -1}"
}

alone stage0_images.prepare
submit --nodes "$nodes" --gpus-per-node "$gpus" "$here/train.sh" stage1_vqvae.train
submit --nodes "$nodes" --gpus-per-node "$gpus" "$here/train.sh" stage1_vqvae.refine # ends at once where it is off
alone --gpus 1 stage1_vqvae.reconstruct
submit --array "0-$((jobs - 1))" --gpus 1 "$here/parts.sh" stage1_vqvae.extract
alone stage1_vqvae.extract
submit --nodes "$nodes" --gpus-per-node "$gpus" "$here/train.sh" stage2_prior.train
submit --array "0-$((jobs - 1))" --gpus 1 "$here/parts.sh" sampling.sample
alone sampling.sample
submit --nodes 1 --gpus-per-node 1 "$here/train.sh" evaluation.train_classifier
alone --gpus 1 evaluation.evaluate
alone evaluation.report
