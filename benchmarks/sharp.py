"""Two decoders for the same codes: the likelihood's, and a refined one. Who is nearer to real images, and at what cost?

    python benchmarks/sharp.py RUN --folder SCRATCH [--set PATH=VALUE ...] [--splits test] [--picture FILE] [--json]

RUN is the folder of a finished run: params.yaml, data and models, as `dvc repro` leaves them. It is read alone: the
stage `refine_decoder` runs in a copy, --folder, which is kept. --set changes values of params.yaml, such as
`refine_decoder.training.steps=500`, or `evaluation.features.name=mobilenet_v2`, the network that judges.

A command adds a row for each decoder to the file --rows: both distances of reconstructions (rfd, rkid) and of samples
(gfd, gkid) to the real images, PSNR, SSIM, and the share of samples in which the classifier sees the class that was
asked for. Both decoders are given the same codes. `floor_fd` and `floor_kid` are of as many training images as there
are samples. The real images are those of --splits, joined: `--splits test validation` where the test split is small.
`evaluation.images` limits how many of each split are taken. `seconds` are those of the whole stage by the clock, and
`cpu_seconds` those that it computed; both are null where the training went on from a saved state. Rows have hashes of
codes and prior before and after, of the classifier, and of the judge's weights. They have the values of
`refine_decoder`, with which the decoder was trained, of `sampling` and of `evaluation`. Rows that are there, of the
same hashes before and the same values, are not measured again. --picture shows real images with both reconstructions
below each, and then the same samples by both decoders; it is drawn when a row is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from judged import TOGETHER, Judged
from repository import REPOSITORY
from runs import RESULTS, Watched, absolute, add_row, read_rows

from evaluation.choices import fixed_choice
from evaluation.metrics import psnr, ssim
from sampling import options as sampling_options
from sampling.generate import Streams, generate
from sampling.pipeline import TwoStagePipeline
from stage1_vqvae.decoder import LIKELIHOOD, REFINED
from tessera import paths
from tessera.artifacts.manifests import read_manifest
from tessera.cli.preset import edit, read_changes
from tessera.codes.store import open_codes
from tessera.errors import UserError
from tessera.features.classifiers.base import predict
from tessera.features.classifiers.build import load_classifier
from tessera.features.networks.build import build_features
from tessera.images.examples import spread_over_classes
from tessera.images.grids import save_grid, stacked_grid
from tessera.images.pixels import to_float, to_uint8
from tessera.images.prepared import open_prepared
from tessera.parameters import Params, load
from tessera.parameters.root import feature_networks

DECODERS = (LIKELIHOOD, REFINED)
SHOWN = 16  # images of each kind in the picture
SECTIONS = ("refine_decoder", "sampling", "evaluation")  # whose values a row has
FIGURES = ("rfd", "rkid", "gfd", "gkid", "psnr", "ssim", "agreement")


def copied(run: Path, folder: Path) -> None:
    """Copy what is needed of a finished run, unless the folder has it already. Its params.yaml is copied every time.

    Raises:
        SystemExit: the folder has another run, or is the run.
    """
    if folder == run:
        raise SystemExit(f"{folder} is the run itself, which stays as it is; give another --folder")
    if not folder.exists() or not any(folder.iterdir()):
        unfinished = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(unfinished, ignore_errors=True)
        for place in (paths.PREPARED, paths.CODES, paths.MODELS):
            shutil.copytree(run / place, unfinished / place)
        unfinished.rename(folder)
    for place in (paths.CODES, paths.PRIOR, paths.CLASSIFIER):
        if contents(run / place) != contents(folder / place):
            raise SystemExit(f"{folder / place} is not that of {run}; give another --folder")
    shutil.copy(run / paths.PARAMS, folder / paths.PARAMS)  # without the changes of an earlier command


def contents(folder: Path) -> str:
    """A hash of the names and bytes of all files of a folder."""
    digest = sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)} {sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def hashes(when: str) -> dict[str, str]:
    """Hashes of codes and prior, by columns of a row; `when` is before the decoder is trained, or after."""
    return {f"{place.name}_{when}": contents(place) for place in (paths.CODES, paths.PRIOR)}


def refine() -> dict[str, float | None]:
    """Run the stage here; returns what it took, or None for each figure if it went on from a saved state."""
    watched, began, computed = Watched("refine_decoder"), time.perf_counter(), _computed()
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "stage1_vqvae.refine"]
    if subprocess.run(command, env=environment, stdout=sys.stderr, check=False).returncode:
        raise SystemExit("stage1_vqvae.refine failed: what went wrong stands above; the same command goes on there")
    taken = {"seconds": time.perf_counter() - began, "cpu_seconds": _computed() - computed}
    went_on = watched.went_on()
    return {name: None if went_on else round(value, 1) for name, value in taken.items()}


def _computed() -> float:
    """Seconds that the finished children of this process have computed."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def drawn_tokens(pipeline: TwoStagePipeline, params: Params) -> Iterator[tuple[slice, torch.Tensor]]:
    """Tokens of `sampling.images` samples, those of the stage `sample`, as (places, tokens)."""
    section, settings = params.sampling, sampling_options.settings_of(params.sampling, pipeline)
    labels, size = pipeline.check_labels("each", section.images), section.batch_size or TOGETHER
    for start in range(0, section.images, size):
        rows = slice(start, min(start + size, section.images))
        streams = Streams(section.seed, tuple(range(rows.start, rows.stop)), pipeline.device)
        classes = None if labels is None else labels[rows].to(pipeline.device)
        yield rows, generate(pipeline.drawing, classes, streams, settings)


