"""Compares every prior on the codes of one VQ-VAE: one dataset, the same minutes of training for each.

    python benchmarks/priors.py PRESET DATASET --folder SCRATCH [--minutes 8 | --steps N] [--only NAME ...]
        [--grids FOLDER] [-S KEY=VALUE ...] [--eager] [--precision fp32] [--given left ...] [--completed 1000]

It runs the product's own stages in --folder, which is kept. The stages before the prior run once, with the preset. A
folder serves one set of their parameters, which stands in its before.json; it refuses others. Then each prior is
trained for as many steps as fit into --minutes: a step is timed first; compilation and validation come on top. Where
other programs take a part of the machine, --steps gives every prior the same number of steps instead. The learning
rate's schedule spans these steps, and the weights that validate best are kept. Then `sample`, `evaluate` and
completions of each part (benchmarks/completion.py) run. Each prior is a row, measured on the test split. A row that the
file --rows holds for the same options is not run again; give another file to measure again. The presets have one level
of codes, where a chain is its only link, so a chain has no row.

The last options are for less time than the whole comparison takes: -S changes the preset, --eager compiles nothing,
--precision fp32 is for processors without bf16 instructions, and only the parts named by --given are completed, of so
many images. A row says what was changed.

The script prints the table in markdown. --grids keeps each prior's grids of images, and makes two pictures with a row
for each prior, in the table's order: PRESET.png has two samples of each class; PRESET_completed.png has test images,
what is given of them, and what each trained prior makes of that.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable
from typing import Any

import completion
import stages
import torch
from prior_options import add_options, asked, budget_of, params_of
from prior_pictures import file_name, keep, overviews
from repository import REPOSITORY
from runs import RESULTS, Steps, Watched, absolute, add_row, code_of, read_rows
from timing import quartiles

from evaluation import evaluate
from sampling import sample
from sampling.pipeline import TwoStagePipeline
from stage2_prior import train as train_prior
from stage2_prior.priors.build import build_prior
from stage2_prior.task import PriorTask
from tessera import paths
from tessera.codes.store import open_codes
from tessera.features.classifiers.build import load_classifier
from tessera.randomness import seed_of

PRIOR = "stage2_prior."
MEASURED_SECONDS = 20
VALIDATIONS = 4
WIDTHS = {"layers": 4, "width": 192, "heads": 6, "dropout": 0.1}
SNAIL = {"width": 96, "channels": 1.0, "hidden": 1.0, "kernel_size": 5, "layers": 2, "residuals": 3, "heads": 6}
SNAIL |= {"conditioning_blocks": 0, "dropout": 0.1}
TRAINING = {
    "batch_size": 64,
    "learning_rate": 1e-3,
    "weight_decay": 0.01,
    "warmup_steps": 100,
    "precision": "bf16",
    "compile": True,
    "patience": None,
    "weight_ema_decay": 0.0,
}
PRIORS: dict[str, dict[str, Any]] = {  # by label: the option's name, and the changes of its section in params.yaml
    "uniform": {"name": "uniform"},
    "counts": {"name": "counts"},
    "pixelcnn": {"name": "pixelcnn", "layers": 8, "width": 96, "channels": 1.0, "kernel_size": 5, "dropout": 0.1},
    "pixelsnail": {"name": "pixelsnail"} | SNAIL,
    "transformer, gpt2": {"name": "transformer", "architecture": "gpt2"} | WIDTHS,
    "transformer, llama": {"name": "transformer", "architecture": "llama"} | WIDTHS,
    "rq_transformer": {"name": "rq_transformer", "depth_layers": 1} | WIDTHS,
    "masked": {"name": "masked"} | WIDTHS,
    "next_scale": {"name": "next_scale"} | WIDTHS,
    "any_order": {"name": "any_order", "annealing": None} | WIDTHS,
    "any_order, annealed": {"name": "any_order", "annealing": [0.5, 0.75]} | WIDTHS,
}
TRAINED = [label for label in PRIORS if label not in ("uniform", "counts")]


def changes_of(label: str, steps: int, dropout: float | None = None) -> dict[str, Any]:
    """The changes of params.yaml, by dotted path, that choose a prior and train it for so many steps.

    Args:
        dropout: of every prior that is trained; None: as in `PRIORS`.
    """
    name, section = PRIORS[label]["name"], PRIOR + PRIORS[label]["name"] + "."
    found = {PRIOR + "name": name} | {section + key: v for key, v in PRIORS[label].items() if key != "name"}
    if label in TRAINED:
        found |= {} if dropout is None else {f"{section}dropout": dropout}
        validations = 2 if name == "masked" else VALIDATIONS  # a bound takes `bound_draws` passes
        training = TRAINING | {"steps": steps, "validate_every": steps // validations}
        training["channels_last"] = name.startswith("pixel")  # what convolutions are fastest in
        training["warmup_steps"] = min(training["warmup_steps"], steps // 10)
        found |= {f"{section}training.{key}": v for key, v in training.items()}
    return found


def steps_in(minutes: float, label: str, options: argparse.Namespace) -> int:
    """The number of training steps that fit into the minutes, without compilation. It is a multiple of VALIDATIONS."""
    torch.compiler.reset()  # all families share one code object, of which only so many forms are kept
    changes, codes = changes_of(label, 1000, options.dropout), open_codes(paths.CODES)
    params = params_of(options, changes | {"runtime.log_every": 1})
    section = params.stage2_prior.chosen
    config = {**params.stage2_prior.config(), "layout": codes.layout.to_json(), "num_classes": codes.num_classes}
    torch.manual_seed(seed_of("initialise", section.training.seed))
    task = PriorTask(build_prior(config), codes, section.training)
    take_step, seconds = Steps(task, section.training, params.runtime), []
    take_step(task.batch(0, slice(None)))
    while sum(seconds) < MEASURED_SECONDS:
        began = time.perf_counter()
        take_step(task.batch(len(seconds), slice(None)))
        seconds.append(time.perf_counter() - began)
    fitting = int(60 * minutes / quartiles(seconds[len(seconds) // 2 :])["median"])
    return max(1, fitting // VALIDATIONS) * VALIDATIONS  # or the last one would come twice


def run_once(options: argparse.Namespace) -> None:
    """Runs the stages before the prior, unless their results are there. Refuses a folder of other parameters."""
    params = params_of(options)
    stages.hold(params)
    for path, stage in stages.BEFORE_PRIORS.items():
        if not path.exists():
            stages.run(stage, params)


def images_per_second(pipeline: TwoStagePipeline, guidance_scale: float, count: int = 256) -> float:
    """The rate of sampling, measured on the second of two equal batches of `count` images."""
    for _ in range(2):
        began = time.perf_counter()
        pipeline.generate(count, "each", guidance_scale=guidance_scale, batch_size=count)
    return count / (time.perf_counter() - began)


def main_part_of(given: Iterable[str]) -> str:
    """Of the parts that are given, the one whose completion is in the table and in the pictures: left, if it is one."""
    return next(part for part in completion.GIVEN if part in set(given))


def measure(label: str, steps: int, options: argparse.Namespace) -> dict[str, Any]:
    """A row: a prior that is trained for so many steps. `seconds`: None if the training went on from a saved state."""
    params = params_of(options, changes_of(label, steps, options.dropout))
    torch.compiler.reset()
    watched, began = Watched("train_prior"), time.monotonic()
    stages.run(train_prior, params)
    trained = time.monotonic() - began
    went_on = watched.went_on()
    stages.run(sample, params)
    stages.run(evaluate, params)
    figures = json.loads((evaluate.RESULTS / "metrics.json").read_text(encoding="utf-8"))
    training = json.loads((train_prior.RESULTS / "metrics.json").read_text(encoding="utf-8"))["validation"]
    classifier, _ = load_classifier(paths.CLASSIFIER)
    pipeline = TwoStagePipeline.load(paths.MODELS)
    count, given = options.completed, options.given
    completions = {part: completion.measure(pipeline, classifier, count, part, temperature=1.0) for part in given}
    completed, picture = completions[main_part_of(given)]
    rates = {name: images_per_second(pipeline, scale) for name, scale in (("unguided", 1.0), ("guided", 2.0))}
    if options.grids:
        shape, columns = pipeline.layout.image_shape, params.sampling.grid_columns
        keep(options.grids, file_name(options.preset, label), shape, columns, picture)
    return {
        "preset": options.preset,
        "label": label,
        "minutes": options.minutes,
        "changes": options.overrides,
        "eager": options.eager,
        "precision": options.precision,
        "completed_images": options.completed,
        "code": code_of(
            *(path for package in ("stage2_prior", "sampling") for path in (REPOSITORY / package).rglob("*.py"))
        ),
        "steps": steps,
        "best_step": training["step"],
        "parameters": training["parameters"],
        "seconds": None if went_on else trained,
        "images_per_second": rates,
        "completion": completed,
        "completed": {given: found["completed"] for given, (found, _) in completions.items()},
        **{name: figures[name] for name in ("bits_per_dim", "nats_per_token", "classifier")},
        "distribution": figures.get("distribution", {}),
    }


def rows_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of the preset and of the budget that there are."""
    budget = options.preset, options.minutes, asked(options)
    rows = [row for row in read_rows(options.rows) if (row["preset"], row["minutes"], budget_of(row)) == budget]
    return [row for row in rows if options.steps in (None, row["steps"]) or row["label"] not in TRAINED]


