"""The base class of the objective's terms. docs/architecture.md lists what a term must define."""

from __future__ import annotations

import torch
from torch import nn


class Term(nn.Module):
    """A term that is added to the distortion when a decoder is trained. A subclass defines `forward`.

    Attributes:
        weight: the number by which the term is multiplied.
        adaptive: whether it is also multiplied by a / b, where a and b are norms of gradients at the decoder's last
            layer: a of the distortion plus all terms that are not adaptive, b of this term.
        measured: whether the term is also computed on the validation split, as a figure.
        opponent: the name of the loss that trains the term's own parameters; "" if it has no parameters.
        whole_batch: "" if the term is a mean over images. If not, a text that says why, for error messages (see
            `tessera.training.task.Task`).
    """

    adaptive: bool = False
    measured: bool = True
    opponent: str = ""
    whole_batch: str = ""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def ramp(self, step: int) -> float:
        """The part of the weight that counts in a step, from 0 to 1. The term is not computed where it is 0."""
        return 1.0

    def begin(self, random: torch.Generator) -> None:
        """Learn that a step begins. What its losses draw at random for all images, they draw from `random`.

        Args:
            random: of the step and the term, the same on every process.
        """

    def begins(self, step: int) -> bool:
        """Whether the term's own parameters are trained in a step."""
        return True

    def forward(self, made: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """What the decoder minimises, a scalar: a mean over images unless `whole_batch`.

        Args:
            made: reconstructions, float (B, C, H, W) in [-1, 1]. The gradient goes through them alone.
            images: of the same shape.
        """
        raise NotImplementedError

    def losses(self, made: torch.Tensor, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The scalars that make up `forward`, by what their column in train.csv has after the term's name."""
        return {"": self(made, images)}

    def own_loss(self, made: torch.Tensor, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """What the term's own parameters minimise, a scalar, and scalars to log. Required where there is an `opponent`.

        Args:
            made: reconstructions without a gradient.
            images: of the same shape.
        """
        raise NotImplementedError

    def settings(self) -> dict[str, object]:
        """Settings of the optimizer of the term's own parameters (`tessera.training.task.ParameterGroup`)."""
        return {}

    def update(self) -> None:
        """Takes over what `own_loss` gathered, after a step with finite gradients, the same on every process."""

    def discard(self) -> None:
        """Forgets what `own_loss` gathered, after a step that was skipped."""
