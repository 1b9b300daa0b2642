"""What the figures of metrics.json say, in sentences for a person. No torch.

The bounds are rules of thumb, which no experiment has chosen.
"""

from __future__ import annotations

from typing import Any

LITTLE_LEARNED = 0.02  # of the bits that counting needs: a prior that saves less has learned little
RECOGNISED = 0.75  # of the share of test images that are recognised: below it reconstructions have lost too much
ALIKE = 0.5  # the same for samples, below which they look little like their classes
USED = 0.5  # of the codes that evenly used codebooks would show on as many tokens

COPIES = 0.75  # of pairs in which a sample is nearer to training images than a test image is; 0.5 is expected

BAD_SAMPLES = "docs/guide/sampling.md#when-samples-are-bad"


def findings(metrics: dict[str, Any], expected_usage: float) -> list[str]:
    """One sentence for each thing that the figures say, the prior first.

    Args:
        metrics: the figures of metrics.json by section and name.
        expected_usage: the share of the codes that so many test codes would show if all were equally likely.
    """
    said = [*_prior(metrics["bits_per_dim"]), *_classifier(metrics.get("classifier", {}))]
    said += _distances(metrics.get("distribution", {}), metrics.get("memorisation", {}))
    usage = metrics["codebook"]["usage"]
    if usage < USED * expected_usage:
        said.append(f"Only {usage:.0%} of the codes occur in the test images: many have died ({BAD_SAMPLES}).")
    return said


def _prior(bits: dict[str, float]) -> list[str]:
    saved = 1 - bits["rate_prior"] / bits["rate_counts"] if bits["rate_counts"] else 0.0
    if saved >= LITTLE_LEARNED:
        return [f"The prior needs {saved:.0%} fewer bits for the codes than counting how often each occurs."]
    if saved <= -LITTLE_LEARNED:
        compared = f"{-saved:.0%} more bits for the codes than counting"
    else:
        compared = "about as many bits for the codes as counting"
    return [f"The prior needs {compared} how often each occurs: it has learned little ({BAD_SAMPLES})."]


def _classifier(agreement: dict[str, float]) -> list[str]:
    """How many images of each kind the classifier takes for what they are; nothing if there is no classifier."""
    real, samples = agreement.get("real_accuracy"), agreement.get("sample_agreement")
    if not real or samples is None:
        return []
    rebuilt = agreement["reconstruction_agreement"]
    said = [
        f"The classifier recognises {real:.0%} of the test images, {rebuilt:.0%} of their reconstructions, and "
        f"{samples:.0%} of the samples as the class that was asked for."
    ]
    if rebuilt < RECOGNISED * real:
        said.append(f"The reconstructions have lost much of what tells classes apart: mend stage 1 ({BAD_SAMPLES}).")
    elif samples < ALIKE * real:
        said.append(f"The samples look little like their classes ({BAD_SAMPLES}).")
    return said


def _distances(distribution: dict[str, Any], memorisation: dict[str, Any]) -> list[str]:
    """How far samples are from test images, and whether they are copies; nothing where there are no distances."""
    if not all("kid" in distribution.get(name, {}) for name in ("reconstructions", "default", "floor")):
        return []
    rebuilt, samples, floor = (distribution[name]["kid"] for name in ("reconstructions", "default", "floor"))
    said = [
        f"In the features of {distribution['features']}, the KID to the test images is {rebuilt:.4f} for their "
        f"reconstructions, {samples:.4f} for the samples and {floor:.4f} for training images (docs/distances.md)."
    ]
    if memorisation["nearer_than_test"] > COPIES:
        said.append(
            "Samples are nearer to training images than test images are: they may be copies "
            "(results/evaluate/images/closest.png)."
        )
    return said
