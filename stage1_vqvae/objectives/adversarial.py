"""An adversarial term: a discriminator learns to tell images from reconstructions, and the decoder to deceive it.

Sources: Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis", equations 5 to 7; Lim and Ye
2017, "Geometric GAN", for the hinge loss.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stage1_vqvae.discriminators.build import build_discriminator
from stage1_vqvae.discriminators.sections import DiscriminatorChoice
from stage1_vqvae.objectives.base import Term
from stage1_vqvae.objectives.regularisers import Anchors, gradient_penalty
from stage1_vqvae.objectives.sections import TermParams
from tessera.parameters.sections import Count, Decay, Misfit, NonNegative, PositiveFloat, Section, choice


class RegulariserParams(Section):
    """What keeps the discriminator smooth.

    `weight`: of LeCam's distance, or of half of R1's squared gradient norm. `decay`: of LeCam's moving averages.
    """

    name: Literal["none", "lecam", "r1"]
    weight: NonNegative
    decay: Decay


class OptimizerParams(Section):
    """The discriminator's AdamW. `learning_rate_factor`: of the training's learning rate. It has no weight decay."""

    learning_rate_factor: PositiveFloat
    betas: tuple[Decay, Decay]


class Parameters(TermParams):
    """The section `adversarial` of params.yaml.

    `start_step`: the first step in which the discriminator is trained. `ramp_steps`: steps from there over which the
    weight rises from 0 to its full value. `adaptive`: whether the weight is multiplied by the ratio of gradient norms
    at the decoder's last layer (Esser et al., equation 7). A distance that the discriminator adds for the decoder
    (`projected.matching`) has this term's weight and ramp as well.
    """

    opposed: ClassVar[bool] = True

    weight: NonNegative
    adaptive: bool
    start_step: Count
    ramp_steps: Count
    regulariser: RegulariserParams
    optimizer: OptimizerParams
    discriminator: choice(DiscriminatorChoice)

    def fits_together(self) -> None:
        if self.regulariser.name == "r1" and not self.discriminator.chosen.second_order:
            raise Misfit(
                f"r1 needs second derivatives, which discriminator {self.discriminator.name} has not; choose lecam",
                "regulariser",
                "name",
            )
        if self.adaptive and self.discriminator.chosen.matched:
            raise Misfit(
                f"discriminator {self.discriminator.name} adds a distance (matching), whose gradient would make the "
                "adaptive weight small; set adaptive to false, or matching to 0",
                "adaptive",
            )

    def fits_images(self, shape: tuple[int, int, int]) -> None:
        try:
            self.discriminator.chosen.fits_images(shape)
        except Misfit as error:
            raise Misfit(error.reason, "discriminator", self.discriminator.name, *error.path) from None


class Adversarial(Term):
    """A discriminator with its hinge loss; the decoder maximises its logits.

    Args:
        channels: of the images.
        discriminator: its parameters, {"name": NAME, NAME: {...}}.
        others: see `Parameters`.
    """

    measured = False
    opponent = "discriminator"

    def __init__(
        self,
        channels: int,
        *,
        weight: float,
        adaptive: bool,
        start_step: int,
        ramp_steps: int,
        regulariser: dict[str, Any],
        optimizer: dict[str, Any],
        discriminator: dict[str, Any],
    ) -> None:
        super().__init__(weight)
        self.adaptive, self.start_step, self.ramp_steps = adaptive, start_step, ramp_steps
        self.regulariser, self.regulariser_weight = regulariser["name"], regulariser["weight"]
        self.optimizer = optimizer
        self.discriminator = build_discriminator(discriminator, channels)
        self.anchors = Anchors(regulariser["decay"]) if self.regulariser == "lecam" else None
        self.whole_batch = self.discriminator.whole_batch
        self._seen: tuple[Any, Any] | None = None  # what `forward` judged in a step of one piece
        self._pieces = 0  # how many micro-batches `forward` was given in the step
        if adaptive:
            self.whole_batch = "an adaptive weight depends on the whole batch; set adaptive to false"

    def begin(self, random: torch.Generator) -> None:
        self._seen, self._pieces = None, 0
        self.discriminator.begin(random)

    def begins(self, step: int) -> bool:
        return step >= self.start_step

    def ramp(self, step: int) -> float:
        return min(1.0, max(0.0, (step - self.start_step + 1) / (self.ramp_steps + 1)))

    def settings(self) -> dict[str, object]:
        betas = tuple(self.optimizer["betas"])
        return {"learning_rate_factor": self.optimizer["learning_rate_factor"], "betas": betas, "weight_decay": 0.0}

    def forward(self, made: Tensor, images: Tensor) -> Tensor:
        return sum(self.losses(made, images).values())

    def losses(self, made: Tensor, images: Tensor) -> dict[str, Tensor]:
        """The negative mean logit, and the discriminator's distance, if it has one."""
        self._seen, self._pieces = None, self._pieces + 1
        ours, theirs = self.discriminator.look(made, images)
        if self._pieces == 1:  # with micro-batches, those of all pieces would take the memory of the whole batch
            self._seen = (_detached(ours), _detached(theirs))
        found, matching = {"": -mean(self.discriminator.judge(ours))}, self.discriminator.matching_loss(ours, theirs)
        return found if matching is None else found | {"_matching": matching}

    def own_loss(self, made: Tensor, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        penalised = self.regulariser == "r1" and self.regulariser_weight > 0
        images = images.detach().requires_grad_(penalised)
        # `forward` has looked at the same images, unless the weight is 0, or there are micro-batches. A second look at
        # them is at the same part. A penalty needs the gradient of images, which the first look did not keep.
        seen, self._seen = self._seen, None
        if seen is None or penalised:
            seen = self.discriminator.look(made.detach(), images)
        real, fake = (self.discriminator.judge(part) for part in reversed(seen))
        loss = hinge(real, fake)
        scalars = {"logits_of_images": mean(real), "logits_of_reconstructions": mean(fake), "hinge": loss}
        if penalised:
            penalty = gradient_penalty(real, images)
            loss, scalars["r1"] = loss + self.regulariser_weight / 2 * penalty, penalty
        elif self.anchors is not None:
            distance = self.anchors(real, fake)
            loss, scalars["lecam"] = loss + self.regulariser_weight * distance, distance
        return loss, scalars

    def update(self) -> None:
        if self.anchors is not None:
            self.anchors.update()

    def discard(self) -> None:
        if self.anchors is not None:
            self.anchors.discard()


def _detached(seen: Any) -> Any:
    """A tensor, or a list of tensors, without a gradient."""
    return seen.detach() if isinstance(seen, Tensor) else [part.detach() for part in seen]


def mean(logits: list[Tensor]) -> Tensor:
    """The mean logit, a scalar in float32: over images and positions, and then over the discriminator's parts."""
    return torch.stack([part.float().mean() if part.dtype != torch.float64 else part.mean() for part in logits]).mean()


def hinge(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Half the sum of two hinge losses: logits of images should be above 1, and those of reconstructions below -1."""
    return (mean([F.relu(1 - part) for part in real]) + mean([F.relu(1 + part) for part in fake])) / 2
