"""What does it cost to draw many codes at a time, or in another order? An any-order prior in each of its orders.

    python benchmarks/orders.py [--images 1000] [--steps 4 8 16] [--given lower] [--json FILE]

For a finished run with the prior any_order (models/ and data/ in the current folder): images at temperature 1 without
guidance, in the layout's order, in random orders, and in parallel with each number of `--steps`. A row says how many
the classifier recognises; their Fréchet distance from the validation images in the classifier's last features (no FID,
and compares with nothing else); how many of the test images it recognises when the rest of a part is completed; and
images a second of both.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import completion
import repository  # noqa: F401
import torch
from sampling_parameters import SEED, features, frechet

from sampling.pipeline import TwoStagePipeline
from tessera import paths
from tessera.features.classifiers.base import Classifier
from tessera.features.classifiers.build import load_classifier
from tessera.images.pixels import to_uint8
from tessera.images.prepared import open_prepared

PLAIN = {"temperature": 1.0, "guidance_scale": 1.0}


def ways(steps: list[int]) -> list[dict[str, Any]]:
    """The settings of each row."""
    parallel = [{"order": "parallel", "decoding_steps": number} for number in steps]
    return [{"order": "layout"}, {"order": "random"}, *parallel]


def measure(
    pipeline: TwoStagePipeline, classifier: Classifier, real: torch.Tensor, count: int, given: str, way: dict[str, Any]
) -> dict[str, Any]:
    """A row. `real`: validation images, uint8."""
    labels, first = pipeline.check_labels("each", count), min(count, completion.BATCH)
    settings = PLAIN | way
    # One batch of each kind before the clock runs, since the first one is slower.
    pipeline.generate(first, labels[:first], seed=SEED, batch_size=completion.BATCH, **settings)
    completion.measure(pipeline, classifier, first, given, **settings)
    began = time.perf_counter()
    pixels = to_uint8(pipeline.generate(count, labels, seed=SEED, batch_size=completion.BATCH, **settings))
    seconds = time.perf_counter() - began
    completed, _ = completion.measure(pipeline, classifier, count, given, **settings)
    return way | {
        "agreement": completion.agreement(classifier, pixels, labels),
        "distance": frechet(features(classifier, pixels), features(classifier, real)),
        "images_per_second": count / seconds,
        "completed": completed["completed"],
        "completed_per_second": completed["images_per_second"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--given", choices=completion.GIVEN, default="lower")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    pipeline = TwoStagePipeline.load(paths.MODELS)
    completion.require_orders(pipeline.prior)
    classifier, _ = load_classifier(paths.CLASSIFIER)
    if classifier is None:
        raise SystemExit("the data has no labels: nothing to agree with")
    real, rows = open_prepared(paths.PREPARED)["validation"].pixels(slice(None)), []
    print("| order | steps | agreement | distance | images/s | completed | images/s |\n" + "| --- " * 7 + "|")
    for way in ways(options.steps):
        rows.append(row := measure(pipeline, classifier, real, options.images, options.given, way))
        cells = [row["order"], str(row.get("decoding_steps", "–")), f"{row['agreement']:.1%}", f"{row['distance']:.2f}"]
        cells += [f"{row['images_per_second']:.0f}", f"{row['completed']:.1%}", f"{row['completed_per_second']:.0f}"]
        print("| " + " | ".join(cells) + " |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
