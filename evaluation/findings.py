"""What the figures of metrics.json and the curves say, in sentences for a person, and what to do. No torch.

The bounds are rules of thumb, which no experiment has chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluation.usage import Usage
    from tessera.parameters import Params

LITTLE_LEARNED = 0.02  # of the bits that counting needs: a prior that saves less has learned little
BARELY = 0.2  # of the errors of always answering with the most frequent class: a classifier must avoid this share
RECOGNISED = 0.75  # of the share of test images that are recognised: below it reconstructions have lost too much
ALIKE = 0.5  # the same for samples, below which they look little like their classes
LOST = 0.05  # of the variance of pixels (NMSE): above it reconstructions have lost details
FEW = 10  # samples of a class: of fewer, the share that is recognised says little
NAMED = 3  # classes at most in a sentence
USED = 0.5  # of the codes that evenly used codebooks would show on as many tokens
COPIES = 0.75  # of pairs in which a sample is nearer to training images than a test image is; 0.5 is expected
ROSE = 0.02  # of the best validation figure: a last one that is worse by more has overfitted
STILL_FALLING = 0.02  # of a validation figure, by which it still fell between the last two measurements

BAD_SAMPLES = "docs/guide/sampling.md#when-samples-are-bad"

LONGER = (
    "Train the prior longer (stage2_prior.training.steps), take another one, or make it larger (stage2_prior.width, "
    "layers)."
)
UNTRAINED = "Choose a prior that is trained (stage2_prior.name), such as transformer."
MEND_STAGE_1 = (
    "Mend stage 1: a finer grid of codes (smaller strides), a larger codebook_size, or more steps. No sample is better "
    "than a reconstruction."
)
LONGER_CLASSIFIER = (
    "Train it longer (classifier.training.steps) or with smaller batches (classifier.training.batch_size). Until then, "
    "neither the agreement of samples with it nor distances in its features say much."
)
SEE_CLASSES = (
    "Look at samples of these classes (python -m sampling.sample --class NAME). If they look right, the classifier "
    "hardly knows these classes. Otherwise give them more training images."
)
CHOOSE_SAMPLING = (
    "Then choose guidance_scale and temperature on validation images (python benchmarks/sampling_parameters.py)."
)
NO_COPIES = (
    "Compare the pairs of samples and nearest training images. If they are copies: more images, more passes "
    "(extract_codes.shift, horizontal_flip), more stage2_prior.dropout, a smaller prior, or fewer steps."
)
NO_OVERFITTING = (
    "The published weights are those of the best step. More images, more augmentation (extract_codes and "
    "stage1_vqvae.augmentation), more dropout, or a smaller model move that step back."
)
PATIENCE = "A patience ends a training some validations after its best step, and so saves time."
PLANNED = "If `start` planned the run, give it more `--minutes`."
MORE_STEPS = f"More steps are likely to help. {PLANNED}"


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


def findings(metrics: dict[str, Any], usage: Usage, params: Params) -> list[Finding]:
    """One finding for each thing that the figures say, the prior first.

    Args:
        metrics: the figures of metrics.json by section and name.
        usage: how many codes occur in the measured test images.
        params: the parameters of the run, by which advice is given.
    """
    better_prior = LONGER if params.stage2_prior.chosen.learns() else UNTRAINED
    agreement, distribution = metrics.get("classifier", {}), metrics.get("distribution", {})
    said = [_prior(metrics["bits_per_dim"], better_prior), *_classifier(agreement, better_prior)]
    poor = distribution.get("features") == "classifier" and _learned_little(agreement)
    if not any(MEND_STAGE_1 in finding.advice for finding in said):
        said += _reconstructions(metrics.get("reconstruction", {}))
    said += _distances(distribution, {} if poor else metrics.get("memorisation", {}))
    if usage.share < USED * usage.expected:
        text = f"Only {usage.share:.0%} of the codes{usage.where} occur in the test images: many are not used."
        said.append(Finding(text, _revive(params)))
    return said


def _revive(params: Params) -> str:
    """What makes more codes occur with the chosen quantizer. No value that params.yaml would refuse is named."""
    section = params.stage1_vqvae
    quantizer, averaged = section.quantizer.chosen.innermost, section.training.weight_ema_decay > 0
    values, ways = dict(quantizer), []
    if values.get("start", "kmeans") != "kmeans":
        ways.append("let codes start from the data (`start: kmeans`)")
    if (above := values.get("revival_threshold")) is not None:
        revived = quantizer.model_copy(update={"revival_threshold": (above + 1) / 2})
        if not (averaged and revived.revives_learned_codes):
            ways.append(f"revive unused codes (a `revival_threshold` above {above:g})")
    if "entropy_cost" in values:
        ways.append("raise `entropy_cost`")
    if "codebook_size" in values:
        ways.append("take a smaller `codebook_size`")
        if not params.extract_codes.draws:  # which fsq cannot do
            ways.append("take the quantizer `fsq`, whose codes cannot die")
    elif "bits" in values:
        ways.append("take fewer `bits`")
    elif "levels" in values:
        ways.append("take fewer or smaller `levels`")
    text = " or ".join(filter(None, [", ".join(ways[:-1]), *ways[-1:]]))
    return f"{text[:1].upper()}{text[1:]}." if text else "Take a smaller codebook."


def of_a_curve(
    who: str, what: str, steps: Sequence[float], values: Sequence[float], patient: bool = False
) -> list[Finding]:
    """What a validation curve says: whether the training overfitted, or was still learning at its end.

    Args:
        who: what was trained, such as "The prior".
        what: the name of the figure, such as "loss". A lower value is better.
        steps, values: the curve, in the order of the steps.
        patient: whether a patience is set. If it is, the advice against overfitting does not say to set one.

    Returns:
        One finding at most; none for fewer than three values.
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
        return [Finding(text, NO_OVERFITTING if patient else f"{NO_OVERFITTING} {PATIENCE}")]
    fall = values[-2] - values[-1]
    if fall > STILL_FALLING * abs(values[-2]):
        share = fall / abs(values[-2])
        text = (
            f"{who} was still learning: its validation {what} fell by {share:.1%} from the last but one measurement on."
        )
        return [Finding(text, MORE_STEPS)]
    return []


