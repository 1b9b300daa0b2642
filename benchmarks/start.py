"""Does `python -m tessera start` choose well? One run of a data set: its plan beside what it took, and what it made.

    python benchmarks/start.py DATASET [--images 300] [--minutes 15] [--folder DIR] [--rows FILE] [--show]

DATASET: a local folder, `digits`, or `drawings`, which the script makes: transparent shapes in six classes. `--images`
takes so many training images of it, of each class its share. Everything is trained in a folder of its own, stage by
stage without DVC. A row of figures and minutes is added to FILE; a row that is there, of as many cores of the same
processor, is not measured again. `--show` prints the rows as a table. Other programs should rest meanwhile; `taskset`
gives it a core of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from repository import REPOSITORY
from runs import RESULTS, absolute, add_row, processor, read_rows

from tessera.launch.cores import available_cores

STAGES = {
    "prepare": "stage0_images.prepare",
    "train_vqvae": "stage1_vqvae.train",
    "refine_decoder": "stage1_vqvae.refine",
    "reconstruct": "stage1_vqvae.reconstruct",
    "extract_codes": "stage1_vqvae.extract",
    "train_prior": "stage2_prior.train",
    "train_classifier": "evaluation.train_classifier",
    "sample": "sampling.sample",
    "evaluate": "evaluation.evaluate",
    "report": "evaluation.report",
}
SHAPES = ("circle", "cross", "frame", "moon", "square", "triangle")


def draw_shapes(folder: Path, count: int, side: int = 64) -> None:
    """Shapes of any place, size and colour on a transparent ground, in folders by class."""
    random = np.random.default_rng(0)
    for number in range(count):
        shape = SHAPES[number % len(SHAPES)]
        image = Image.new("RGBA", (2 * side, 2 * side))
        pen, colour = ImageDraw.Draw(image), (*random.integers(0, 256, 3).tolist(), 255)
        size = int(random.integers(side // 2, side))
        x, y = random.integers(size // 2 + 8, 2 * side - size // 2 - 8, 2).tolist()
        box = (x - size // 2, y - size // 2, x + size // 2, y + size // 2)
        if shape == "circle":
            pen.ellipse(box, fill=colour)
        elif shape == "square":
            pen.rectangle(box, fill=colour)
        elif shape == "frame":
            pen.rectangle(box, outline=colour, width=size // 6)
        elif shape == "triangle":
            pen.polygon([(x, box[1]), (box[0], box[3]), (box[2], box[3])], fill=colour)
        elif shape == "cross":
            pen.line((x, box[1], x, box[3]), fill=colour, width=size // 4)
            pen.line((box[0], y, box[2], y), fill=colour, width=size // 4)
        else:
            pen.ellipse(box, fill=colour)
            pen.ellipse((x - size // 5, box[1] - 2, box[2] + size // 3, box[3] + 2), fill=(0, 0, 0, 0))
        path = folder / shape / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.resize((side, side), Image.Resampling.LANCZOS).save(path)


def write_some(source: str, folder: Path, count: int) -> None:
    """`count` training images of a source as files, in folders by class; of each class its share, evenly spread."""
    from stage0_images.reading import encoded
    from stage0_images.sources import open_source
    from tessera.parameters import read_yaml, validate

    tree = read_yaml(REPOSITORY / "params.yaml")
    watch = source if source != "digits" else str(REPOSITORY / tree["data"]["watch"])
    tree["data"] |= {"source": source, "watch": watch}
    cache = folder.with_name("cache")
    cache.mkdir(parents=True, exist_ok=True)
    opened = open_source(validate(tree).data, cache)
    train = opened.splits["train"]
    if count > train.count:
        raise SystemExit(f"--images {count}: {source} has {train.count} training images; give no more, or leave it out")
    labels = np.zeros(train.count, np.int64) if train.labels is None else train.labels
    order = np.argsort(labels, kind="stable")
    rows = order[np.linspace(0, train.count - 1, count).astype(int)]
    for place, (row, image) in enumerate(zip(rows, train.fetch(rows), strict=True)):
        path = folder / (opened.classes[labels[row]] if opened.classes else "") / f"{place:05d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(image.content, np.ndarray):
            Image.fromarray(image.content).save(path.with_suffix(".png"))
        else:
            with encoded(image.content, sys.maxsize) as content:
                path.with_suffix(".png").write_bytes(content)  # read by its content, whatever its name ends in
    shutil.rmtree(cache)


def run(command: list[str], folder: Path) -> str:
    """Run a module in a folder; returns what it printed."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return done.stdout


