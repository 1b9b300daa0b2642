"""Tokenizers x priors on one data set at one budget: a row for each pair.

    python benchmarks/leaderboard.py DATASET --folder SCRATCH [--tokenizers NAME ...] [--priors NAME ...] [--minutes 8]
        [-S KEY=VALUE ...] [--eager] [--precision bf16] [--given left ...] [--completed 200]
    python benchmarks/leaderboard.py --sort gfd

DATASET is CIFAR-10, a local folder in the Hub's layout. For each tokenizer, the stages before the prior run once in
SCRATCH/TOKENIZER, with the preset cifar10; images and classifier are prepared once for all. When all tokenizers are
trained, each prior is trained for the number of steps that the file --steps holds for the pair. A pair that it does not
hold is timed once: as many steps as take --minutes on this machine, without compilation and validation. The file names
the machine. All trainings are of fp32, unless --precision says otherwise. The other options are those of
benchmarks/priors.py, for a table in less time.

A pair that the file --rows holds for the same steps, options, threads and parameters is not run again, and a training
that was interrupted goes on, so that the same command resumes. The row of a training that went on has no minutes.
Figures are of the test split and of the preset's number of samples. Fréchet distances are in the features that
`evaluation.features` names. gFD is of fewer images than rFD, which alone makes it larger: `distribution` in a row has
the floor of each, which is the distance of as many training images. `bits` are those of an image's codes under the
uniform prior. The images per second are of 256 images with guidance 2.
Without DATASET the tables are printed alone, one for each budget that the file holds. --sort takes any of their
columns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import priors
import stages
from kept_features import keeping
from leaderboard_table import COLUMNS, tables
from runs import RESULTS, absolute, add_row, hash_of, processor, read_rows

from tessera import paths
from tessera.codes.store import open_codes
from tessera.launch.threads import number_of_threads
from tessera.locks import acquire

QUANTIZER = "stage1_vqvae.quantizer."
CHANGES: dict[str, dict[str, Any]] = {  # of the preset, whose codes are 8x8 of 512
    "vq": {},
    "fsq": {QUANTIZER + "name": "fsq", QUANTIZER + "fsq.levels": [8, 8, 8]},
    "residual": {  # 4x4 positions of 4 codes
        "stage1_vqvae.network.conv.strides": [8],
        QUANTIZER + "name": "residual",
        QUANTIZER + "residual.depth": 4,
    },
    "multi_scale": {"stage1_vqvae.scales.sides": [1, 2, 3, 4, 6, 8], "sampling.guidance_schedule": "linear"},  # as VAR
}
SHARED = {"stage2_prior.masked.bound_draws": 4}  # of every pair; the mean over all test images is exact enough
TOKENIZERS = {name: changes | SHARED for name, changes in CHANGES.items()}
PRIORS = ("pixelcnn", "transformer, llama", "masked", "next_scale", "any_order, annealed")
MINUTES = 8  # of training, of each pair
PRECISION = "fp32"  # not all processors have bf16 instructions, and all rows are to be of one precision
DROPOUT = 0.0  # priors have dropout in different places, so one rate would not be the same for all


def share_with(folder: Path, scratch: Path) -> None:
    """Copies prepared images and the classifier into a tokenizer's folder from another one that has both.

    The other one must be held for the same parameters of both.
    """
    parts = (paths.PREPARED, paths.CLASSIFIER)
    whole = [other for other in sorted(scratch.iterdir()) if all((other / part).exists() for part in parts)]
    whole = [other for other in whole if of_both(other) == of_both(folder)]
    for part in parts:
        if whole and not (folder / part).exists():
            unfinished = (folder / part).with_name(f"{part.name}.copying")
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.copytree(whole[0] / part, unfinished)
            unfinished.rename(folder / part)


def of_both(folder: Path) -> list[Any]:
    """The parameters of the prepared images and of the classifier that a folder is held for."""
    found = stages.noted(folder) or {}
    return [found.get(name) for name in (*stages.prepare.USES, *stages.classifier.USES)]


def steps_of(tokenizer: str, prior: str, options: argparse.Namespace) -> int:
    """The number of steps of a pair: from the file, or timed now and added to it."""
    if prior not in priors.TRAINED:
        return 0
    pair = f"{tokenizer}: {prior}"
    if pair not in (found := read_steps(options.steps)):
        minutes, threads = options.minutes or MINUTES, number_of_threads(options.threads)
        timed = {"minutes": minutes, "processor": processor(), "threads": threads}
        entry = {"steps": priors.steps_in(minutes, prior, options)} | timed
        found = add_steps(options.steps, pair, entry)
    require_minutes(pair, found, options)
    return found[pair]["steps"]


def require_minutes(pair: str, steps: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    """Refuses --minutes if the steps of a pair are those of other minutes.

    Raises:
        SystemExit: they are.
    """
    timed = steps[pair].get("minutes") if pair in steps else options.minutes
    if options.minutes not in (None, timed):
        raise SystemExit(
            f"--minutes {options.minutes:g}: {options.steps} holds the steps of {timed} minutes for {pair}; name "
            "another file by --steps, or leave --minutes out"
        )


def settings_of(options: argparse.Namespace, changes: dict[str, Any] | None = None) -> str:
    """A hash of all parameters that change figures, with those of a tokenizer (options.changes) and of a prior."""
    return hash_of(priors.params_of(options, changes))


def settings_of_pair(tokenizer: str, prior: str, steps: int, options: argparse.Namespace) -> dict[str, Any]:
    """What a pair's row must agree in, besides the options, to be taken for this measurement."""
    options = argparse.Namespace(**vars(options) | {"changes": TOKENIZERS[tokenizer]})
    pair = settings_of(options, priors.changes_of(prior, steps, options.dropout))
    options.changes = {}
    return {"pair": pair, "shared": settings_of(options), "threads": number_of_threads(options.threads)}


