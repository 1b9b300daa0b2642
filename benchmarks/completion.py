"""Does a completion answer to what is given? The classifier on images of which a part is given.

    python benchmarks/completion.py [--given left right upper lower centre] [--images 1000] [--temperature 1.0]
        [--order layout] [--decoding-steps 8] [--json FILE] [--grid FILE]

For a finished run (models/ and data/ in the current folder): the first test images, whole; with all but the given part
grey; and with the rest completed by the prior, without a label. How many of each the classifier gives their class, and
how many images are completed in a second. `--order` is of the prior any_order, and is refused with any other.
`--decoding-steps` is of masked priors, and of any_order in the order parallel; it changes nothing elsewhere.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import repository  # noqa: F401
import torch

from sampling.pipeline import TwoStagePipeline
from stage2_prior.priors.base import Prior
from tessera import paths
from tessera.features.classifiers.base import Classifier, predict
from tessera.features.classifiers.build import load_classifier
from tessera.images.grids import save_grid, stacked_grid
from tessera.images.pixels import to_float, to_uint8
from tessera.images.prepared import open_prepared

SHOWN = 16  # images in the grid
BATCH = 256  # images that are completed at once
GIVEN = ("left", "right", "upper", "lower", "centre")


def known_part(given: str, height: int, width: int) -> torch.Tensor:
    """bool (height, width): a half of the image, or the half of its height and width that is in its centre."""
    rows, columns = height // 2, width // 2
    known = torch.zeros(height, width, dtype=torch.bool)
    parts = {
        "left": (slice(None), slice(columns)),
        "right": (slice(None), slice(columns, None)),
        "upper": (slice(rows), slice(None)),
        "lower": (slice(rows, None), slice(None)),
        "centre": (slice(height // 4, height // 4 + rows), slice(width // 4, width // 4 + columns)),
    }
    known[parts[given]] = True
    return known


def require_orders(prior: Prior) -> None:
    """Refuses a prior that has one order only. A chain needs one link that has several.

    Raises:
        SystemExit: it is such a prior.
    """
    names = [part.name for part in (prior, *prior.chained())]
    if "any_order" not in names:
        raise SystemExit(f"only the prior any_order draws in other orders, and this run has {prior.name}; train that")


def agreement(classifier: Classifier, pixels: torch.Tensor, labels: torch.Tensor) -> float:
    return (predict(classifier, pixels) == labels).float().mean().item()


def measure(
    pipeline: TwoStagePipeline, classifier: Classifier, count: int, given: str = "left", **settings: Any
) -> tuple[dict[str, Any], torch.Tensor]:
    """The three agreements, and the first images of each kind as one picture.

    `settings`: of the pipeline's `complete`.
    """
    split = open_prepared(paths.PREPARED)["test"]
    rows = slice(0, min(count, len(split)))
    pixels, labels = split.pixels(rows), split.label_tensor(rows)
    known = known_part(given, *pixels.shape[-2:])
    began = time.perf_counter()
    completed = pipeline.complete(to_float(pixels), known, seed=1, batch_size=BATCH, **settings)
    seconds = time.perf_counter() - began
    kinds = {"whole": pixels, "blank": pixels.masked_fill(~known, 128), "completed": to_uint8(completed)}
    found = {kind: agreement(classifier, images, labels) for kind, images in kinds.items()}
    found |= {"images": len(pixels), "images_per_second": len(pixels) / seconds}
    return found, stacked_grid([images[:SHOWN] for images in kinds.values()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--given", nargs="+", choices=GIVEN, default=["left"])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--order", choices=("layout", "random", "parallel"), help="default: layout")
    parser.add_argument("--decoding-steps", type=int, default=8)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--grid", type=Path, help="also the first images: whole, given, completed; of the first part")
    options = parser.parse_args()
    classifier, _ = load_classifier(paths.CLASSIFIER)
    if classifier is None:
        raise SystemExit("the data has no labels: nothing to agree with")
    pipeline, found = TwoStagePipeline.load(paths.MODELS), {}
    if options.order:
        require_orders(pipeline.prior)
    settings = {name: getattr(options, name) for name in ("temperature", "decoding_steps")}
    settings["order"] = options.order or "layout"
    measure(pipeline, classifier, min(options.images, BATCH), options.given[0], **settings)  # the first call is slower
    for given in options.given:
        found[given], picture = measure(pipeline, classifier, options.images, given, **settings)
        shares = "  ".join(f"{kind} {found[given][kind]:.1%}" for kind in ("whole", "blank", "completed"))
        print(f"{given}: {shares}  {found[given]['images_per_second']:.1f} images/s", flush=True)
        if options.grid and given == options.given[0]:
            save_grid(picture, options.grid)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
