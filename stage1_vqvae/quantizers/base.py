"""The base class of all quantizers. docs/architecture.md lists what a quantizer must and may define."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from stage1_vqvae.quantizers.gradients import Estimator, straight_through
from stage1_vqvae.quantizers.output import QuantizerOutput, perplexity, used_counts


class Quantizer(nn.Module):
    """Turns vectors into codes and codes into vectors, in float32 under any autocast.

    This class checks what comes in and offers defaults. A subclass sets `dim` and `code_dim`, and defines `quantize`
    and `embed`. It overrides the other methods where the defaults do not suit it.

    Attributes:
        dim: D, the width of z and of z_q.
        code_dim: the width of the vectors that are compared with the codes; None if codes do not approximate vectors.
        codebook_size: K, the number of different indices.
        depth: the number of indices for each position.
        stochastic: whether `forward` draws random numbers in training.
        can_draw: whether `draw` works.
        whole_batch: whether the loss is of the batch as a whole, and no mean over its vectors.
        re_estimated: names of the subclass's own parameters that `re_estimate` computes. No weight average includes
            them.
        inside_residual: whether a residual quantizer owns this one. Then the owner applies `estimator`, once for all
            depths, and this quantizer does not.
        estimator: the gradient estimator, where the quantizer has one.
        residual_scale: the size of what a code leaves over, relative to its target; one number, or one per channel. A
            residual quantizer divides by it, so that the targets of all depths are equally large.
    """

    dim: int
    code_dim: int | None
    depth = 1
    stochastic = False
    can_draw = False
    whole_batch = False
    re_estimated: tuple[str, ...] = ()
    estimator: Estimator
    residual_scale: float | torch.Tensor = 1.0

    def __init__(self, codebook_size: int, *, inside_residual: bool = False) -> None:
        super().__init__()
        self.codebook_size, self.inside_residual = codebook_size, inside_residual
        self._noted: list[torch.Tensor] = []

    def forward(self, z: torch.Tensor, seeds: torch.Tensor | None = None) -> QuantizerOutput:
        """Quantizes vectors. In training it also gathers what `update` needs; it moves no codebook.

        In evaluation z_q is the code's own, and its gradient still reaches z: `stage1_vqvae.refined_codes` needs it.

        Args:
            z: float (..., D), or (B, ..., D) where `seeds` are given.
            seeds: int64 (B,), random seeds, one per image. None uses torch's global generator.

        Raises:
            ValueError: the vectors have another width than `dim`.
        """
        if z.shape[-1] != self.dim:
            raise ValueError(f"expected vectors of width {self.dim}, got shape {tuple(z.shape)}")
        with torch.autocast(z.device.type, enabled=False):
            return self.quantize(self.to_target(z.float()), seeds)

    def lookup(self, indices: torch.Tensor) -> torch.Tensor:
        """Turns indices into z_q. In evaluation the result equals the z_q of `forward` bit for bit.

        Args:
            indices: int64 (..., depth).

        Returns:
            float32 (..., D).

        Raises:
            ValueError: the last dimension is not `depth`, or an index is not in 0 to codebook_size - 1.
        """
        if indices.shape[-1] != self.depth:
            raise ValueError(
                f"expected {self.depth} codes for each position, got indices of shape {tuple(indices.shape)}"
            )
        if indices.numel() and not 0 <= indices.min() <= indices.max() < self.codebook_size:
            found = f"{indices.min()} to {indices.max()}"
            raise ValueError(f"expected indices below {self.codebook_size}, got {found}; are they from another model?")
        with torch.autocast(indices.device.type, enabled=False):
            return self.embed(indices)

    def draw(self, z: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """Draws codes at random instead of taking the best ones. Only a quantizer with `can_draw` offers it.

        Args:
            z: float (B, ..., D).
            seeds: int64 (B,), random seeds, one per image.

        Returns:
            int64 indices (B, ..., depth).
        """
        with torch.autocast(z.device.type, enabled=False):
            return self.draw_indices(self.to_target(z.float()), seeds)

    def to_target(self, z: torch.Tensor) -> torch.Tensor:
        """Maps z, float32 (..., D), to the vectors (..., code_dim) that are compared with codes. By default: itself."""
        return z

    def quantize(self, target: torch.Tensor, seeds: torch.Tensor | None = None) -> QuantizerOutput:
        """Finds the code of each target, float32 (..., code_dim). `forward` has checked the shape and set float32."""
        raise NotImplementedError

    def embed(self, indices: torch.Tensor) -> torch.Tensor:
        """Turns int64 indices (..., depth), which `lookup` has checked, into z_q, float32 (..., D)."""
        raise NotImplementedError

    def draw_indices(self, target: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """Draws an index of every depth for each target, int64 (B, ..., depth). Defined where `can_draw` is True.

        Args:
            target: float32 (B, ..., code_dim).
            seeds: int64 (B,), one for each image.
        """
        raise NotImplementedError

    def apply_estimator(
        self, target: torch.Tensor, code: torch.Tensor, seeds: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Applies the gradient estimator to a target and its code, both float32 (..., code_dim).

        Returns:
            float32 (..., code_dim). In evaluation it is the code itself, whose gradient passes straight to the target.
            Inside a residual quantizer it is the code, without a gradient for the target.
        """
        if self.inside_residual:
            return code
        return self.estimator(target, code, seeds) if self.training else straight_through(target, code)

    def expect_calls(self, times: int) -> None:
        """Announces that an owner calls this quantizer `times` times in each of its own forward passes.

        The owner is another quantizer, or a model whose levels share this quantizer. The default ignores the number:
        it matters only to a quantizer for which the order of the gathered vectors counts.
        """

    def initialise_from_data(self, vectors: Callable[[], torch.Tensor], random: torch.Generator) -> None:
        """Moves the codes to the data before training. By default they stay where the constructor put them.

        Args:
            vectors: a function that returns z, float (M, D), the same on every process. It is expensive at its first
                call. A quantizer that does not look at the data does not call it.
            random: a generator in the same state on every process.
        """

    def re_estimate(self, batches: Callable[[], Iterable[torch.Tensor]]) -> None:
        """Computes new values of the parameters that `re_estimated` names, for the model with averaged weights.

        It is called before each validation, while the model holds the averaged weights. A quantizer that names no
        parameters keeps this default, which does nothing.

        Args:
            batches: a function that returns what the averaged encoder makes of training images, in batches: the vectors
                that the quantizer will quantize, float (M, D). M may differ from batch to batch. The method may call it
                several times; each call returns the same batches.
        """

    def note(self, indices: torch.Tensor) -> None:
        """Remembers the indices of a training batch, int64 of any shape. `update` reports their perplexity."""
        self._noted.append(indices.flatten())

    def discard(self) -> None:
        """Forgets everything gathered since the last `update`."""
        self._noted.clear()

    def update(self, step: int, seed: int) -> dict[str, torch.Tensor]:
        """Moves the codebook after an optimizer step with finite gradients; the result is equal on all processes.

        By default nothing moves.

        Args:
            step: the number of the optimizer step, from 0.
            seed: the random seed of this quantizer.

        Returns:
            figures by name, each a scalar. `perplexity` is that of the codes of the global batch.
        """
        indices = torch.cat(self._noted)
        self._noted.clear()
        return {"perplexity": perplexity(used_counts(indices, self.codebook_size))}
