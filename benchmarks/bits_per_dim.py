"""Bits per dimension on CIFAR-10 under the uniform prior, no decoder autoregressive over pixels: below 4.67?

    python benchmarks/bits_per_dim.py DATASET --attempt NAME [--minutes 60] [--plot FILE]
    python benchmarks/bits_per_dim.py DATASET --attempt NAME [--minutes 60] --measure validation|test [--refine STEPS]

van den Oord et al. 2017 report 4.67. Rate (Σ log K) and distortion (-log p(x | z)) trade against each other: an attempt
is a point of that trade with a network. Each trains for --minutes (steps measured first, the cosine stretched over
them), judged on the held-out images, a row an evaluation as it comes; its model is kept in --folder. At the end it says
where the bits go: rate, and distortion by channel given the channels before it, in the smooth and the textured half of
the pixels. `--measure` says so of a split, with the model of an attempt that was trained (test: once, the one that the
held-out images chose); with `--refine` of codes that start at the encoder's and are moved towards better ones, image by
image. Any code z bounds -log p(x) by -log p(x | z) - log p(z), not only the one that a network guesses.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from runs import STAGE1, add_row, arguments, images, parameters, read_rows, schedule, task_of, train
from safetensors.torch import load_model, save_model

from stage1_vqvae.model import VQVAE
from stage1_vqvae.refined_codes import RATE, refine
from tessera.images.prepared import ImageSplit, PreparedImages
from tessera.launch.devices import accelerator
from tessera.training.tracking import Row

MEASURED_STEPS = 30
TOGETHER = 250  # images that are measured at a time
CONV, TRAINING, QUANTIZER = STAGE1 + "network.conv.", STAGE1 + "training.", STAGE1 + "quantizer."


def grouped(groups: int, inner: dict[str, Any]) -> dict[str, Any]:
    """Changes for codes side by side, of an inner quantizer, relative to params.yaml's or whole."""
    part = QUANTIZER + "grouped."
    return {QUANTIZER + "name": "grouped", part + "groups": groups} | {part + key: v for key, v in inner.items()}


def vq(codebook_size: int) -> dict[str, Any]:
    return {"quantizer.vq.codebook_size": codebook_size, "quantizer.vq.codebook_dim": 16}


def fsq(*levels: int) -> dict[str, Any]:
    return {"quantizer": {"name": "fsq", "fsq": {"levels": list(levels)}}}


COMMON = {
    STAGE1 + "likelihood.name": "mixture_of_logistics",
    STAGE1 + "likelihood.mixture_of_logistics.components": 3,
    STAGE1 + "augmentation.horizontal_flip": True,
    TRAINING + "batch_size": 32,  # steps are what is short
    TRAINING + "learning_rate": 4e-3,
    TRAINING + "weight_ema_decay": 0.999,
    CONV + "strides": [2],
    CONV + "stem_channels": 128,
    CONV + "residual_channels": 64,
}
DEEP = {CONV + "residual_blocks": 4, CONV + "shortcut": True}
SMALL_BATCHES = {TRAINING + "batch_size": 16, TRAINING + "learning_rate": 3e-3}
ATTEMPTS: dict[str, dict[str, Any]] = {  # named by grid and codes a position
    "8x8, 1 of 512": {STAGE1 + "quantizer.vq.codebook_size": 512, CONV + "strides": [4]},
    "8x8, 10 of 512": {**grouped(10, vq(512)), CONV + "strides": [4], CONV + "channels": 256},
    "16x16, 1 of 512": grouped(1, vq(512)),
    "16x16, 1 of 4096": grouped(1, vq(4096)),
    "16x16, 1 of 8x8": grouped(1, fsq(8, 8)),
    "16x16, 1 of 8x8x8": grouped(1, fsq(8, 8, 8)),
    "16x16, 2 of 8x4": grouped(2, fsq(8, 4)),
    "16x16, 2 of 8x8": grouped(2, fsq(8, 8)),
    "16x16, 3 of 8x8": grouped(3, fsq(8, 8)),
    "16x16, 4 of 8x8": grouped(4, fsq(8, 8)),
    "16x16, 1 of 8x8x8, deep": {**grouped(1, fsq(8, 8, 8)), **DEEP},
    "16x16, 2 of 8x4, deep": {**grouped(2, fsq(8, 4)), **DEEP},
    "16x16, 2 of 8x8, deep": {**grouped(2, fsq(8, 8)), **DEEP},
    "16x16, 3 of 8x4, deep": {**grouped(3, fsq(8, 4)), **DEEP},
    "16x16, 2 of 8x8, deep, batch 16": {**grouped(2, fsq(8, 8)), **DEEP, **SMALL_BATCHES},
}


def steps_in(minutes: float, changes: dict[str, Any], prepared: PreparedImages) -> int:
    """How many steps fit, once it is compiled."""
    few = ImageSplit(prepared["validation"].images[:8], None)
    each = train(parameters(changes | schedule(MEASURED_STEPS)), prepared, validation=few).seconds_a_step
    return max(1, int(60 * minutes / each))


