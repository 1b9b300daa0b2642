"""Every quantizer on CIFAR-10: one network, one number of steps, 9 bits a position, 576 bits an image.

    python benchmarks/quantizers.py DATASET [--steps 3000] [--seeds 0] [--only NAME ...] [--plot FILE]

presets/cifar10.yaml (the 2017 network, an 8x8 grid) with another quantizer in it, trained with the preset's own recipe;
figures on the held-out images, a row for each seed. The families' own costs are those of params.yaml, tuned for none of
them here; diveq's gradient codebook is as its paper has it, and gumbel's temperature falls over three quarters of the
steps. A process a row, so that peak memory (of the whole training, over the prepared images) is its own; a row goes to
--rows as it comes, and one that is there for as many steps and this seed is not run again. A short training may do
without compilation (--eager). Prints the table in markdown.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from runs import STAGE1, add_row, arguments, images, parameters, read_rows, schedule, train
from timing import forget_peak, resident

Q = STAGE1 + "quantizer."


def quantizer(name: str, **values: Any) -> dict[str, Any]:
    """Changes that choose a quantizer and set its own parameters; `inner__key` for a part inside it."""
    return {Q + "name": name} | {f"{Q}{name}.{key.replace('__', '.')}": value for key, value in values.items()}


TABLE = {"codebook_size": 512, "codebook_dim": 64}
GRADIENT = {"codebook_update": "gradient"}
DIVEQ = {**GRADIENT, "gradient_estimator": "diveq", "commitment_cost": 0.0, "codebook_cost": 0.0}  # as its paper has it
INNER = {"quantizer__name": "vq", "quantizer__vq__codebook_size": 8}
ENTROPY = {"bits": 9, "entropy_group_bits": 9}
ROWS: dict[str, dict[str, Any]] = {
    "vq, straight-through": quantizer("vq", **TABLE, gradient_estimator="straight_through"),
    "vq, rotation": quantizer("vq", **TABLE, gradient_estimator="rotation"),
    "vq, diveq": quantizer("vq", **TABLE, gradient_estimator="diveq"),
    "vq, gradient, straight-through": quantizer("vq", **TABLE, **GRADIENT),
    "vq, gradient, rotation": quantizer("vq", **TABLE, **GRADIENT, gradient_estimator="rotation"),
    "vq, gradient, diveq": quantizer("vq", **TABLE, **DIVEQ),
    "vq, cosine": quantizer("vq", **TABLE, distance="cosine"),
    "vq, D = 8": quantizer("vq", codebook_size=512, codebook_dim=8),
    "vq, entropy bonus": quantizer("vq", **TABLE, entropy_bonus=0.02),
    "residual, 3 x 8": quantizer("residual", depth=3, **INNER),
    "grouped, 3 x 8": quantizer("grouped", groups=3, **INNER, quantizer__vq__codebook_dim=16),
    "soft_em": quantizer("soft_em", **TABLE),
    "gumbel": quantizer("gumbel", **TABLE),
    "simvq": quantizer("simvq", **TABLE),
    "ibq": quantizer("ibq", **TABLE),
    "fsq, 8 x 8 x 8": quantizer("fsq", levels=[8, 8, 8]),
    "fsq, 8 x 8 x 8, sigmoid": quantizer("fsq", levels=[8, 8, 8], activation="sigmoid"),
    "lfq, 9 bits": quantizer("lfq", **ENTROPY),
    "bsq, 9 bits": quantizer("bsq", **ENTROPY),
}
COLUMNS = {  # figure: heading, how it is written
    "bits_an_image": ("bits an image", "{:.0f}"),
    "nmse": ("NMSE", "{:.4f}"),
    "codebook_usage": ("usage", "{:.1%}"),
    "perplexity": ("perplexity", "{:.1f}"),
    "quantization_error": ("quantization error", "{:.3g}"),
    "quantization_error_relative": ("of the variance", "{:.3f}"),
    "ms_a_step": ("ms a step", "{:.0f}"),
    "peak_mb": ("peak memory, MB", "{:.0f}"),
}


def measure(label: str, options: argparse.Namespace) -> None:
    """Train with one quantizer, in this process, and add its row."""
    changes = ROWS[label] | schedule(options.steps, validations=6) | {"runtime.threads": options.threads}
    changes[Q + "gumbel.anneal_steps"] = options.steps * 3 // 4
    (seed,) = options.seeds
    changes |= {STAGE1 + "training.seed": seed} | ({STAGE1 + "training.compile": False} if options.eager else {})
    params = parameters(changes, dataset=options.dataset)
    prepared = images(options.folder, params)
    before = resident()
    forget_peak()
    run = train(params, prepared)
    memory = resident(peak=True) - before
    bits = sum(v.height * v.width * v.depth * math.log2(v.codebook_size) for v in run.task.model.layout.levels)
    row = {"label": label, "steps": options.steps, "seed": seed, "eager": options.eager, "changes": ROWS[label]}
    row |= {"bits_an_image": bits, "peak_mb": memory}
    add_row(options.rows, row | {"ms_a_step": run.seconds_a_step * 1e3} | run.curve[-1] | {"curve": run.curve})


def in_own_process(label: str, seed: int, options: argparse.Namespace) -> bool:
    """Whether the row came to be."""
    command = [sys.executable, __file__, options.dataset, "--folder", options.folder, "--rows", options.rows]
    command += ["--steps", options.steps, "--row", label, "--seeds", seed, *(["--eager"] if options.eager else [])]
    command += ["--threads", options.threads] if options.threads else []
    print(f"{label}, seed {seed}:", flush=True)
    return subprocess.run([str(word) for word in command], check=False).returncode == 0


def asked_for(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of as many steps, compiled or not, of any seed. Older rows are compiled, of seed 0."""
    rows = read_rows(options.rows)
    return [row for row in rows if row["steps"] == options.steps and row.get("eager", False) == options.eager]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, best first; – where a quantizer has no such figure."""
    lines = ["| quantizer | seed | " + " | ".join(heading for heading, _ in COLUMNS.values()) + " |"]
    lines.append("|" + " --- |" * (len(COLUMNS) + 2))
    for row in sorted(rows, key=lambda row: row["nmse"]):
        cells = [form.format(row[figure]) if figure in row else "–" for figure, (_, form) in COLUMNS.items()]
        lines.append(f"| {row['label']} | {row.get('seed', 0)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def bar_labels(rows: list[dict[str, Any]]) -> list[str]:
    """A label for each row, no two of them equal: bars of equal labels would lie over each other."""
    several = len({row.get("seed", 0) for row in rows}) > 1
    return [f"{row['label']}, seed {row.get('seed', 0)}" if several else row["label"] for row in rows]


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """NMSE, usage and time a step as bars, best NMSE on top."""
    import matplotlib.pyplot as plt

    rows = sorted(rows, key=lambda row: row["nmse"], reverse=True)
    figures = ("nmse", "codebook_usage", "ms_a_step")
    figure, axes = plt.subplots(1, 3, figsize=(11, 1 + 0.35 * len(rows)), sharey=True, layout="constrained")
    for axis, name in zip(axes, figures, strict=True):
        bars = axis.barh(bar_labels(rows), [row[name] for row in rows], color="tab:blue")
        axis.bar_label(bars, fmt=COLUMNS[name][1], padding=2, fontsize=8)
        axis.set_xlabel(COLUMNS[name][0])
        axis.margins(x=0.2)
    figure.suptitle(f"CIFAR-10, {rows[0]['steps']} steps, 9 bits a position, held-out images")
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = arguments(__doc__, "quantizers.jsonl")
    parser.add_argument("--steps", type=int, default=3000, help="of training, a row (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=tuple(ROWS), metavar="NAME", help=f"of: {'; '.join(ROWS)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the trainings (default: 0)")
    parser.add_argument("--eager", action="store_true", help="without compilation")
    parser.add_argument("--row", choices=tuple(ROWS), help=argparse.SUPPRESS)  # one row, in this process
    options = parser.parse_args()
    if options.row:
        measure(options.row, options)
        return
    wanted = [(label, seed) for label in options.only or ROWS for seed in options.seeds]
    done = {(row["label"], row.get("seed", 0)) for row in asked_for(options)}
    left = [each for each in wanted if each not in done]
    failed = [f"{label}, seed {seed}" for label, seed in left if not in_own_process(label, seed, options)]
    rows = [row for row in asked_for(options) if row["label"] in ROWS]
    print(f"\n{table(rows)}")
    if options.plot and rows:
        draw(rows, options.plot)
    if failed:
        raise SystemExit(f"no row for {'; '.join(failed)}: what went wrong stands above")


if __name__ == "__main__":
    main()
