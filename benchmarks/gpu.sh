#!/usr/bin/env bash
# One command on a machine with a GPU: the tests that need no DVC (what fails is told, and the rest goes on), then the
# pipeline on the digits; where CIFAR-10's folder is given, its preset, and bits per dimension after 10 minutes.
#
#   bash benchmarks/gpu.sh [CIFAR10_FOLDER]
#
# Needs torch, torchvision, accelerate, transformers, pydantic, ruamel.yaml, datasets, scikit-learn and torchmetrics in
# the python3 at hand, and for the tests pytest and vector-quantize-pytorch; DVC is not needed. Leaves figures under ${OUT:-gpu-results}.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
out=$(mkdir -p "${OUT:-gpu-results}" && cd "${OUT:-gpu-results}" && pwd)

python3 -c 'import torch; assert torch.cuda.is_available(), "no GPU"; print(torch.__version__, torch.cuda.get_device_name())'
python3 -m pytest -q "$root/tests" --ignore-glob "$root/tests/test_dvc_*.py" 2>&1 | tee "$out/tests.log" \
  || echo "the tests did not all pass: $out/tests.log" >&2

run() { # NAME [DATA_FOLDER]: every stage in a folder of its own, timed
  local folder="$out/$1"
  mkdir -p "$folder/data" && cd "$folder"
  cp "$root/params.yaml" . && cp "$root/data/embedded.txt" data/
  [ $# -lt 2 ] || python3 -m tessera preset "$1" -S "data.source=$2"
  for stage in stage0_images.prepare stage1_vqvae.train stage1_vqvae.refine stage1_vqvae.reconstruct stage1_vqvae.extract \
    stage2_prior.train evaluation.train_classifier sampling.sample evaluation.evaluate evaluation.report; do
    local began=$SECONDS
    python3 -m "$stage"
    echo "$1 $stage: $((SECONDS - began)) s" | tee -a "$out/times.log"
  done
  cp results/evaluate/metrics.json "$out/$1.json" && cp results/sample/grid.png "$out/$1.png"
}

(run digits)
if [ $# -ge 1 ]; then
  cifar10=$(realpath "$1")
  (run cifar10 "$cifar10")
  python3 "$root/benchmarks/bits_per_dim.py" "$cifar10" --attempt "16x16, 2 of 8x8" --minutes 10 --folder "$out/bits" \
    --rows "$out/bits_per_dim.jsonl" | tee "$out/bits_per_dim.log"
fi
