"""Choose guidance and temperature without looking at the test split.

    python benchmarks/sampling_parameters.py [--images 1000] [--guidance 1 1.5 2] [--temperature 0.9 1] [--json FILE]

For a finished run (models/ in the current folder): draws images at each pair with a seed that is not `sampling.seed`,
and prints how many the classifier recognises, and how far they lie, as a set, from the validation images: the Fréchet
distance between Gaussians fitted to the classifier's last features ("own features": no FID, and compares with nothing
else). High agreement with a short distance is what one wants; agreement alone rewards images that are all alike.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import repository  # noqa: F401
import scipy.linalg
import torch

from sampling.pipeline import TwoStagePipeline
from tessera import paths
from tessera.features.classifiers.base import Classifier, predict
from tessera.features.classifiers.build import load_classifier
from tessera.images.pixels import to_float, to_uint8
from tessera.images.prepared import open_prepared

SEED = 1_000_003  # unlike sampling.seed: the pair is not chosen on the images that are reported


@torch.no_grad()
def features(classifier: Classifier, pixels: torch.Tensor) -> np.ndarray:
    """The classifier's last features (n, width), float64."""
    return classifier.blocks(to_float(pixels)).mean((2, 3)).double().numpy()


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """‖μa − μb‖² + tr(Σa + Σb − 2 (Σa Σb)^½): Heusel et al. 2017, section 3, on any features."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b + 1e-9 * np.eye(len(cov_a))).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 1.5, 2.0, 3.0, 4.0])
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.8, 0.9, 1.0])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    pipeline = TwoStagePipeline.load(paths.MODELS)
    classifier, _ = load_classifier(paths.CLASSIFIER)
    if classifier is None:
        raise SystemExit("the data has no labels: nothing to choose by")
    validation = open_prepared(paths.PREPARED)["validation"]
    real = features(classifier, validation.pixels(slice(None)))
    labels = pipeline.check_labels("each", arguments.images)
    rows = []
    print(f"{'guidance':>8} {'temperature':>11} {'agreement':>9} {'distance':>8}")
    for guidance in arguments.guidance:
        for temperature in arguments.temperature:
            settings = {"guidance_scale": guidance, "temperature": temperature, "seed": SEED, "batch_size": 256}
            pixels = to_uint8(pipeline.generate(arguments.images, labels, **settings))
            agreement = (predict(classifier, pixels) == labels).float().mean().item()
            distance = frechet(features(classifier, pixels), real)
            rows.append(
                {"guidance": guidance, "temperature": temperature, "agreement": agreement, "distance": distance}
            )
            print(f"{guidance:8.2f} {temperature:11.2f} {agreement:9.3f} {distance:8.3f}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
