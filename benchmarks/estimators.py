"""Rotation against straight-through on CIFAR-10: the same network, the same number of steps, several seeds.

    python benchmarks/estimators.py DATASET [--minutes 5] [--seeds 0 1 2] [--recipes paper preset] [--plot FILE]

presets/cifar10.yaml with the gradient estimator changed, in two recipes: `paper` takes the quantizer's settings of
Fifty et al. 2024, table 8 (β 1, EMA decay 0.8, no revival), `preset` keeps the preset's own; both start by k-means. The
number of steps is what the slower estimator does in --minutes of training, measured first; both run that many, with the
cosine stretched over them. A row a run goes to --rows; a run whose row is there is not run again.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from runs import STAGE1, add_row, arguments, images, parameters, read_rows, schedule, train

from tessera.images.prepared import ImageSplit, PreparedImages

VQ = STAGE1 + "quantizer.vq."
ESTIMATORS = ("straight_through", "rotation")
RECIPES: dict[str, dict[str, Any]] = {
    # The start stays: from N(0, 1), far from the first z, one code would serve for all during the first minutes.
    "paper": {VQ + "commitment_cost": 1.0, VQ + "ema_decay": 0.8, VQ + "revival_threshold": 0.0},
    "preset": {},
}
FIGURES = ("quantization_error", "quantization_error_relative", "codebook_usage", "perplexity", "nmse")
MEASURED_STEPS = 40


def changes(recipe: str, estimator: str, seed: int, threads: int | None) -> dict[str, Any]:
    return {
        **RECIPES[recipe],
        VQ + "gradient_estimator": estimator,
        STAGE1 + "training.seed": seed,
        "runtime.threads": threads,
    }


def steps_in(minutes: float, prepared: PreparedImages, threads: int | None) -> int:
    """How many steps the slower estimator does in that time, once it is compiled."""
    few = ImageSplit(prepared["validation"].images[:8], None)
    each = []
    for estimator in ESTIMATORS:
        params = parameters(changes("preset", estimator, 0, threads) | schedule(MEASURED_STEPS))
        each.append(train(params, prepared, validation=few).seconds_a_step)
        print(f"{estimator}: {each[-1] * 1e3:.0f} ms a step", flush=True)
    return max(1, int(60 * minutes / max(each)))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: mean ± standard deviation over seeds."""
    lines = ["| recipe | estimator | " + " | ".join(FIGURES) + " | seeds |", "|" + " --- |" * (len(FIGURES) + 3)]
    for recipe in RECIPES:
        for estimator in ESTIMATORS:
            found = [r for r in rows if (r["recipe"], r["estimator"]) == (recipe, estimator)]
            if found:
                values = [[row[figure] for row in found] for figure in FIGURES]
                cells = [f"{mean(v):.4g} ± {stdev(v):.2g}" if len(v) > 1 else f"{v[0]:.4g}" for v in values]
                lines.append(f"| {recipe} | {estimator} | " + " | ".join(cells) + f" | {len(found)} |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """A line a run over the steps, a row of panels a recipe: the quantization error, its part of the variance, NMSE."""
    import matplotlib.pyplot as plt

    recipes = [recipe for recipe in RECIPES if any(row["recipe"] == recipe for row in rows)]
    panels = ("quantization_error", "quantization_error_relative", "nmse")
    size = (11, 3.2 * len(recipes))
    figure, axes = plt.subplots(len(recipes), len(panels), figsize=size, squeeze=False, layout="constrained")
    colors = dict(zip(ESTIMATORS, ("tab:blue", "tab:orange"), strict=True))
    for i, recipe in enumerate(recipes):
        for j, panel in enumerate(panels):
            for row in (row for row in rows if row["recipe"] == recipe):
                name, curve = row["estimator"], row["curve"]
                label = name if row["seed"] == min(r["seed"] for r in rows) else None
                values = [point[panel] for point in curve]
                axes[i][j].plot([point["step"] for point in curve], values, color=colors[name], label=label)
            axes[i][j].set(title=f"{recipe}: {panel}", xlabel="step", yscale="log")
        axes[i][0].legend()
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = arguments(__doc__, "estimators.jsonl")
    parser.add_argument("--minutes", type=float, default=5, help="of training, a run (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="a run, in place of --minutes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipes", nargs="+", choices=tuple(RECIPES), default=list(RECIPES))
    options = parser.parse_args()
    prepared = images(options.folder, parameters({"runtime.threads": options.threads}, dataset=options.dataset))

    def wanted(row: dict[str, Any]) -> bool:
        return (row["steps"] == options.steps) if options.steps else (row["minutes"] == options.minutes)

    done = [row for row in read_rows(options.rows) if wanted(row)]
    steps = options.steps or (done[0]["steps"] if done else steps_in(options.minutes, prepared, options.threads))
    finished = {(row["recipe"], row["estimator"], row["seed"]) for row in done}
    for recipe, seed, estimator in product(options.recipes, options.seeds, ESTIMATORS):
        if (recipe, estimator, seed) in finished:
            continue
        run = train(parameters(changes(recipe, estimator, seed, options.threads) | schedule(steps, 10)), prepared)
        row = {"recipe": recipe, "estimator": estimator, "seed": seed, "steps": steps}
        row |= {"minutes": None if options.steps else options.minutes, "seconds_a_step": run.seconds_a_step}
        add_row(options.rows, row | run.curve[-1] | {"curve": run.curve})
        print(
            f"{recipe} {estimator} seed {seed}: " + "  ".join(f"{f} {run.curve[-1][f]:.4g}" for f in FIGURES),
            flush=True,
        )
    done = [row for row in read_rows(options.rows) if wanted(row)]
    print(f"\n{steps} steps a run; mean ± standard deviation over seeds\n\n{table(done)}")
    if options.plot:
        draw(done, options.plot)


if __name__ == "__main__":
    main()
