"""How much faster are prepared images read than training consumes them?

    python benchmarks/reading.py [--repeats 30] [--json FILE]

Run where `prepare` has been run. Reads random batches of data/prepared, augmentation included, and takes training steps
of the VQ-VAE of params.yaml (forward, backward, optimizer, codebook), one after the other in turn; prints the median
time of each with quartiles, and their ratio.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from common import paths
from common.distributed import set_threads
from common.images import open_prepared
from common.params import load
from common.training import build_optimizer
from stage1_vqvae.model import VQVAE, model_config
from stage1_vqvae.task import VQVAETask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    params, prepared = load(paths.PARAMS), open_prepared(paths.PREPARED)
    set_threads(params.runtime.threads)
    section = params.stage1_vqvae
    model = VQVAE(model_config(section, prepared.stats))
    training = section.training
    if training.channels_last:
        model.to(memory_format=torch.channels_last)
    task = VQVAETask(model, prepared["train"], prepared["validation"], training, section.augmentation)
    task.start()
    optimizer = build_optimizer(model, training)
    times = {"read": [], "step": []}
    for step in range(arguments.repeats + 3):
        began = time.perf_counter()
        batch = task.batch(step, slice(None))
        read = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=training.precision == "bf16"):
            loss, _ = model(**batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        task.update(step)
        if step >= 3:
            times["read"].append(read - began)
            times["step"].append(time.perf_counter() - read)
    quartiles = {name: np.percentile(values, [25, 50, 75]).tolist() for name, values in times.items()}
    for name, (low, median, high) in quartiles.items():
        rate = training.batch_size / median
        print(f"{name:5} {median * 1e3:8.2f} ms a batch ({low * 1e3:.2f} to {high * 1e3:.2f}), {rate:9.0f} images/s")
    ratio = quartiles["step"][1] / quartiles["read"][1]
    print(f"reading is {ratio:.0f} times faster than training")
    if arguments.json:
        arguments.json.write_text(json.dumps({"quartiles": quartiles, "ratio": ratio}, indent=2) + "\n")


if __name__ == "__main__":
    main()
