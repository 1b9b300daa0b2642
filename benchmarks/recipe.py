"""The notebook's recipe against our preset on CIFAR-10: how long until the held-out NMSE is 0.080?

    python benchmarks/recipe.py DATASET [--minutes 40] [--every 100] [--only notebook|preset] [--test] [--plot FILE]

Trains the zalandoresearch notebook's recipe (benchmarks/plain.py; fp32) until it is there, then presets/cifar10.yaml to
its end, one after the other, on the same training images; both are judged on the same held-out ones. The clock counts
everything but reading the data and judging: for ours the codebook's start and compilation, from an empty cache, too.
A row an evaluation goes to --rows as it comes; `--test` measures each on the test split, once, at the end.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import torch
from plain import BATCH_SIZE, LEARNING_RATE, PlainVQVAE, plain_step, to_notebook
from runs import STAGE1, add_row, arguments, images, parameters, read_rows, schedule, train

from tessera.images.prepared import ImageSplit, PreparedImages
from tessera.launch.devices import set_threads
from tessera.parameters import Params
from tessera.training.tracking import Row

TARGET = 0.080


@torch.no_grad()
def judge(model: PlainVQVAE, split: ImageSplit) -> Row:
    """NMSE and the whole split's perplexity and usage; the reconstruction is clipped, as ours is."""
    model.eval()
    squared, counts = 0.0, torch.zeros(len(model.quantizer.codebook))
    for start in range(0, len(split), BATCH_SIZE):
        batch = to_notebook(split.pixels(slice(start, start + BATCH_SIZE)))
        _, reconstructions, output = model(batch)
        squared += (reconstructions.clamp(-0.5, 0.5) - batch).square().sum().item()
        counts += output.counts
    model.train()
    shares = counts / counts.sum()
    nmse = squared / (len(split) * batch[0].numel()) / model.data_variance
    perplexity = torch.special.entr(shares).sum().exp().item()
    return {"nmse": nmse, "perplexity": perplexity, "codebook_usage": (counts > 0).float().mean().item()}


def train_notebook(prepared: PreparedImages, minutes: float, every: int, on_evaluation: Callable) -> PlainVQVAE:
    """Until the target is reached, or the minutes are over."""
    train = torch.from_numpy(np.array(prepared["train"].images))  # reading: before the clock starts
    began, judging = time.perf_counter(), 0.0
    torch.manual_seed(0)
    model = PlainVQVAE(prepared.stats.variance / 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    batches: list[torch.Tensor] = []
    for step in count(1):
        batches = batches or list(torch.randperm(len(train)).split(BATCH_SIZE))
        plain_step(model, optimizer, train[batches.pop()])
        seconds = time.perf_counter() - began - judging
        if step % every == 0 or seconds > 60 * minutes:
            paused = time.perf_counter()
            row = judge(model, prepared["validation"])
            on_evaluation({"step": step, "seconds": seconds, **row})
            judging += time.perf_counter() - paused
            if row["nmse"] <= TARGET or seconds > 60 * minutes:
                return model


def run_notebook(params: Params, prepared: PreparedImages, options: argparse.Namespace, note: Callable) -> None:
    model = train_notebook(prepared, options.minutes, options.every, note)
    if options.test:
        print(f"notebook, test split: {judge(model, prepared['test'])}")


def run_preset(params: Params, prepared: PreparedImages, options: argparse.Namespace, note: Callable) -> None:
    run = train(params, prepared, note)
    if options.test:
        run.task.validation = prepared["test"]
        print(f"preset, test split: {run.task.validate()}")


RUN = {"notebook": run_notebook, "preset": run_preset}


def reached(rows: list[Row]) -> float | None:
    """Seconds at the first evaluation at the target."""
    return next((row["seconds"] for row in rows if row["nmse"] <= TARGET), None)


def draw(curves: dict[str, list[Row]], file: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    names = {"notebook": "notebook's recipe (fp32)", "preset": "presets/cifar10.yaml"}
    for recipe, rows in curves.items():
        axes.plot([r["seconds"] / 60 for r in rows], [r["nmse"] for r in rows], label=names[recipe])
    axes.axhline(TARGET, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xscale="log", yscale="log", xlabel="minutes of training", ylabel="NMSE, held-out images")
    axes.set_title("CIFAR-10, 8x8 codes of 512, the same network")
    axes.legend()
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = arguments(__doc__, "recipe.jsonl")
    parser.add_argument("--minutes", type=float, default=40, help="at most, for the notebook's (default: %(default)s)")
    parser.add_argument("--every", type=int, default=100, help="steps between evaluations (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="of our preset, in place of its own")
    parser.add_argument("--only", choices=tuple(RUN), help="run one; the other's rows stay")
    parser.add_argument("--test", action="store_true", help="measure the test split at the end")
    options = parser.parse_args()
    changes = {"runtime.threads": options.threads, STAGE1 + "training.validate_every": options.every}
    params = parameters(changes | (schedule(options.steps) if options.steps else {}), dataset=options.dataset)
    prepared = images(options.folder, params)
    set_threads(options.threads)
    wanted = [options.only] if options.only else list(RUN)
    kept = [row for row in read_rows(options.rows) if row["recipe"] not in wanted]
    options.rows.unlink(missing_ok=True)
    for row in kept:
        add_row(options.rows, row)
    for recipe in wanted:

        def note(row: Row, recipe: str = recipe) -> None:
            add_row(options.rows, {"recipe": recipe, **row})
            print(f"{recipe:8} step {row['step']:6} {row['seconds']:8.1f} s  NMSE {row['nmse']:.4f}", flush=True)

        RUN[recipe](params, prepared, options, note)
    curves = {recipe: [r for r in read_rows(options.rows) if r["recipe"] == recipe] for recipe in RUN}
    times = {recipe: reached(rows) for recipe, rows in curves.items()}
    for recipe, rows in curves.items():
        at = f"after {times[recipe]:.1f} s" if times[recipe] else "not reached"
        best = min((row["nmse"] for row in rows), default=float("nan"))
        print(f"{recipe}: NMSE {TARGET:.3f} {at}; best {best:.4f}, {rows[-1]['seconds'] if rows else 0:.0f} s in all")
    if all(times.values()):
        print(f"the preset needs {times['preset'] / times['notebook']:.3f} of the notebook's time")
    if options.plot:
        draw(curves, options.plot)


if __name__ == "__main__":
    main()
