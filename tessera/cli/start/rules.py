"""The rules by which `start` chooses parameters. docs/guide/sizes.md has them as a table, with the trials behind them.

A rule looks at the images, at the machine and at the time there is. It gives values of params.yaml by dotted path. The
most important values have a reason, which stands beside them in the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from stage0_images.survey import BACKGROUNDS, Survey
from tessera.cli.start.machine import Machine

STAGE1, STAGE2 = "stage1_vqvae", "stage2_prior"

NATIVE = 32  # pixels; images of one size up to this keep it
SMALLEST, LARGEST, LARGEST_CPU = 8, 256, 64  # pixels a side
FEW, SOME, MANY = 1_000, 5_000, 20_000  # training images
SMALLER_BATCHES = (64, 32)  # of the prior, where the time allows few steps
TOKENS_CPU, TOKENS_GPU, MORE = 64, 256, 1.1  # codes an image, about: up to 1.1 times as many
FACTORS = (2, 4, 8, 16)  # of downsampling


@dataclass
class Choice:
    """Values for params.yaml, by dotted path.

    Attributes:
        reasons: for some of the paths, a sentence that says why the value was chosen.
    """

    values: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def set(self, path: str, value: Any, reason: str = "") -> None:
        self.values[path] = value
        if reason:
            self.reasons[path] = reason

    def joined(self, other: Choice) -> Choice:
        """Both; `other` is the stronger one."""
        return Choice(self.values | other.values, self.reasons | other.reasons)


def sides(survey: Survey, wanted: int | None, machine: Machine) -> dict[int, str]:
    """The sides that may be tried, largest first, each with its reason. The network's downsampling divides each.

    Args:
        wanted: what the user asked for; it is then the only one.
    """
    if wanted:
        return {wanted: "as asked for"}
    side = min(survey.side, LARGEST)
    if side <= NATIVE:
        found = max(SMALLEST, side - side % (4 if side > 12 else 2))
        own = found == survey.sides[0] == survey.sides[-1] and survey.aspects[0] == survey.aspects[-1] == 1
        return {found: "the images' own size" if own else "nine of ten images have this side or more"}
    most = min(side, LARGEST if machine.gpu else LARGEST_CPU)
    found = [step for step in (256, 128, 96, 64, 48, 32) if step <= most]
    return {found[0]: "large enough to look at, and not too much for this machine"} | dict.fromkeys(
        found[1:], "what the time allows"
    )


def strides(side: int, machine: Machine) -> int:
    """The downsampling: the smallest that leaves about as many codes as a prior on this machine can take.

    If none does, it is the largest that divides the side.
    """
    factors = [factor for factor in FACTORS if side % factor == 0]
    return next((factor for factor in factors if (side // factor) ** 2 <= MORE * _tokens(machine)), factors[-1])


def _tokens(machine: Machine) -> int:
    """The number of codes an image that a prior can take, about."""
    return TOKENS_GPU if machine.gpu else TOKENS_CPU


def of_side(survey: Survey, side: int, reason: str, machine: Machine) -> Choice:
    """All that the rules say of images of one side, but for the width of stage 1's network. `reason`: why this side."""
    chosen = Choice()
    for part in (
        images(survey, side, reason),
        codes(survey, side, machine),
        precision(machine, side),
        stage1_training(survey),
        prior(survey),
        sampling(survey, side),
        judge(survey, machine),
    ):
        chosen = chosen.joined(part)
    chosen = chosen.joined(shared(chosen, machine.processes))
    if survey.classes is None:  # values of a classifier that is not trained need no reasons
        unused = ("classifier.training.", "classifier.conv.")
        chosen.reasons = {path: reason for path, reason in chosen.reasons.items() if not path.startswith(unused)}
    return chosen


def fractions(counts: dict[str, int]) -> Choice:
    """How large the splits are that the source does not have.

    Args:
        counts: number of images of each split that it has.
    """
    chosen, total = Choice(), sum(counts.values())
    for split in {"validation", "test"} - set(counts):
        chosen.set(f"data.{split}_fraction", 0.1 if total < MANY else 0.05)
    return chosen