def read_steps(file: Path) -> dict[str, dict[str, Any]]:
    """The steps of all pairs; none where there is no file."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def add_steps(file: Path, pair: str, entry: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Adds a pair to the file, unless another process has just added it; returns the steps of all pairs.

    The file is read again, since other pairs may have been added while this one was timed.
    """
    lock, unfinished = (file.with_name(f"{file.name}.{end}") for end in ("lock", "part"))
    with acquire(lock, f"is writing {file}"):
        found = {pair: entry} | read_steps(file)
        unfinished.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        unfinished.replace(file)
        lock.unlink()
    return found


def size_of_codes() -> dict[str, float]:
    """The number of tokens of an image, and its bits under the uniform prior, of the codes in the current folder."""
    layout = open_codes(paths.CODES).layout
    bits = [v.height * v.width * math.log2(size) for v in layout.levels for size in v.depth_sizes]
    return {"tokens": layout.num_tokens, "bits": sum(bits)}


def row_of(tokenizer: str, prior: str, options: argparse.Namespace) -> dict[str, Any]:
    """Trains, draws and measures a pair in the current folder."""
    steps = steps_of(tokenizer, prior, options)
    with keeping(Path("features.safetensors")):
        found = priors.measure(prior, steps, options)
    bits = found["bits_per_dim"]
    distances = {name: kind["frechet_distance"] for name, kind in found["distribution"].items() if type(kind) is dict}
    return {
        "tokenizer": tokenizer,
        "prior": prior,
        **size_of_codes(),
        "distortion": bits["distortion"],
        "rate": bits["rate_prior"],
        "bound": "rate_prior_standard_error" in bits,
        "total": bits["total_prior"],
        "rfd": distances.get("reconstructions"),
        "gfd": distances.get("default"),
        "gfd_unguided": distances.get("unguided"),
        "agreement": found["classifier"].get("sample_agreement"),
        "images_per_second": found["images_per_second"]["guided"],
        "minutes": None if found["seconds"] is None else found["seconds"] / 60,
        "processor": processor(),
        "settings": settings_of_pair(tokenizer, prior, steps, options),
        "budget_minutes": read_steps(options.steps)[f"{tokenizer}: {prior}"]["minutes"],
        "changes": options.overrides,
        "eager": options.eager,
        "precision": options.precision,
        **{name: found[name] for name in ("steps", "parameters", "code", "nats_per_token", "classifier")},
        **{name: found[name] for name in ("distribution", "completed", "completed_images")},
    }


