"""Finite scalar quantization: every channel is rounded to one of a few levels; no codebook, no loss.

Source: Mentzer et al. 2023, "Finite Scalar Quantization: VQ-VAE Made Simple", section 3 and its listing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from stage1_vqvae.quantizers.gradients import Estimator
from stage1_vqvae.quantizers.output import QuantizerOutput, Usage

MARGIN = 1e-3  # how far tanh reaches beyond the outermost levels, so that they are reached at all


class FSQ(nn.Module):
    """Codes on a grid in [-1, 1]; `levels` says how many values each channel takes.

    An index counts in mixed radix, the first channel fastest. An even number of levels has one more below 0 than above.
    """

    depth, stochastic, draws = 1, False, False

    def __init__(self, *, levels: list[int]) -> None:
        super().__init__()
        self.dim = self.code_dim = len(levels)
        self.estimator = Estimator("straight_through")
        counts = torch.tensor(levels)
        self.codebook_size = int(counts.prod())
        self.register_buffer("levels", counts, persistent=False)
        self.register_buffer("basis", torch.cat([torch.ones(1, dtype=torch.int64), counts[:-1].cumprod(0)]), False)
        half_width = (counts // 2).float()
        self.register_buffer("half_width", half_width, persistent=False)
        self.register_buffer("residual_scale", 0.5 / half_width, persistent=False)  # half a step: the largest error
        self._usage = Usage(self.codebook_size)

    def bound(self, z: torch.Tensor) -> torch.Tensor:
        """z (..., D) into the grid's range."""
        reach = (self.levels - 1) * (1 + MARGIN) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        return (torch.tanh(z + torch.atanh(offset / reach)) * reach - offset) / self.half_width

    @torch.compiler.disable
    def forward(self, z: torch.Tensor, seeds: torch.Tensor | None = None) -> QuantizerOutput:
        """Quantize z (..., D)."""
        with torch.autocast(z.device.type, enabled=False):
            return self.quantize(self.bound(z.float()), seeds)

    def quantize(self, target: torch.Tensor, seeds: torch.Tensor | None = None) -> QuantizerOutput:
        """The nearest point of the grid to each target (..., D)."""
        places = (target.detach() * self.half_width).round() + self.half_width
        places = places.nan_to_num(0.0).clamp_min(0).minimum(self.levels - 1).long()
        indices = (places * self.basis).sum(-1, keepdim=True)
        code = (places - self.half_width) / self.half_width
        if self.training:
            self._usage.add(indices)
        z_q = self.estimator(target, code) if self.training else code
        return QuantizerOutput(z_q, indices, target.new_zeros(()), target.detach(), code)

    def lookup(self, indices: torch.Tensor) -> torch.Tensor:
        """The codes z_q (..., D) of indices (..., 1)."""
        return (indices // self.basis % self.levels - self.half_width) / self.half_width

    def start(self, vectors: torch.Tensor, random: torch.Generator) -> None:
        """The grid is where it is."""

    def settle(self, batches: Callable[[], Iterable[torch.Tensor]]) -> None:
        """The grid is where it is."""

    def discard(self) -> None:
        self._usage.clear()

    def update(self, step: int, seed: int) -> dict[str, torch.Tensor]:
        """Nothing moves; the perplexity of the global batch."""
        return self._usage.figures()
