"""How much faster are prepared images read than training consumes them?

    python benchmarks/reading.py [--repeats 30] [--json FILE]

Run where `prepare` has been run. Reads random batches of data/prepared, augmentation included, and takes training steps
of the VQ-VAE of params.yaml, the trainer's own and compiled where the run is, one after the other in turn; prints the
median time of each with quartiles, and their ratio.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from runs import Steps, task_of

from tessera import paths
from tessera.images.prepared import open_prepared
from tessera.launch.devices import set_threads
from tessera.parameters import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    params, prepared = load(paths.PARAMS), open_prepared(paths.PREPARED)
    params = params.model_copy(update={"runtime": params.runtime.model_copy(update={"log_every": 1})})
    set_threads(params.runtime.threads)
    task = task_of(params, prepared)
    task.initialise()
    take_step = Steps(task, params.stage1_vqvae.training, params.runtime)
    times = {"read": [], "step": []}
    for step in range(arguments.repeats + 3):
        began = time.perf_counter()
        batch = task.batch(step, slice(None))
        read = time.perf_counter()
        take_step(batch)
        if step >= 3:
            times["read"].append(read - began)
            times["step"].append(time.perf_counter() - read)
    quartiles = {name: np.percentile(values, [25, 50, 75]).tolist() for name, values in times.items()}
    for name, (low, median, high) in quartiles.items():
        rate = params.stage1_vqvae.training.batch_size / median
        print(f"{name:5} {median * 1e3:8.2f} ms a batch ({low * 1e3:.2f} to {high * 1e3:.2f}), {rate:9.0f} images/s")
    ratio = quartiles["step"][1] / quartiles["read"][1]
    print(f"reading is {ratio:.0f} times faster than training")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"quartiles": quartiles, "ratio": ratio}, indent=2) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