@torch.no_grad()
def measure(params: Params, judged: Judged, splits: list[str], picture: Path | None) -> dict[str, dict[str, Any]]:
    """The figures of each decoder. The models are those of the folder that this runs in."""
    prepared, codes = open_prepared(paths.PREPARED), open_codes(paths.CODES)
    precision = params.sampling.precision
    pipelines = {name: TwoStagePipeline.load(paths.MODELS, "cpu", precision, name) for name in DECODERS}
    decode = {name: partial(_pixels, pipeline) for name, pipeline in pipelines.items()}
    found: dict[str, dict[str, Any]] = {name: {"psnr": 0.0, "ssim": 0.0} for name in DECODERS}
    chosen = {split: fixed_choice(len(prepared[split]), params.evaluation.images) for split in splits}
    count, first = sum(len(rows) for rows in chosen.values()), 0
    for split, all_rows in chosen.items():
        for start in range(0, len(all_rows), TOGETHER):
            rows = all_rows[start : start + TOGETHER]
            pixels, tokens = prepared[split].pixels(rows), codes[split].rows(rows)
            judged.see("real", count, first, pixels)
            for name in DECODERS:
                rebuilt = decode[name](tokens)
                judged.see(f"reconstructions {name}", count, first, rebuilt)
                for figure, function in (("psnr", psnr), ("ssim", ssim)):
                    value = function(to_float(rebuilt), to_float(pixels)).sum().item()
                    found[name][figure] += value / count
            first += len(pixels)
    samples = _samples(params, pipelines[LIKELIHOOD], decode, judged, found)
    training = fixed_choice(len(prepared["train"]), params.sampling.images)
    judged.see("floor", len(training), 0, prepared["train"].pixels(training))
    floor = dict(zip(("floor_fd", "floor_kid"), judged.distances("floor"), strict=True))
    for name, figures in found.items():
        figures["rfd"], figures["rkid"] = judged.distances(f"reconstructions {name}", paired=True)
        figures["gfd"], figures["gkid"] = judged.distances(f"samples {name}")
        figures |= floor | {"images": count, "samples": params.sampling.images}
    if picture:
        rows = spread_over_classes(prepared[splits[0]], len(samples[0]))
        samples = [part[: len(rows)] for part in samples]  # equally many, so that both pictures are equally wide
        rebuilt = [decode[name](codes[splits[0]].rows(rows)) for name in DECODERS]
        both = [stacked_grid([prepared[splits[0]].pixels(rows), *rebuilt]), stacked_grid(samples)]
        save_grid(torch.cat(both, 1), picture)
    return found


def _pixels(pipeline: TwoStagePipeline, tokens: torch.Tensor) -> torch.Tensor:
    """uint8 images of tokens (B, N)."""
    return torch.cat([to_uint8(pipeline.decode_tokens(part)) for part in tokens.split(TOGETHER)])


def _samples(
    params: Params, pipeline: TwoStagePipeline, decode: dict[str, Any], judged: Judged, found: dict[str, dict[str, Any]]
) -> list[torch.Tensor]:
    """Judge the samples, and return the first of them by each decoder."""
    classifier, _ = load_classifier(paths.CLASSIFIER)
    labels, hits = pipeline.check_labels("each", params.sampling.images), dict.fromkeys(DECODERS, 0)
    first: dict[str, torch.Tensor] = {}
    for rows, tokens in drawn_tokens(pipeline, params):
        for name in DECODERS:
            pixels = decode[name](tokens)
            first.setdefault(name, pixels[:SHOWN])
            judged.see(f"samples {name}", params.sampling.images, rows.start, pixels)
            if classifier is not None and labels is not None:
                hits[name] += (predict(classifier, pixels) == labels[rows]).sum().item()
    for name in DECODERS:
        known = classifier is not None and labels is not None
        found[name]["agreement"] = hits[name] / params.sampling.images if known else None
    return list(first.values())


