"""Does any stage need more memory for more images?

    python benchmarks/memory.py [--images 1000] [--factors 1 10 50] [--folder DIR] [--rows FILE] [--show]

Makes that many images times each factor, of 16x16 pixels in 4 classes, and runs every stage on them by itself, with the
same few steps of training. A row for each factor has the most anonymous memory (what is no file's) that a stage's
process held. A row that is there is not measured again. `--show` prints the rows as a table. Linux only.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from repository import REPOSITORY
from runs import RESULTS, absolute, add_row, read_rows
from start import STAGES

from tessera.cli.preset import edit

CHANGES = {
    # What is fitted on so many images needs memory for them; there are as many in every row.
    "stage1_vqvae.training.codebook_images": 512,
    "stage1_vqvae.likelihood.gaussian.fit_images": 512,
    "data.source": "images",
    "data.watch": "images",
    "data.height": 16,
    "data.width": 16,
    "data.channels": 3,
    "extract_codes.shift": 0,
    "stage1_vqvae.training.steps": 20,
    "stage1_vqvae.training.warmup_steps": 2,
    "stage1_vqvae.training.validate_every": 20,
    "stage2_prior.training.steps": 20,
    "stage2_prior.training.warmup_steps": 2,
    "stage2_prior.training.validate_every": 20,
    "stage2_prior.training.extra_pass_fraction": 0.0,
    "refine_decoder.name": "objective",
    "refine_decoder.objective.perceptual.weight": 0.0,
    "refine_decoder.objective.adversarial.weight": 0.1,
    "refine_decoder.objective.adversarial.discriminator.name": "patch",
    "refine_decoder.training.steps": 20,
    "refine_decoder.training.validate_every": 20,
    "classifier.training.steps": 20,
    "classifier.training.warmup_steps": 2,
    "classifier.training.validate_every": 20,
    "runtime.threads": 1,
}
LOOK_APART = 0.02  # seconds
CLASSES = 4


def draw(folder: Path, count: int) -> None:
    """Small random images, in folders by class."""
    random = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"class {number % CLASSES}" / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path, compress_level=1)


def anonymous(process: int) -> int:
    """Bytes of a process's anonymous memory now; 0 when it has ended."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    return 1024 * int(re.search(r"Anonymous:\s+(\d+) kB", text).group(1)) if text else 0


def most(module: str, folder: Path) -> tuple[float, float]:
    """The most anonymous memory of a stage, in MB, and the seconds that it took."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    began, peak = time.monotonic(), 0
    command, quiet = [sys.executable, "-m", module], {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=folder, env=environment, **quiet) as run:
        while run.poll() is None:
            peak = max(peak, anonymous(run.pid))
            time.sleep(LOOK_APART)
        if run.returncode:
            raise SystemExit(f"{module}: {run.stderr.read().decode()[-2000:]}")
    return round(peak / 1e6, 1), round(time.monotonic() - began, 1)


def measure(images: int, factor: int, scratch: Path) -> dict:
    """Every stage on `factor` times so many images."""
    folder = scratch / f"memory-{factor}"
    shutil.rmtree(folder, ignore_errors=True)
    draw(folder / "images", factor * images)
    for file in ("params.yaml", "data/embedded.txt"):
        (folder / file).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / file, folder / file)
    edit(folder / "params.yaml", CHANGES)
    found = {}
    for stage, module in STAGES.items():
        found[stage] = most(module, folder)
        print(f"{factor * images:,} images: {stage} {found[stage][0]:,.0f} MB, {found[stage][1]:.0f} s", flush=True)
    shutil.rmtree(folder)
    return {"images": images, "factor": factor, "mb": {stage: mb for stage, (mb, _) in found.items()}}


def table(rows: list[dict]) -> str:
    """The rows as a table of Markdown: a line for each stage."""
    rows = sorted(rows, key=lambda row: row["factor"])
    heads = [f"{row['images'] * row['factor']:,} images, MB" for row in rows]
    lines = [f"| stage | {' | '.join(heads)} | most over least |", "|" + " --- |" * (len(rows) + 2)]
    for stage in STAGES:
        values = [row["mb"][stage] for row in rows]
        figures = " | ".join(f"{value:,.0f}" for value in values)
        lines.append(f"| {stage} | {figures} | {max(values) / min(values):.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--factors", type=int, nargs="*", default=[1, 10, 50])
    parser.add_argument("--folder", type=absolute, default=REPOSITORY / ".state" / "benchmarks")
    parser.add_argument("--rows", type=absolute, default=RESULTS / "memory.jsonl")
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args()
    for factor in [] if options.show else options.factors:
        there = [(row["images"], row["factor"]) for row in read_rows(options.rows)]
        if (options.images, factor) not in there:
            add_row(options.rows, measure(options.images, factor, options.folder))
    print(table([row for row in read_rows(options.rows) if row["images"] == options.images]))


if __name__ == "__main__":
    main()