def images(survey: Survey, side: int, reason: str) -> Choice:
    """The size and the colours of the images. `reason`: why this side."""
    chosen = Choice()
    chosen.set("data.height", side, reason)
    chosen.set("data.width", side, "as the height, since images are square")
    chosen.set(
        "data.channels", 1 if survey.grey else 3, "all images are grey" if survey.grey else "images have colours"
    )
    if survey.transparent:
        reason = "lies under transparent images"
        if survey.background != "white":
            reason += f"; {survey.vanish['white']:.0%} of all images would vanish on white"
        chosen.set("data.background", list(BACKGROUNDS[survey.background]), reason)
    return chosen


def codes(survey: Survey, side: int, machine: Machine) -> Choice:
    """The grid and the codebook."""
    chosen, train, factor = Choice(), survey.images["train"], strides(side, machine)
    chosen.set(f"{STAGE1}.network.name", "conv")
    chosen.set(f"{STAGE1}.network.conv.strides", [factor], _why_strides(side, factor, machine))
    size = 64 if train < FEW else 128 if train < SOME else 256 if train < MANY else 512
    reason = f"more images can train more codes, and there are {train:,}"
    if size > 64 and (side <= 16 or survey.grey):
        size //= 2
        reason += f"; {'grey' if survey.grey else 'small'} images need fewer"
    chosen.set(f"{STAGE1}.quantizer.name", "vq")
    chosen.set(f"{STAGE1}.quantizer.codebook_size", size, reason)
    return chosen


def _why_strides(side: int, factor: int, machine: Machine) -> str:
    """The reason for the downsampling, see `strides`."""
    grid = side // factor
    if grid**2 > MORE * _tokens(machine):
        why = f"no larger downsampling divides {side} pixels"
    elif factor == min(FACTORS):
        why = "the least downsampling loses the fewest details"
    else:
        why = "a finer grid has too many for a prior on this machine"
    return f"{grid}x{grid} codes an image: {why}"


def precision(machine: Machine, side: int) -> Choice:
    """How the trainings compute."""
    chosen = Choice()
    low = machine.slow_bf16 is None and side > 16
    reason = (
        "bf16 is not faster than fp32 on this machine"
        if machine.slow_bf16
        else "bf16 is faster than fp32 on this machine"
        if low
        else "images are so small that bf16 gains nothing"
    )
    for section in (STAGE1, STAGE2, "classifier"):
        chosen.set(f"{section}.training.precision", "bf16" if low else "fp32", reason)
        chosen.set(f"{section}.training.channels_last", low and section != STAGE2)
        # The plan decides about stage 1.
        chosen.set(f"{section}.training.compile", False, "the time that compiling takes was measured for stage 1 only")
    return chosen


