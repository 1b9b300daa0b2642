"""Does a completion answer to what is given? The classifier on images whose left half is given.

    python benchmarks/completion.py [--images 1000] [--temperature 1.0] [--json FILE] [--grid FILE]

For a finished run (models/ and data/ in the current folder): the first test images, whole; with the right half grey;
and with the right half completed by the prior, without a label. How many of each the classifier gives their class.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import repository  # noqa: F401
import torch

from sampling.pipeline import TwoStagePipeline
from tessera import paths
from tessera.features.classifiers.base import Classifier, predict
from tessera.features.classifiers.build import load_classifier
from tessera.images.grids import save_grid, stacked_grid
from tessera.images.pixels import to_float, to_uint8
from tessera.images.prepared import open_prepared

SHOWN = 16  # images in the grid


def completions(
    pipeline: TwoStagePipeline, pixels: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, C, H, W), uint8, with the right half grey, and with it completed."""
    known = torch.zeros(pixels.shape[-2:], dtype=torch.bool)
    known[:, : pixels.shape[-1] // 2] = True
    completed = pipeline.complete(to_float(pixels), known, seed=1, batch_size=256, temperature=temperature)
    return pixels.masked_fill(~known, 128), to_uint8(completed)


def agreement(classifier: Classifier, pixels: torch.Tensor, labels: torch.Tensor) -> float:
    return (predict(classifier, pixels) == labels).float().mean().item()


def measure(
    pipeline: TwoStagePipeline, classifier: Classifier, count: int, temperature: float
) -> tuple[dict, torch.Tensor]:
    """The three agreements, and the first images of each kind as one picture."""
    split = open_prepared(paths.PREPARED)["test"]
    rows = slice(0, min(count, len(split)))
    pixels, labels = split.pixels(rows), split.label_tensor(rows)
    kinds = dict(
        zip(("whole", "blank", "completed"), (pixels, *completions(pipeline, pixels, temperature)), strict=True)
    )
    found = {kind: agreement(classifier, images, labels) for kind, images in kinds.items()}
    return found | {"images": len(pixels)}, stacked_grid([images[:SHOWN] for images in kinds.values()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--grid", type=Path, help="also the first images: whole, half, completed")
    options = parser.parse_args()
    classifier, _ = load_classifier(paths.CLASSIFIER)
    if classifier is None:
        raise SystemExit("the data has no labels: nothing to agree with")
    found, picture = measure(TwoStagePipeline.load(paths.MODELS), classifier, options.images, options.temperature)
    print("  ".join(f"{kind} {value:.1%}" for kind, value in found.items() if kind != "images"))
    if options.grid:
        save_grid(picture, options.grid)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