def _prior(bits: dict[str, float], advice: str) -> Finding:
    """What the prior saves against counting. `advice`: what makes it better."""
    if not bits["rate_counts"]:
        return Finding("Counting how often each code occurs needs no bits, so no prior can need fewer.")
    saved = 1 - bits["rate_prior"] / bits["rate_counts"]
    if saved >= LITTLE_LEARNED:
        return Finding(f"The prior needs {saved:.0%} fewer bits for the codes than counting how often each occurs.")
    if saved <= -LITTLE_LEARNED:
        compared = f"{-saved:.0%} more bits for the codes than counting"
    else:
        compared = "about as many bits for the codes as counting"
    return Finding(f"The prior needs {compared} how often each occurs: it has learned little.", advice)


def _classifier(agreement: dict[str, Any], better_prior: str) -> list[Finding]:
    """How many images of each kind the classifier takes for what they are; nothing if there is no classifier.

    Args:
        better_prior: what makes the prior better, a sentence.
    """
    real, samples = agreement.get("real_accuracy"), agreement.get("sample_agreement")
    if real is None or samples is None:
        return []
    rebuilt = agreement["reconstruction_agreement"]
    said = [
        Finding(
            f"The classifier recognises {real:.0%} of the test images, {rebuilt:.0%} of their reconstructions, and "
            f"{samples:.0%} of the samples as the class that was asked for."
        )
    ]
    if _learned_little(agreement):
        majority = agreement["majority_accuracy"]
        text = f"Always answering with the most frequent class is right for {majority:.0%} of the test images."
        said.append(Finding(f"{text} The classifier is hardly better: it has learned little.", LONGER_CLASSIFIER))
    elif rebuilt < RECOGNISED * real:
        said.append(Finding("The reconstructions have lost much of what tells classes apart.", MEND_STAGE_1))
    elif samples < ALIKE * real:
        said.append(Finding("The samples look little like their classes.", f"{better_prior} {CHOOSE_SAMPLING}"))
    elif named := _weakest(agreement.get("per_class", []), ALIKE * real):
        said.append(
            Finding(f"The samples of some classes are seldom recognised: {named}.", f"{SEE_CLASSES} {better_prior}")
        )
    return said


def _weakest(per_class: list[dict[str, Any]], least: float) -> str:
    """The classes whose samples are recognised more seldom than `least`, the worst first; empty if there is none."""
    weak = [each for each in per_class if each["samples"] >= FEW and each["sample_agreement"] < least]
    weak.sort(key=lambda each: each["sample_agreement"])
    named = [f"{each['class']} ({each['sample_agreement']:.0%})" for each in weak[:NAMED]]
    return ", ".join(named) + (f" and {len(weak) - NAMED} more" if len(weak) > NAMED else "")


def _reconstructions(figures: dict[str, float]) -> list[Finding]:
    """Whether reconstructions lose details, by their squared error."""
    if figures.get("nmse", 0.0) <= LOST:
        return []
    text = f"Reconstructions miss {figures['nmse']:.1%} of the variance of the pixels (NMSE): details are lost."
    return [Finding(text, f"{MEND_STAGE_1} {PLANNED}")]


def _learned_little(agreement: dict[str, Any]) -> bool:
    """Whether the classifier is hardly better than one that always answers with the most frequent class."""
    real, majority = agreement.get("real_accuracy"), agreement.get("majority_accuracy")  # None: an older evaluation
    if real is None or majority is None or majority == 1:
        return False
    return real < min(2 * majority, majority + BARELY * (1 - majority))


def _distances(distribution: dict[str, Any], memorisation: dict[str, Any]) -> list[Finding]:
    """How far samples are from test images, and whether they are copies; nothing where there are no distances.

    Args:
        memorisation: how near samples are to training images; empty if the features cannot tell.
    """
    if not all("kid" in distribution.get(name, {}) for name in ("reconstructions", "default", "floor")):
        return []
    rebuilt, samples, floor = (distribution[name]["kid"] for name in ("reconstructions", "default", "floor"))
    said = [
        Finding(
            f"In the features of {distribution['features']}, the KID to the test images is {rebuilt:.4f} for their "
            f"reconstructions, {samples:.4f} for the samples and {floor:.4f} for training images (docs/distances.md)."
        )
    ]
    if memorisation and memorisation["nearer_than_test"] > COPIES:
        text = (
            "Samples are nearer to training images than test images are: they may be copies "
            "(results/evaluate/images/closest.png)."
        )
        said.append(Finding(text, NO_COPIES))
    return said