def widths(side: int, narrow: bool) -> Iterator[Choice]:
    """Sizes of the network, the largest first. The first one for which there is time for enough steps is taken.

    Args:
        narrow: whether a network may be so narrow that smaller images would be the better choice.
    """
    for channels in (64,) if side <= 16 else (128, 96, 64, *[32] * narrow):
        chosen = Choice()
        reason = "the narrowest, so that the time allows more steps"
        if side <= 16:
            reason = "images are so small that a wider network is not needed"
        elif channels > 32:
            reason = "the widest that the time allows enough steps for"
        chosen.set(f"{STAGE1}.network.conv.channels", channels, reason)
        chosen.set(f"{STAGE1}.network.conv.stem_channels", channels // 2)
        yield chosen


def usual_batch(train: int) -> tuple[int, str]:
    """The images of a training step, and the reason. The prior has fewer where the time allows few steps."""
    if train >= FEW:
        return 128, f"large batches make steady steps, and {train:,} training images are enough for them"
    return 64 if train >= 128 else 16, f"larger batches would repeat the {train:,} training images more often"


def smaller_batches(survey: Survey, processes: int) -> Iterator[Choice]:
    """The smaller batches that the prior may have, largest first. The first with which there are enough steps is taken.

    Args:
        processes: that share a batch.
    """
    usual, _ = usual_batch(survey.images["train"])
    for images in (size for size in SMALLER_BATCHES if size < usual):
        chosen = Choice()
        chosen.set(f"{STAGE2}.training.batch_size", images, f"smaller than {usual}, so that the time allows more steps")
        yield chosen.joined(shared(chosen, processes))


def stage1_training(survey: Survey) -> Choice:
    """How stage 1 is trained, but for the number of steps."""
    chosen, train = Choice(), survey.images["train"]
    chosen.set(f"{STAGE1}.training.batch_size", *usual_batch(train))
    chosen.set(f"{STAGE1}.training.learning_rate", 2.0e-3)
    reason = f"below {MANY:,} images shifted copies help" if train < MANY else ""
    chosen.set(f"{STAGE1}.augmentation.shift", 0 if train >= MANY else 1, reason)
    chosen.set(f"{STAGE1}.training.codebook_images", min(2048, train))
    return chosen


def prior(survey: Survey) -> Choice:
    """The prior and how it is trained, but for the number of steps."""
    chosen, train = Choice(), survey.images["train"]
    if train < FEW:
        layers, width, heads, dropout = 2, 96, 4, 0.4
    elif train < SOME:
        layers, width, heads, dropout = 3, 128, 4, 0.4
    elif train < MANY:
        layers, width, heads, dropout = 4, 160, 5, 0.2
    else:
        layers, width, heads, dropout = 4, 192, 6, 0.1
    chosen.set(f"{STAGE2}.name", "transformer")
    chosen.set(f"{STAGE2}.transformer.architecture", "llama", "had the best likelihood at equal time")
    chosen.set(f"{STAGE2}.layers", layers)
    reason = f"with only {train:,} images, a wider prior soon learns them by heart"
    if train >= MANY:
        reason = f"wide, since so many images are not soon learned by heart: {train:,}"
    chosen.set(f"{STAGE2}.width", width, reason)
    chosen.set(f"{STAGE2}.heads", heads)
    chosen.set(f"{STAGE2}.dropout", dropout, "fewer images need more dropout, or the prior learns them by heart")
    passes = train < MANY
    reason = f"9 passes: below {MANY:,} images the prior needs shifted copies"
    reason = reason if passes else f"from {MANY:,} images on, the prior needs no shifted copies"
    chosen.set("extract_codes.shift", 1 if passes else 0, reason)
    chosen.set("extract_codes.horizontal_flip", False, "true helps where a mirrored image is as good as the image")
    chosen.set(f"{STAGE2}.training.batch_size", *usual_batch(train))
    chosen.set(f"{STAGE2}.training.learning_rate", 1.0e-3 if train >= SOME else 2.0e-3)
    chosen.set(f"{STAGE2}.training.extra_pass_fraction", 0.8 if train < FEW else 0.5 if passes else 0.0)
    chosen.set(f"{STAGE2}.training.weight_decay", 0.05 if train < SOME else 0.01)
    ema = 0.99 if train < MANY else 0.0
    chosen.set(f"{STAGE2}.training.weight_ema_decay", ema, "few images: averaged weights overfit less" if ema else "")
    chosen.set(f"{STAGE2}.training.patience", 5, "ends when validation no longer improves")
    return chosen


def judge(survey: Survey, machine: Machine) -> Choice:
    """The network in whose features samples are compared with images."""
    chosen = Choice()
    if survey.classes is not None:
        chosen.set("evaluation.features.name", "classifier")
    elif machine.judge:
        chosen.set("evaluation.features.name", machine.judge, "there are no labels, and so no classifier")
    else:
        chosen.set("evaluation.features.name", "none", 'no network is here: pip install -e ".[features]" brings one')
    return chosen


def shared(choice: Choice, processes: int) -> Choice:
    """Batches that the processes can share equally: each size that was chosen, up to the next multiple."""
    chosen = Choice()
    for path, value in choice.values.items():
        if path.endswith(".batch_size") and value % processes:
            reason = f"a multiple of {processes}, so that the processes share it equally"
            chosen.set(path, value + processes - value % processes, reason)
    return chosen


def sampling(survey: Survey, side: int) -> Choice:
    """How images are drawn, and the classifier that judges them."""
    chosen, train = Choice(), survey.images["train"]
    labelled = survey.classes is not None
    chosen.set("sampling.temperature", 1.0 if train >= MANY else 0.9)
    reason = "shows classes clearly" if labelled else "there are no labels to be guided by"
    chosen.set("sampling.guidance_scale", 2.0 if labelled else 1.0, reason)
    chosen.set("sampling.grid_columns", 10)
    chosen.set("classifier.name", "conv" if labelled else "none", "" if labelled else "there are no labels")
    chosen.set("classifier.training.batch_size", 32, "small batches: more steps in the same time")
    if side > NATIVE:
        chosen.set("classifier.conv.channels", 16, "large images: more steps in the same time")
    chosen.set("data.use_labels", True)
    return chosen
