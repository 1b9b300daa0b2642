"""What the figures of metrics.json and the curves say, in sentences for a person, and what to do. No torch.

The bounds are rules of thumb, which no experiment has chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tessera.codes.layout import CodeLayout

LITTLE_LEARNED = 0.02  # of the bits that counting needs: a prior that saves less has learned little
RECOGNISED = 0.75  # of the share of test images that are recognised: below it reconstructions have lost too much
ALIKE = 0.5  # the same for samples, below which they look little like their classes
USED = 0.5  # of the codes that evenly used codebooks would show on as many tokens
COPIES = 0.75  # of pairs in which a sample is nearer to training images than a test image is; 0.5 is expected
ROSE = 0.02  # of the best validation figure: a last one that is worse by more has overfitted
STILL_FALLING = 0.02  # of a validation figure, by which it still fell between the last two measurements

BAD_SAMPLES = "docs/guide/sampling.md#when-samples-are-bad"

LONGER = (
    "Train the prior longer (stage2_prior.training.steps), take another one, or make it larger (stage2_prior.width, "
    "layers)."
)
REVIVE = (
    "Let codes start from the data (`start: kmeans`), revive unused ones (a `revival_threshold` above 0), take a "
    "smaller `codebook_size`, or the quantizer `fsq`, whose codes cannot die."
)
MEND_STAGE_1 = (
    "Mend stage 1: a finer grid of codes (smaller strides), a larger codebook_size, or more steps. No sample is better "
    "than a reconstruction."
)
CHOOSE_SAMPLING = (
    "Train the prior longer, and choose guidance_scale and temperature on validation images "
    "(python benchmarks/sampling_parameters.py)."
)
NO_COPIES = (
    "Compare the pairs of samples and nearest training images. If they are copies: more images, more passes "
    "(extract_codes.shift, horizontal_flip), more stage2_prior.dropout, a smaller prior, or fewer steps."
)
NO_OVERFITTING = (
    "The published weights are those of the best step. More images, more augmentation (extract_codes and "
    "stage1_vqvae.augmentation), more dropout, or a smaller model move that step back; a patience saves the time after."
)
MORE_STEPS = "More steps are likely to help; a run that was planned by `start` takes more `--minutes`."


@dataclass(frozen=True)
class Finding:
    """One thing that the figures say.

    Attributes:
        text: a sentence.
        advice: what to do about it; empty where nothing looks wrong.
    """

    text: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.text} {self.advice} ({BAD_SAMPLES})" if self.advice else self.text


def expected_usage(layout: CodeLayout, images: int) -> float:
    """The expected share of codes that occur at least once in `images` images if all codes are equally likely.

    It is a number from 0 to 1, the mean over levels.
    """
    shown = [(level.codebook_size, images * level.height * level.width) for level in layout.levels]
    return sum(1 - (1 - 1 / size) ** tokens for size, tokens in shown) / len(shown)


def findings(metrics: dict[str, Any], expected_usage: float) -> list[Finding]:
    """One finding for each thing that the figures say, the prior first.

    Args:
        metrics: the figures of metrics.json by section and name.
        expected_usage: see the function of this name, of the measured test images.
    """
    said = [_prior(metrics["bits_per_dim"]), *_classifier(metrics.get("classifier", {}))]
    said += _distances(metrics.get("distribution", {}), metrics.get("memorisation", {}))
    usage = metrics["codebook"]["usage"]
    if usage < USED * expected_usage:
        said.append(Finding(f"Only {usage:.0%} of the codes occur in the test images: many have died.", REVIVE))
    return said


def of_a_curve(who: str, what: str, steps: Sequence[float], values: Sequence[float]) -> list[Finding]:
    """What a validation curve says: whether the training overfitted, or was still learning at its end.

    Args:
        who: what was trained, such as "The prior".
        what: the figure, of which less is better.
        steps, values: the curve, in the order of the steps.
    """
    if len(values) < 3:
        return []
    best = min(range(len(values)), key=values.__getitem__)
    rise = values[-1] - values[best]
    if rise > ROSE * abs(values[best]):
        text = (
            f"{who} overfitted: its validation {what} was best at step {steps[best]:,.0f} ({values[best]:.4g}) and "
            f"rose to {values[-1]:.4g} at step {steps[-1]:,.0f}."
        )
        return [Finding(text, NO_OVERFITTING)]
    fall = values[-2] - values[-1]
    if fall > STILL_FALLING * abs(values[-2]):
        share = fall / abs(values[-2])
        text = (
            f"{who} was still learning: its validation {what} fell by {share:.1%} from the last but one measurement on."
        )
        return [Finding(text, MORE_STEPS)]
    return []


def _prior(bits: dict[str, float]) -> Finding:
    saved = 1 - bits["rate_prior"] / bits["rate_counts"] if bits["rate_counts"] else 0.0
    if saved >= LITTLE_LEARNED:
        return Finding(f"The prior needs {saved:.0%} fewer bits for the codes than counting how often each occurs.")
    if saved <= -LITTLE_LEARNED:
        compared = f"{-saved:.0%} more bits for the codes than counting"
    else:
        compared = "about as many bits for the codes as counting"
    return Finding(f"The prior needs {compared} how often each occurs: it has learned little.", LONGER)


def _classifier(agreement: dict[str, float]) -> list[Finding]:
    """How many images of each kind the classifier takes for what they are; nothing if there is no classifier."""
    real, samples = agreement.get("real_accuracy"), agreement.get("sample_agreement")
    if not real or samples is None:
        return []
    rebuilt = agreement["reconstruction_agreement"]
    said = [
        Finding(
            f"The classifier recognises {real:.0%} of the test images, {rebuilt:.0%} of their reconstructions, and "
            f"{samples:.0%} of the samples as the class that was asked for."
        )
    ]
    if rebuilt < RECOGNISED * real:
        said.append(Finding("The reconstructions have lost much of what tells classes apart.", MEND_STAGE_1))
    elif samples < ALIKE * real:
        said.append(Finding("The samples look little like their classes.", CHOOSE_SAMPLING))
    return said


def _distances(distribution: dict[str, Any], memorisation: dict[str, Any]) -> list[Finding]:
    """How far samples are from test images, and whether they are copies; nothing where there are no distances."""
    if not all("kid" in distribution.get(name, {}) for name in ("reconstructions", "default", "floor")):
        return []
    rebuilt, samples, floor = (distribution[name]["kid"] for name in ("reconstructions", "default", "floor"))
    said = [
        Finding(
            f"In the features of {distribution['features']}, the KID to the test images is {rebuilt:.4f} for their "
            f"reconstructions, {samples:.4f} for the samples and {floor:.4f} for training images (docs/distances.md)."
        )
    ]
    if memorisation["nearer_than_test"] > COPIES:
        text = (
            "Samples are nearer to training images than test images are: they may be copies "
            "(results/evaluate/images/closest.png)."
        )
        said.append(Finding(text, NO_COPIES))
    return said