def measure(dataset: str, images: int | None, minutes: float, scratch: Path) -> dict[str, Any]:
    """Plan, train, draw and measure; returns the row."""
    name = f"{Path(dataset).name}-{images or 'all'}-{minutes:g}"
    folder = scratch / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "data").mkdir(parents=True)
    for file in ("params.yaml", "data/embedded.txt"):
        shutil.copy(REPOSITORY / file, folder / file)
    source = dataset
    if dataset == "drawings":
        draw_shapes(folder / "images", images or 3000)
        source = "images"
    elif images:
        write_some(dataset, folder / "images", images)
        source = "images"
    told = run(["tessera", "start", source, "--minutes", str(minutes)], folder)
    print(told, flush=True)
    planned = next(float(line.split()[2]) for line in told.splitlines() if line.startswith("in all"))
    taken = {}
    for stage, module in STAGES.items():
        began = time.monotonic()
        run([module], folder)
        taken[stage] = round((time.monotonic() - began) / 60, 2)
        print(f"{stage}: {taken[stage]} minutes", flush=True)
    metrics = json.loads((folder / "results/evaluate/metrics.json").read_text(encoding="utf-8"))
    bits, judged = metrics["bits_per_dim"], metrics.get("classifier", {})
    return {
        "dataset": Path(dataset).name,
        "images": images,
        "cores": available_cores(),
        "processor": processor(),
        "minutes": minutes,
        "planned": planned,
        "taken": round(sum(taken.values()), 1),
        "rate_prior": bits["rate_prior"],
        "rate_counts": bits["rate_counts"],
        "distortion": bits["distortion"],
        "nmse": metrics["reconstruction"]["nmse"],
        "accuracy": judged.get("real_accuracy"),
        "majority": judged.get("majority_accuracy"),
        "agreement": judged.get("sample_agreement"),
        "stages": taken,
        "grid": str(folder / "results/sample/grid.png"),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a table of Markdown."""
    columns = (
        "data | images | cores | processor | minutes: given, planned, taken | rate, bits/dim | below counts | NMSE | "
        "accuracy | majority | agreement"
    )
    lines = [f"| {columns} |", "|" + " --- |" * len(columns.split(" | "))]
    for row in rows:
        below = 1 - row["rate_prior"] / row["rate_counts"]
        shares = ["–" if row[key] is None else f"{row[key]:.0%}" for key in ("accuracy", "majority", "agreement")]
        lines.append(
            f"| {row['dataset']} | {row['images'] or 'all'} | {row['cores']} | {row['processor']} | "
            f"{row['minutes']:g}, {row['planned']}, {row['taken']} | "
            f"{row['rate_prior']:.3f} | {below:.0%} | {row['nmse']:.3f} | {' | '.join(shares)} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?")
    parser.add_argument("--images", type=int)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--folder", type=absolute, default=REPOSITORY / ".state" / "benchmarks" / "start")
    parser.add_argument("--rows", type=absolute, default=RESULTS / "start.jsonl")
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args()
    rows = read_rows(options.rows)
    if options.dataset:
        dataset = options.dataset
        dataset = dataset if dataset in ("digits", "drawings") else str(absolute(dataset))
        wanted = {"dataset": Path(dataset).name, "images": options.images, "minutes": options.minutes}
        wanted |= {"cores": available_cores(), "processor": processor()}
        if wanted in [{key: row[key] for key in wanted} for row in rows]:
            print(f"{wanted} is in {options.rows} already")
        else:
            row = measure(dataset, options.images, options.minutes, options.folder)
            rows.append(row)
            add_row(options.rows, {key: value for key, value in row.items() if key != "grid"})
            print(f"look at {row['grid']}")
    if options.show or options.dataset:
        print(table(rows))


if __name__ == "__main__":
    main()
