"""Finite scalar quantization: every channel is rounded to one of a few levels; no codebook, no loss.

Source: Mentzer et al. 2023, "Finite Scalar Quantization: VQ-VAE Made Simple", section 3 and its listing.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, field_validator

from stage1_vqvae.quantizers.base import Quantizer
from stage1_vqvae.quantizers.gradients import Estimator
from stage1_vqvae.quantizers.output import QuantizerOutput
from stage1_vqvae.quantizers.sections import MOST_BITS, QuantizerParams

MARGIN = 1e-3  # how far tanh reaches beyond the outermost levels, so that they are reached at all


class Parameters(QuantizerParams):
    """Parameters of `fsq`."""

    refuses: ClassVar[dict[str, str]] = {"gradient_estimator": "rounding passes the gradient straight through"}
    levels: Annotated[tuple[Annotated[int, Field(ge=3)], ...], Field(min_length=1)]

    @field_validator("levels")
    @classmethod
    def countable(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if math.prod(levels) > 2**MOST_BITS:
            raise ValueError(f"{math.prod(levels)} codes are more than 2**{MOST_BITS}; put smaller ones into `grouped`")
        return levels

    @property
    def sizes(self) -> tuple[int, ...]:
        return (math.prod(self.levels),)


class FSQ(Quantizer):
    """Codes on a grid in [-1, 1]; `levels` says how many values each channel takes.

    An index counts in mixed radix, the first channel fastest. An even number of levels has one more below 0 than above;
    with `symmetric` all of them lie half a step higher, so that no value in [-1, 1] is further than that from one, as
    the next depth of a residual expects.
    """

    residual_arguments: ClassVar[dict[str, Any]] = {"symmetric": True}

    def __init__(self, *, levels: list[int], symmetric: bool = False) -> None:
        counts = torch.tensor(levels)
        super().__init__(int(counts.prod()))
        self.dim = self.code_dim = len(levels)
        self.estimator = Estimator("straight_through")
        self.register_buffer("levels", counts, persistent=False)
        self.register_buffer("basis", torch.cat([torch.ones(1, dtype=torch.int64), counts[:-1].cumprod(0)]), False)
        half_width = (counts // 2).float()
        self.register_buffer("half_width", half_width, persistent=False)
        half_step = torch.where(counts % 2 == 0, 0.5, 0.0)
        self.register_buffer("raised", half_step * symmetric, persistent=False)  # in steps
        self.register_buffer("offset", half_step * (not symmetric), persistent=False)

    @property
    def residual_scale(self) -> torch.Tensor:
        """Half a step of each channel: the largest error."""
        return 0.5 / self.half_width

    def bound(self, z: torch.Tensor) -> torch.Tensor:
        """z (..., D) into the grid's range."""
        reach = (self.levels - 1) * (1 + MARGIN) / 2
        return (torch.tanh(z + torch.atanh(self.offset / reach)) * reach - self.offset) / self.half_width

    def _grid(self, places: torch.Tensor) -> torch.Tensor:
        """Values in [-1, 1] of places 0..levels - 1."""
        return (places - self.half_width + self.raised) / self.half_width

    def quantize(self, target: torch.Tensor, seeds: torch.Tensor | None = None) -> QuantizerOutput:
        """The nearest point of the grid to each target (..., D)."""
        places = (target.detach() * self.half_width - self.raised).round() + self.half_width
        places = places.nan_to_num(0.0).clamp_min(0).minimum(self.levels - 1).long()
        indices = (places * self.basis).sum(-1, keepdim=True)
        code = self._grid(places)
        if self.training:
            self.note(indices)
        z_q = self.estimator(target, code) if self.training else code
        return QuantizerOutput(z_q, indices, target.new_zeros(()), target.detach(), code)

    def embed(self, indices: torch.Tensor) -> torch.Tensor:
        return self._grid(indices // self.basis % self.levels)