def table(rows: list[dict[str, Any]]) -> str:
    """The table of the rows in markdown, in their order. All are completed from the same part."""
    part = main_part_of(rows[0].get("completed", completion.GIVEN) if rows else completion.GIVEN)
    lines = [
        "| prior | parameters | steps | nats/token | rate | total, bits/dim | agreement, default | unguided "
        f"| completed, given {part} | images/s, unguided, guided |",
        "|" + " --- |" * 10,
    ]
    for row in rows:
        bits, judged = row["bits_per_dim"], row["classifier"]
        error = bits.get("rate_prior_standard_error")
        bound = "≤ " if error is not None else ""
        cells = [
            row["label"],
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['steps']:,}" if row["steps"] else "–",
            f"{bound}{row['nats_per_token']['prior']:.3f}",
            f"{bound}{bits['rate_prior']:.4f}",
            f"{bound}{bits['total_prior']:.4f}",
            *(f"{judged[name]:.1%}" for name in ("sample_agreement", "unguided_agreement")),
            f"{row['completion']['completed']:.1%}",
            f"{row['images_per_second']['unguided']:.0f}, {row['images_per_second']['guided']:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    if rows:
        given = rows[0]["completion"]
        lines.append(
            f"\nThe classifier on the images before completion: {given['whole']:.1%}; with all but the {part} "
            f"part grey: {given['blank']:.1%}."
        )
    if parts := [row for row in rows if "completed" in row]:
        lines += ["", "| completed, given its | " + " | ".join(completion.GIVEN) + " |"]
        lines.append("|" + " --- |" * (1 + len(completion.GIVEN)))
        for row in parts:
            lines.append(
                f"| {row['label']} | "
                + " | ".join(f"{row['completed'][g]:.1%}" if g in row["completed"] else "–" for g in completion.GIVEN)
                + " |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("dataset", type=absolute, help="a local folder in the Hub's layout")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, default=8, help="of training, a prior (default: %(default)s)")
    budget.add_argument("--steps", type=int, help=f"of each prior, a multiple of {VALIDATIONS}, in place of --minutes")
    parser.add_argument("--only", nargs="+", choices=tuple(PRIORS), metavar="NAME", help=f"of: {'; '.join(PRIORS)}")
    parser.add_argument("--folder", type=absolute, required=True, help="where the stages run; kept")
    parser.add_argument("--rows", type=absolute, default=RESULTS / "priors.jsonl")
    parser.add_argument("--grids", type=absolute, help="where grids are kept")
    add_options(parser)
    parser.set_defaults(dropout=None)
    options = parser.parse_args()
    if options.steps is not None:
        if options.steps < VALIDATIONS or options.steps % VALIDATIONS:
            parser.error(f"--steps {options.steps}: expected a multiple of {VALIDATIONS}")
        options.minutes = None
    if options.grids and "left" not in options.given:
        parser.error(
            "--grids: the pictures show completions of the left half; add left to --given, or leave --grids out"
        )
    options.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(options.folder)
    stages.import_code(params_of(options, changes_of(label, VALIDATIONS)) for label in PRIORS)
    run_once(options)
    done = {row["label"] for row in rows_of(options)}
    for label in options.only or PRIORS:
        if label not in done:
            steps = options.steps if label in TRAINED else 0
            steps = steps_in(options.minutes, label, options) if steps is None else steps
            add_row(options.rows, measure(label, steps, options))
    rows = rows_of(options)
    rows.sort(key=lambda row: -row["nats_per_token"]["prior"])
    print(f"\n{table(rows)}\nMeasured with the code {', '.join(sorted({row.get('code', 'unknown') for row in rows}))}.")
    if options.grids:
        overviews(
            options.grids,
            options.preset,
            {row["label"]: row["label"] in TRAINED for row in rows},
            params_of(options).sampling.grid_columns,
        )


if __name__ == "__main__":
    main()