def rows_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows that were measured with the same options, steps, threads and parameters."""
    steps = read_steps(options.steps)

    def same(row: dict[str, Any]) -> bool:
        pair = row["tokenizer"], row["prior"]
        wanted = steps.get(": ".join(pair), {}).get("steps")
        if priors.budget_of(row) != priors.asked(options) or row["steps"] != wanted:
            return False
        return row["settings"] == settings_of_pair(*pair, wanted, options)

    return [row for row in read_rows(options.rows) if same(row)]


def import_code(options: argparse.Namespace) -> None:
    """Imports what all pairs use, whichever of them run now."""
    params = []
    for options.changes in TOKENIZERS.values():
        changes = [priors.changes_of(prior, priors.VALIDATIONS, options.dropout) for prior in PRIORS]
        params += [priors.params_of(options, each) for each in changes]
    stages.import_code(params)


def run(options: argparse.Namespace) -> None:
    """Makes the rows that are missing."""
    steps = read_steps(options.steps)
    for pair in (f"{name}: {prior}" for name in options.tokenizers for prior in options.priors):
        require_minutes(pair, steps, options)
    done = {(row["tokenizer"], row["prior"]) for row in rows_of(options)}
    import_code(options)
    missing = [(name, prior) for name in options.tokenizers for prior in options.priors if (name, prior) not in done]
    for tokenizer in dict.fromkeys(name for name, _ in missing):
        folder = options.folder / tokenizer
        folder.mkdir(parents=True, exist_ok=True)
        options.changes = TOKENIZERS[tokenizer]
        with contextlib.chdir(folder):  # where the product reads and writes
            stages.hold(priors.params_of(options))
            share_with(folder, options.folder)
            priors.run_once(options)
    for tokenizer, prior in missing:
        options.changes = TOKENIZERS[tokenizer]
        with contextlib.chdir(options.folder / tokenizer):
            add_row(options.rows, row_of(tokenizer, prior, options))


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("dataset", type=absolute, nargs="?", help="CIFAR-10; none: print the table alone")
    found.add_argument("--folder", type=absolute, help="where the stages run; kept")
    found.add_argument("--tokenizers", nargs="+", choices=tuple(TOKENIZERS), default=list(TOKENIZERS), metavar="NAME")
    found.add_argument("--priors", nargs="+", choices=PRIORS, default=list(PRIORS), metavar="NAME")
    found.add_argument("--minutes", type=float, help=f"of training, where a pair is timed (default: {MINUTES})")
    found.add_argument("--rows", type=absolute, default=RESULTS / "leaderboard.jsonl")
    found.add_argument("--steps", type=absolute, default=RESULTS / "leaderboard_steps.json")
    found.add_argument("--sort", choices=tuple(COLUMNS), default="total", help="by which the table is sorted")
    priors.add_options(found)
    found.set_defaults(preset="cifar10", grids=None, changes={}, dropout=DROPOUT, precision=PRECISION)
    found.set_defaults(given=["left"], completed=200)  # the table has no column of completions
    return found


def main() -> None:
    options = parser().parse_args()
    if options.dataset:
        if options.folder is None:
            raise SystemExit("--folder: name a folder where the stages run; it is kept")
        run(options)
    print(tables(rows_of(options) if options.dataset else read_rows(options.rows), options.sort))


if __name__ == "__main__":
    main()
