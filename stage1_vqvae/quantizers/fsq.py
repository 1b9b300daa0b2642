"""Finite scalar quantization: every channel is rounded to one of a few values. There is no codebook and no loss.

Sources: Mentzer et al. 2023, "Finite Scalar Quantization: VQ-VAE Made Simple", section 3 and its listing; for the
activation `sigmoid`, the code of iFSQ (Tencent-Hunyuan/iFSQ, arXiv 2601.17124).
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_serializer

from stage1_vqvae.quantizers.base import Quantizer
from stage1_vqvae.quantizers.gradients import Estimator
from stage1_vqvae.quantizers.output import QuantizerOutput
from stage1_vqvae.quantizers.sections import MOST_BITS, QuantizerParams

# tanh is scaled to reach this fraction beyond the outermost values. Without it, rounding would never reach them.
MARGIN = 1e-3
SIGMOID_SLOPE = 1.6


class Parameters(QuantizerParams):
    """The section `fsq` of params.yaml."""

    refuses: ClassVar[dict[str, str]] = {"gradient_estimator": "rounding passes the gradient straight through"}
    no_residual: ClassVar[str | None] = None
    approximates: ClassVar[bool] = True
    levels: Annotated[tuple[Annotated[int, Field(ge=3)], ...], Field(min_length=1)]
    activation: Literal["tanh", "sigmoid"]

    @model_serializer(mode="wrap")
    def without_tanh(self, whole: Any) -> dict[str, Any]:
        """The values, without `activation` where it is tanh: a model's config.json is then as it was before iFSQ."""
        return {name: value for name, value in whole(self).items() if (name, value) != ("activation", "tanh")}

    @field_validator("levels")
    @classmethod
    def countable(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if math.prod(levels) > 2**MOST_BITS:
            raise ValueError(
                f"{math.prod(levels)} codes are more than 2**{MOST_BITS}; put several smaller ones into `grouped`"
            )
        return levels

    @property
    def sizes(self) -> tuple[int, ...]:
        return (math.prod(self.levels),)


class FSQ(Quantizer):
    """Squashes each channel of z and rounds it to a grid of values in [-1, 1]. Each channel has its own grid.

    The width D is the length of `levels`, and the number of codes K is the product of `levels`. The values of a channel
    are counted from 0, the lowest. An index is a number with these counts as its digits; the digit of the first channel
    changes fastest.

    A grid of an odd number L of values goes from -1 to 1 in steps of 2 / (L - 1). A grid of an even number L of values
    has steps of 2 / L and goes from -1 to 1 - 2 / L, so it contains 0 and has one value more below 0 than above.

    z is squashed into the range of the grid, from its lowest value to its highest. The result is the target, which is
    then rounded; the gradient passes rounding unchanged.

    Inside a residual quantizer an even grid is raised by half a step. It then goes from -1 + 1 / L to 1 - 1 / L. Every
    target in [-1, 1] then lies within half a step of its code. The residual quantizer divides what the code leaves of
    the target by half a step (`residual_scale`), so that the targets of the next depth lie in [-1, 1] again.

    Args:
        levels: the number of values of each channel (not the levels of code grids).
        activation: what squashes z. "tanh" is shifted on an even grid, so that z = 0 becomes the value 0. "sigmoid" is
            2 σ(1.6 z) - 1, which makes targets nearly uniform over the range if z is standard normal. It has no shift,
            because a shift would skew that distribution. So z = 0 becomes the middle of the range, which on an even
            grid lies half way between two values.
    """

    def __init__(self, *, levels: list[int], activation: str = "tanh", inside_residual: bool = False) -> None:
        counts = torch.tensor(levels)
        super().__init__(int(counts.prod()), inside_residual=inside_residual)
        self.dim = self.code_dim = len(levels)
        self.activation = activation
        self.estimator = Estimator("straight_through")
        self.register_buffer("levels", counts, persistent=False)
        self.register_buffer("basis", torch.cat([torch.ones(1, dtype=torch.int64), counts[:-1].cumprod(0)]), False)
        half_width = (counts // 2).float()
        self.register_buffer("half_width", half_width, persistent=False)  # in steps
        half_step = torch.where(counts % 2 == 0, 0.5, 0.0)
        self.register_buffer("raised", half_step * inside_residual, persistent=False)  # in steps
        self.register_buffer("offset", half_step * (not inside_residual), persistent=False)  # in steps

    @property
    def residual_scale(self) -> torch.Tensor:
        """Half the distance between two values of each channel, float32 (D,)."""
        return 0.5 / self.half_width

    def to_target(self, z: torch.Tensor) -> torch.Tensor:
        """Squashes z (..., D) into the grid's range."""
        if self.activation == "sigmoid":
            bounded = 2 * torch.sigmoid(SIGMOID_SLOPE * z) - 1
            return (bounded * (self.levels - 1) / 2 - self.offset) / self.half_width
        reach = (self.levels - 1) * (1 + MARGIN) / 2
        return (torch.tanh(z + torch.atanh(self.offset / reach)) * reach - self.offset) / self.half_width

    def _grid(self, places: torch.Tensor) -> torch.Tensor:
        """The values in [-1, 1] of places (..., D), which count from 0 to levels - 1."""
        return (places - self.half_width + self.raised) / self.half_width

    def quantize(self, target: torch.Tensor, seeds: torch.Tensor | None = None) -> QuantizerOutput:
        """Takes the nearest point of the grid for each target (..., D)."""
        places = (target.detach() * self.half_width - self.raised).round() + self.half_width
        places = places.nan_to_num(0.0).clamp_min(0).minimum(self.levels - 1).long()
        indices = (places * self.basis).sum(-1, keepdim=True)
        code = self._grid(places)
        if self.training:
            self.note(indices)
        z_q = self.apply_estimator(target, code)
        return QuantizerOutput(z_q, indices, target.new_zeros(()), target.detach(), code)

    def embed(self, indices: torch.Tensor) -> torch.Tensor:
        return self._grid(indices // self.basis % self.levels)
