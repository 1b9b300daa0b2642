"""What the figures in metrics.json are worth: which come first, and in which direction each is better. No torch.

A figure is named STAGE:PATH, where PATH is its dotted path in results/STAGE/metrics.json.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

# The figures that are shown first. Those of `evaluate` are also the ones that DVC shows.
HEADLINES = (
    "evaluate:bits_per_dim.total_prior",
    "evaluate:bits_per_dim.distortion",
    "evaluate:bits_per_dim.rate_prior",
    "evaluate:reconstruction.nmse",
    "evaluate:reconstruction.ssim",
    "evaluate:codebook.usage",
    "evaluate:classifier.real_accuracy",
    "evaluate:classifier.sample_agreement",
    "evaluate:classifier.unguided_agreement",
    "evaluate:distribution.reconstructions.kid",
    "evaluate:distribution.default.kid",
    "evaluate:images.test",
    "train_vqvae:validation.nmse",
    "train_prior:validation.nats_per_token",
)

LOWER, HIGHER = "lower", "higher"

# Patterns of names. Figures that no pattern fits have no direction: perplexities, steps, sizes, counts of images, and
# training losses, whose unit depends on the likelihood.
BETTER = {
    "evaluate:distribution.floor.*": None,  # what real images have: a measure for the others
    "evaluate:distribution.*.frechet_distance": LOWER,
    "evaluate:distribution.*.kid": LOWER,
    "evaluate:distribution.*.precision": HIGHER,
    "evaluate:distribution.*.recall": HIGHER,
    "evaluate:distribution.*.density": HIGHER,
    "evaluate:distribution.*.coverage": HIGHER,
    "evaluate:distribution.*.inception_score": HIGHER,
    "evaluate:bits_per_dim.distortion": LOWER,
    "evaluate:bits_per_dim.total_*": LOWER,
    "evaluate:bits_per_dim.rate_counts": LOWER,
    "evaluate:bits_per_dim.rate_prior": LOWER,
    "evaluate:nats_per_token.counts": LOWER,
    "evaluate:nats_per_token.prior": LOWER,
    "evaluate:reconstruction.nmse": LOWER,
    "evaluate:reconstruction.psnr": HIGHER,
    "evaluate:reconstruction.ssim": HIGHER,
    "evaluate:codebook*.usage": HIGHER,
    "evaluate:classifier.majority_accuracy": None,  # of the test images alone: a measure for real_accuracy
    "evaluate:classifier.per_class.*.sample_agreement": HIGHER,
    "evaluate:classifier.per_class.*": None,  # names of classes, numbers of samples
    "evaluate:classifier.*": HIGHER,
    "extract_codes:*.bits_per_dim_distortion": LOWER,
    "extract_codes:*.codebook_usage*": HIGHER,
    "train_classifier:validation.accuracy": HIGHER,
    "train_classifier:validation.cross_entropy": LOWER,
    "train_prior:validation.nats_per_token*": LOWER,
    "train_vqvae:validation.bits_per_dim_distortion": LOWER,
    "train_vqvae:validation.codebook_usage*": HIGHER,
    "train_vqvae:validation.nmse": LOWER,
}

# Figures of codes. A VQ-VAE that says less in its codes has a lower rate, so they compare only for the same VQ-VAE.
OF_THE_SAME_CODES = (
    "evaluate:bits_per_dim.rate_*",
    "evaluate:nats_per_token.*",
    "train_prior:validation.nats_per_token*",
)

# Figures in the features of a network, by whose weights they compare.
OF_THE_SAME_JUDGE = ("evaluate:distribution.*",)
JUDGE = "evaluate:distribution.weights"

# Means over the test images, and distances to them. They compare only for the same images.
TEST = "evaluate:images.test"
# Distances of samples. All but the KID depend on how many samples there are.
SAMPLES = "evaluate:images.samples"
OF_AS_MANY_SAMPLES = ("evaluate:distribution.default.*", "evaluate:distribution.unguided.*")
OF_SAMPLES_ALONE = (
    "evaluate:classifier.sample_agreement",
    "evaluate:classifier.unguided_agreement",
    "evaluate:classifier.per_class.*",
)


def better(figure: str) -> str | None:
    """ "lower" or "higher", whichever is better, or None for a figure without a direction."""
    return next((direction for pattern, direction in BETTER.items() if fnmatchcase(figure, pattern)), None)


def needs_the_same_codes(figure: str) -> bool:
    """Whether a figure compares only between runs of the same VQ-VAE."""
    return any(fnmatchcase(figure, pattern) for pattern in OF_THE_SAME_CODES)


def needs_the_same_judge(figure: str) -> bool:
    """Whether a figure compares only between runs that the same network judged."""
    return any(fnmatchcase(figure, pattern) for pattern in OF_THE_SAME_JUDGE)


def needs_the_same_test_images(figure: str) -> bool:
    """Whether a figure compares only between runs that were measured on the same test images."""
    alone = any(fnmatchcase(figure, pattern) for pattern in OF_SAMPLES_ALONE)
    return figure.startswith("evaluate:") and not alone


def needs_as_many_samples(figure: str) -> bool:
    """Whether a figure compares only between runs with equally many samples."""
    return not figure.endswith(".kid") and any(fnmatchcase(figure, pattern) for pattern in OF_AS_MANY_SAMPLES)


def headlines(metrics: dict[str, Any], stage: str = "evaluate") -> dict[str, Any]:
    """The part of a stage's metrics (figures by section and name) that is shown first."""
    return _first(f"{stage}:", metrics)


def _first(place: str, figures: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in figures.items():
        if isinstance(value, dict):
            found |= {name: inner} if (inner := _first(f"{place}{name}.", value)) else {}
        elif f"{place}{name}" in HEADLINES:
            found[name] = value
    return found


def in_order(figures: Iterable[str]) -> list[str]:
    """Figures sorted: headlines first, in their order, then the others by name."""
    rank = {name: place for place, name in enumerate(HEADLINES)}
    return sorted(figures, key=lambda name: (rank.get(name, len(rank)), name))
