"""What every quantizer shares; docs/architecture.md has the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import nn

from stage1_vqvae.quantizers.gradients import Estimator
from stage1_vqvae.quantizers.output import QuantizerOutput, perplexity, used_counts


class Quantizer(nn.Module):
    """The borders of a quantizer, in float32 whatever autocast says, and codes that nothing but gradients moves.

    A family sets the attributes below, defines `quantize` and `embed`, and overrides what it does otherwise.
    """

    dim: int  # width of z
    code_dim: int | None  # width of what is quantized; None where codes stand for no vector
    codebook_size: int
    depth, stochastic, draws = 1, False, False
    residual_scale: float | torch.Tensor | None = None  # of what is left over to what was quantized, where anything is;
    estimator: Estimator  # then this too, of which a residual disposes
    settled: tuple[str, ...] = ()  # parameters that `settle` re-estimates, so that no weight average touches them

    residual_arguments: ClassVar[dict[str, Any]] = {}  # further arguments of one that stands inside a residual
    at_data = False  # whether `start` looks at its vectors

    def __init__(self, codebook_size: int) -> None:
        super().__init__()
        self.codebook_size = codebook_size
        self.calls = 1  # how often one forward pass of the model asks it
        self._noted: list[torch.Tensor] = []

    @staticmethod
    def inside(family: type[Quantizer]) -> dict[str, Any]:
        """Further arguments of the quantizers of a family that stand inside this one."""
        return {}

    def bound(self, z: torch.Tensor) -> torch.Tensor:
        """z (..., D) to where the codes lie (..., d)."""
        return z

    def quantize(self, target: torch.Tensor, seeds: torch.Tensor | None = None) -> QuantizerOutput:
        """The code of each bounded target (..., d) float32."""
        raise NotImplementedError

    def embed(self, indices: torch.Tensor) -> torch.Tensor:
        """z_q (..., D) of valid indices (..., depth), in float32."""
        raise NotImplementedError

    def pick(self, target: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """A code drawn for each bounded target, where the family `draws`."""
        raise NotImplementedError

    @torch.compiler.disable
    def forward(self, z: torch.Tensor, seeds: torch.Tensor | None = None) -> QuantizerOutput:
        """Quantize z (..., D). In training, also gather what `update` needs; nothing moves here.

        Args:
            seeds: int64 (B,), one a leading index of z, by which random numbers are drawn; None: torch's generator.

        Raises:
            ValueError: vectors of another width.
        """
        if z.shape[-1] != self.dim:
            raise ValueError(f"expected vectors of width {self.dim}, got {tuple(z.shape)}")
        with torch.autocast(z.device.type, enabled=False):
            return self.quantize(self.bound(z.float()), seeds)

    def lookup(self, indices: torch.Tensor) -> torch.Tensor:
        """z_q (..., D) of int64 indices (..., depth): in evaluation what `forward` gives, to the bit.

        Raises:
            ValueError: another depth, or indices that no code has.
        """
        if indices.shape[-1] != self.depth:
            raise ValueError(f"expected {self.depth} codes a position, got indices {tuple(indices.shape)}")
        if indices.numel() and not 0 <= indices.min() <= indices.max() < self.codebook_size:
            found = f"{indices.min()} to {indices.max()}"
            raise ValueError(f"expected indices below {self.codebook_size}, got {found}; are they of another model?")
        with torch.autocast(indices.device.type, enabled=False):
            return self.embed(indices)

    def draw(self, z: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """int64 indices (B, ..., depth) of codes drawn at random for z (B, ..., D), each image's by its seed."""
        with torch.autocast(z.device.type, enabled=False):
            return self.pick(self.bound(z.float()), seeds)

    def shared(self, calls: int) -> None:
        """Be told that another quantizer asks this one `calls` times for every position."""
        self.calls *= calls

    def start(self, vectors: torch.Tensor, random: torch.Generator) -> None:
        """Begin at the data, vectors (M, D), the same on every process. Here: stay where chance has put the codes."""

    def settle(self, batches: Callable[[], Iterable[torch.Tensor]]) -> None:
        """Re-estimate what is `settled` from batches of vectors (M, D). Here: all is averaged with the network."""

    def note(self, indices: torch.Tensor) -> None:
        """Remember a training batch's indices (..., depth) for `update`."""
        self._noted.append(indices.flatten())

    def discard(self) -> None:
        """Forget what was gathered since the last `update`."""
        self._noted.clear()

    def update(self, step: int, seed: int) -> dict[str, torch.Tensor]:
        """Once for each optimizer step with finite gradients, with the sums of all processes. Here: nothing moves.

        Returns:
            perplexity: of the global batch's codes.
        """
        indices = torch.cat(self._noted)
        self._noted.clear()
        return {"perplexity": perplexity(used_counts(indices, self.codebook_size))}
