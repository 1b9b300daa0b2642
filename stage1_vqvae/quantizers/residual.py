"""Residual quantization: each code stands for what the codes before it left over.

Source: Lee et al. 2022, "Autoregressive Image Generation using Residual Quantization", section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn

from stage1_vqvae.quantizers.base import Quantizer
from stage1_vqvae.quantizers.noise import derived
from stage1_vqvae.quantizers.output import QuantizerOutput
from stage1_vqvae.quantizers.sections import WrapperParams, inner
from tessera.parameters.sections import Misfit, Positive
from tessera.randomness import seed_of

REFUSED = {
    "residual": "a residual inside a residual is the same as one with more depths; raise depth instead",
    "grouped": "put the residual inside the groups: set name to grouped, and grouped.quantizer.name to residual",
}
Inner = inner(REFUSED)


class Parameters(WrapperParams):
    """The section `residual` of params.yaml."""

    depth: Positive
    share_codebook: bool
    quantizer: Inner

    def fits_together(self) -> None:
        super().fits_together()
        if reason := self.quantizer.chosen.no_residual:
            raise Misfit(f"a residual cannot have quantizer {self.quantizer.name}: {reason}")


class ResidualQuantizer(Quantizer):
    """Quantizes z (..., D), then the residual z minus the code, then the residual of that, and so on.

    The indices are (..., depth), and z_q (..., D) is the sum of the `depth` codes. Depths are counted from 0.

    Where the inner quantizer has a `residual_scale` s below 1, the residuals shrink by about s from depth to depth. So
    at depth d it gets the residual divided by s^d, its code is multiplied by s^d, and its loss by s^(2d). A squared
    error thus counts in z's own units, and the entropy terms of finer depths pull no harder on z than those of coarser
    depths. The loss is the mean of the depths' losses. With vector quantizers it is the commitment loss of the paper's
    own implementation: the mean over depths of |z − partial sum|². The paper's equation has the sum.

    The gradient estimator of the inner quantizers is applied once, to z and the sum. If each depth applied it, z would
    receive the decoder's gradient `depth` times.

    Args:
        make: a function that builds the quantizer of one depth. It is called with `inside_residual=True`, and passes
            the argument on to the quantizer's class, which then applies no estimator (see `Quantizer`).
        depth: the number of codes for each position.
        share_codebook: True: one quantizer is used at all depths. False: each depth has its own.
    """

    def __init__(self, make: Callable[..., Quantizer], *, depth: int, share_codebook: bool) -> None:
        layers = [make(inside_residual=True) for _ in range(1 if share_codebook else depth)]
        first = layers[0]
        super().__init__(first.codebook_size)
        self.layers, self.depth = nn.ModuleList(layers), depth
        self.dim, self.code_dim, self.estimator = first.dim, first.code_dim, first.estimator
        self.stochastic, self.can_draw = first.stochastic, first.can_draw
        if share_codebook:
            first.expect_calls(depth)

    def _layer(self, depth: int) -> tuple[Quantizer, torch.Tensor | float]:
        """The quantizer of a depth, and its scale: the depth's residuals divided by it are the quantizer's targets."""
        layer = self.layers[depth % len(self.layers)]
        return layer, layer.residual_scale**depth

    def to_target(self, z: torch.Tensor) -> torch.Tensor:
        return self.layers[0].to_target(z)

    def quantize(self, target: torch.Tensor, seeds: torch.Tensor | None = None) -> QuantizerOutput:
        """Finds the codes of each target (..., D), depth by depth."""
        rest, losses, indices = target, [], []
        # The sum starts at the number 0, as in `embed`. Adding to a tensor of zeros could give another memory layout,
        # and the decoder would round differently.
        total: torch.Tensor | float = 0.0
        for depth in range(self.depth):
            layer, scale = self._layer(depth)
            output = layer.quantize(rest / scale, derived(seeds, depth))
            total = total + output.z_q * scale
            rest = rest - output.code * scale
            losses.append((output.loss * scale**2).mean())
            indices.append(output.indices)
        z_q, loss = self.apply_estimator(target, total, seeds), torch.stack(losses).mean()
        return QuantizerOutput(z_q, torch.cat(indices, -1), loss, target.detach(), total.detach())

    def draw_indices(self, target: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """Draws for each target a code of every depth, each for what the codes before it left over: (B, ..., depth)."""
        rest, indices = target, []
        for depth in range(self.depth):
            layer, scale = self._layer(depth)
            indices.append(layer.draw_indices(rest / scale, derived(seeds, depth)))
            rest = rest - layer.embed(indices[-1]) * scale
        return torch.cat(indices, -1)

    def embed(self, indices: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor | float = 0.0
        for depth in range(self.depth):
            layer, scale = self._layer(depth)
            total = total + layer.embed(indices[..., depth : depth + 1]) * scale
        return total

    def _targets(self, vectors: torch.Tensor, depths: int) -> Iterator[torch.Tensor]:
        """Yields the targets (M, D) that the quantizers of the first `depths` depths get for z (M, D)."""
        rest = self.to_target(vectors.float())
        for depth in range(depths):
            layer, scale = self._layer(depth)
            yield rest / scale
            if depth + 1 < depths:
                rest = rest - layer.quantize(rest / scale).code * scale

    def initialise_from_data(self, vectors: Callable[[], torch.Tensor], random: torch.Generator) -> None:
        """Initialises each depth from the residuals that the initialised depths before it leave.

        A shared quantizer is first initialised from z. With these codes the residuals of all depths are computed, and
        it is initialised again from all of them.
        """
        if len(self.layers) < self.depth:
            self.layers[0].initialise_from_data(vectors, random)
            self.layers[0].initialise_from_data(lambda: torch.cat(list(self._targets(vectors(), self.depth))), random)
            return
        for depth, layer in enumerate(self.layers):
            layer.initialise_from_data(lambda depth=depth: list(self._targets(vectors(), depth + 1))[-1], random)

    def re_estimate(self, batches: Callable[[], Iterable[torch.Tensor]]) -> None:
        """Re-estimates each depth with the residuals that the re-estimated depths before it leave.

        A shared quantizer is re-estimated once, with the residuals of all depths.
        """
        if len(self.layers) < self.depth:
            self.layers[0].re_estimate(lambda: (rest for v in batches() for rest in list(self._targets(v, self.depth))))
            return
        for depth, layer in enumerate(self.layers):
            layer.re_estimate(lambda depth=depth: (list(self._targets(v, depth + 1))[-1] for v in batches()))

    def expect_calls(self, times: int) -> None:
        for layer in self.layers:
            layer.expect_calls(times)

    def discard(self) -> None:
        for layer in self.layers:
            layer.discard()

    def update(self, step: int, seed: int) -> dict[str, torch.Tensor]:
        """Updates every depth's quantizer. Each figure that is returned is the mean over the quantizers."""
        found = [layer.update(step, seed_of("depth", seed, depth)) for depth, layer in enumerate(self.layers)]
        return {name: torch.stack([figures[name] for figures in found]).mean() for name in found[0]}