@torch.no_grad()
def account(model: VQVAE, split: ImageSplit, steps: int = 0, rate: float = RATE) -> dict[str, float]:
    """Where the bits per dimension go, over a split: the rate; and each channel's distortion, smooth and textured.
    `steps` of refinement (`stage1_vqvae.refined_codes`), 0 for none."""
    layout, device = model.layout, next(model.parameters()).device
    sums, count = torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
    for start in range(0, len(split), TOGETHER):
        pixels = split.pixels(slice(start, start + TOGETHER))
        codes = refine(model, pixels.to(device), steps, rate).codes
        parameters = model.decode_parameters(codes)
        bits = -model.likelihood.log_prob(parameters, pixels).cpu() / math.log(2)
        grey = pixels.double().mean(1, keepdim=True)
        around = F.avg_pool2d(torch.cat([grey, grey.square()], 1), 3, 1, 1, count_include_pad=False)
        local = around[:, 1:] - around[:, :1].square()
        textured = (local > local.median()).squeeze(1)
        for half, mask in enumerate((~textured, textured)):
            sums[half] += bits.permute(0, 2, 3, 1)[mask].sum(0)
            count[half] += mask.sum()
    dimensions = len(split) * layout.dimensions
    rate = layout.bits_per_dim(layout.uniform_nats)
    found = {"rate": rate, "distortion": sums.sum().item() / dimensions}
    found["total"] = found["rate"] + found["distortion"]
    for half, name in enumerate(("smooth", "textured")):
        for channel, colour in enumerate(("red", "green given red", "blue given both")):
            found[f"{name}, {colour}"] = (sums[half, channel] / count[half, 0]).item()
    return found


def draw(rows: list[Row], minutes: float, file: Path) -> None:
    """Left, the runs of other lengths: where each ends, over its rate. Right, those of `minutes`: their way there, and
    where refined codes take a model (a star)."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    curves: dict[tuple[str, float], list[Row]] = {}
    for row in (row for row in rows if "seconds" in row):
        curves.setdefault((row["attempt"], row["minutes"]), []).append(row)
    for (attempt, length), curve in curves.items():
        last = curve[-1]
        if length == minutes:
            right.plot([r["seconds"] / 60 for r in curve], [r["total"] for r in curve], marker=".", label=attempt)
        else:
            left.plot(last["rate"], last["total"], marker="o", label=f"{attempt}, {length:g} min")
    for row in (row for row in rows if row.get("account") == "validation" and "refined" in row):
        if (row["attempt"], row["minutes"]) in curves and row["minutes"] == minutes:
            last, label = curves[row["attempt"], minutes][-1], f"the last, {row['refined']} steps of refinement"
            right.plot(last["seconds"] / 60, row["total"], "k*", markersize=9, label=label)
    for axis, label in ((left, "rate, bits per dimension"), (right, "minutes of training on 2 cores")):
        axis.axhline(4.67, color="grey", linewidth=0.8, linestyle="--")
        axis.set_xlabel(label)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    left.set(ylabel="bits per dimension, held-out images", xlim=(0, None))
    figure.savefig(file, dpi=150)


def attempt(options: argparse.Namespace, prepared: PreparedImages) -> VQVAE:
    """Train one attempt, a row an evaluation; its best model."""
    changes = COMMON | ATTEMPTS[options.attempt] | {"runtime.threads": options.threads}
    steps = steps_in(options.minutes, changes, prepared)
    params = parameters(changes | schedule(steps, validations=max(2, round(options.minutes / 5))))
    layout = task_of(params, prepared).model.layout
    rate = layout.bits_per_dim(layout.uniform_nats)

    def note(row: Row) -> None:
        total = row["bits_per_dim_distortion"] + rate
        named = {"attempt": options.attempt, "minutes": options.minutes, **row, "rate": rate, "total": total}
        add_row(options.rows, named)
        print(f"{options.attempt} step {row['step']} {row['seconds']:.0f} s: {total:.4f}", flush=True)

    return train(params, prepared, note).task.model


def main() -> None:
    parser = arguments(__doc__, "bits_per_dim.jsonl")
    parser.add_argument("--attempt", choices=tuple(ATTEMPTS))
    parser.add_argument("--minutes", type=float, default=60, help="of training (default: %(default)s)")
    parser.add_argument("--measure", choices=("validation", "test"), help="measure with the model that was kept")
    parser.add_argument("--refine", type=int, default=0, metavar="STEPS", help="of --measure (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=RATE, help="learning rate of --refine (default: %(default)s)")
    parser.add_argument("--images", type=int, help="of --measure: the first ones (default: all)")
    options = parser.parse_args()
    if options.measure and not options.attempt:
        parser.error("--measure needs the --attempt whose model it measures")
    if (options.refine or options.images) and not options.measure:
        parser.error("--refine and --images are options of --measure")
    if options.attempt:
        prepared = images(options.folder, parameters({"runtime.threads": options.threads}, dataset=options.dataset))
        kept = options.folder / f"{options.attempt}, {options.minutes:g} minutes.safetensors"
        if options.measure:
            if not kept.exists():
                parser.error(f"{kept}: no such model; train it first, with the same command without --measure")
            model = task_of(parameters(COMMON | ATTEMPTS[options.attempt]), prepared).model.eval()
            load_model(model, kept)
            model.to(accelerator(parameters({"runtime.threads": options.threads}).runtime).device)
        else:
            model = attempt(options, prepared)
            save_model(model, kept)
        split = options.measure or "validation"
        part = prepared[split]
        part = ImageSplit(part.images[: options.images], None)
        found = account(model, part, options.refine, options.rate)
        row = {"attempt": options.attempt, "minutes": options.minutes, "account": split, "images": len(part)}
        row |= {"refined": options.refine, "learning_rate": options.rate} if options.refine else {}
        add_row(options.rows, row | found)
        print(split + ": " + "  ".join(f"{name} {value:.3f}" for name, value in found.items()), flush=True)
    if options.plot:
        draw(read_rows(options.rows), options.minutes, options.plot)


if __name__ == "__main__":
    main()