def rows_of(params: Params, named: dict[str, Any], splits: list[str], picture: Path | None) -> list[dict[str, Any]]:
    """Train the decoder and measure both; returns their rows."""
    taken, before = refine(), {name: named[name] for name in hashes("before")}
    after = hashes("after")
    if list(before.values()) != list(after.values()):
        raise SystemExit(f"refine_decoder changed codes or prior: {before}, {after}")
    shape = open_prepared(paths.PREPARED).stats.image_shape
    judged = Judged(build_features(params.evaluation.features.values()), shape)
    found = measure(params, judged, splits, picture)
    steps = params.refine_decoder.training.steps
    trained = {
        REFINED: {
            "against": sorted({name for _, name in feature_networks(params.refine_decoder.values(), "refine_decoder")}),
            "steps": steps,
            **taken,
            "seconds_a_step": taken["seconds"] and round(taken["seconds"] / steps, 4),
        }
    }
    return [named | {"decoder": name} | found[name] | trained.get(name, {}) | after for name in DECODERS]


def without_files(values: dict[str, Any]) -> dict[str, Any]:
    """Parameters without the paths of files."""
    return {
        name: without_files(value) if isinstance(value, dict) else value
        for name, value in values.items()
        if name != "file"
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, in the order of the rows."""
    names = ("data", "decoder", *FIGURES, "steps", "seconds", "CPU seconds")
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    for row in rows:
        cells = [row["dataset"], row["decoder"], *(_shown(row[name]) for name in FIGURES)]
        cells += [_shown(row.get(name)) for name in ("steps", "seconds", "cpu_seconds")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}" if abs(value) >= 100 else f"{value:.4g}"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=absolute, help="a finished run's folder")
    parser.add_argument("--folder", type=absolute, required=True, help="a copy of the run, where the stage runs; kept")
    parser.add_argument("--set", nargs="+", default=[], metavar="PATH=VALUE", help="values of params.yaml")
    parser.add_argument("--splits", nargs="+", default=["test"], choices=paths.SPLITS, help="the real images")
    parser.add_argument("--picture", type=absolute, help="a PNG file of images by both decoders")
    parser.add_argument("--rows", type=absolute, default=RESULTS / "sharp.jsonl", help="JSON lines")
    parser.add_argument("--json", action="store_true", help="print rows and no table")
    return parser


def main() -> None:
    options = parser().parse_args()
    try:
        changes = read_changes(options.set)
        copied(options.run, options.folder)
        os.chdir(options.folder)
        edit(paths.PARAMS, {"refine_decoder.name": "objective"} | changes)
        params = load(paths.PARAMS)
        torch.set_num_threads(params.runtime.threads or torch.get_num_threads())
        judge_weights = build_features(params.evaluation.features.values()).weights[:16]
        named = {
            "dataset": Path(params.data.source).name,
            "side": params.data.height,
            "judge": params.evaluation.features.name,
            "judge_weights": judge_weights,
            "splits": options.splits,
            "vqvae": read_manifest(paths.VQVAE, "vqvae").identity[:16],
            # A row says which weights judged by their hash. Where a file lies tells nobody else anything.
            "changes": {path: value for path, value in changes.items() if not path.endswith(".file")},
            **{name: without_files(getattr(params, name).values()) for name in SECTIONS},
            **hashes("before"),
            "classifier": contents(paths.CLASSIFIER),
        }
        named = json.loads(json.dumps(named))  # as a row that was read has it
        mine = [row for row in read_rows(options.rows) if {key: row.get(key) for key in named} == named]
        there = {row["decoder"] for row in mine}
        if there != set(DECODERS):
            for row in rows_of(params, named, options.splits, options.picture):
                if row["decoder"] not in there:
                    add_row(options.rows, row)
                    mine.append(row)
        elif options.picture:
            note = f"{options.picture} is not drawn: {options.rows} has these rows already; give another file as --rows"
            print(f"note: {note}, and both decoders are measured again and drawn", file=sys.stderr)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    print("\n".join(json.dumps(row) for row in mine) if options.json else table(mine))


if __name__ == "__main__":
    main()
