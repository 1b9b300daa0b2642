"""Residual quantization: each code stands for what the codes before it left over.

Source: Lee et al. 2022, "Autoregressive Image Generation using Residual Quantization", section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from stage1_vqvae.quantizers.base import Quantizer
from stage1_vqvae.quantizers.gradients import Estimator
from stage1_vqvae.quantizers.noise import derived
from stage1_vqvae.quantizers.output import QuantizerOutput
from stage1_vqvae.quantizers.sections import WrapperParams, inner
from tessera.parameters.sections import Misfit, Positive
from tessera.randomness import seed_of

REFUSED = {
    "residual": "a residual of residuals is one of more depths; raise depth",
    "grouped": "put the residual inside the groups: name grouped, and grouped.quantizer.name residual",
}
Inner = inner(REFUSED)


class Parameters(WrapperParams):
    """Parameters of `residual`."""

    depth: Positive
    share_codebook: bool
    quantizer: Inner

    def fits_together(self) -> None:
        super().fits_together()
        if reason := self.quantizer.chosen.no_residual:
            raise Misfit(f"a residual cannot have quantizer {self.quantizer.name}: {reason}")


class ResidualQuantizer(Quantizer):
    """`depth` codes a position, whose sum is z_q; one quantizer a depth, or one for all (`share_codebook`).

    The loss is the mean of the quantizers' own. With vector quantizers that is the commitment as the source's code has
    it, the mean over depths of |z − partial sum|². Where finer depths have a smaller scale, their losses are weighed by
    its square: a squared error is so in z's own units, and no finer depth's entropy pulls on z harder. The gradient
    estimator is theirs, applied once, to z and the whole sum: applied at every depth, the gradient would reach z
    `depth` times.
    """

    def __init__(self, make: Callable[[], Quantizer], *, depth: int, share_codebook: bool) -> None:
        """`make` builds a quantizer with a `residual_scale` and an `estimator`."""
        layers = [make() for _ in range(1 if share_codebook else depth)]
        first = layers[0]
        super().__init__(first.codebook_size)
        self.layers, self.depth = nn.ModuleList(layers), depth
        self.dim, self.code_dim, self.draws = first.dim, first.code_dim, first.draws
        self.stochastic, self.estimator, self.at_data = first.stochastic, first.estimator, first.at_data
        if share_codebook:
            first.shared(depth)
        for layer in layers:
            layer.estimator = Estimator("none")

    @staticmethod
    def inside(family: type[Quantizer]) -> dict[str, Any]:
        return family.residual_arguments

    def _layer(self, depth: int) -> tuple[Quantizer, torch.Tensor | float]:
        """The quantizer of a depth, and how much smaller than z its vectors are."""
        layer = self.layers[depth % len(self.layers)]
        return layer, layer.residual_scale**depth

    def bound(self, z: torch.Tensor) -> torch.Tensor:
        return self.layers[0].bound(z)

    def quantize(self, target: torch.Tensor, seeds: torch.Tensor | None = None) -> QuantizerOutput:
        """The codes of each target (..., D), from the coarsest to the finest."""
        rest, losses, indices = target, [], []
        total: torch.Tensor | float = 0.0  # as in `lookup`: in another memory layout the decoder would round otherwise
        for depth in range(self.depth):
            layer, scale = self._layer(depth)
            output = layer.quantize(rest / scale, derived(seeds, depth))
            total = total + output.z_q * scale
            rest = rest - output.code * scale
            losses.append((output.loss * scale**2).mean())
            indices.append(output.indices)
        z_q = self.estimator(target, total, seeds) if self.training else total
        loss, code = torch.stack(losses).mean(), total.detach()
        return QuantizerOutput(z_q, torch.cat(indices, -1), loss, target.detach(), code)

    def pick(self, target: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """Codes drawn one after the other, each for what the drawn ones before it left."""
        rest, indices = target, []
        for depth in range(self.depth):
            layer, scale = self._layer(depth)
            indices.append(layer.pick(rest / scale, derived(seeds, depth)))
            rest = rest - layer.embed(indices[-1]) * scale
        return torch.cat(indices, -1)

    def embed(self, indices: torch.Tensor) -> torch.Tensor:
        """The sum of the codes."""
        total: torch.Tensor | float = 0.0
        for depth in range(self.depth):
            layer, scale = self._layer(depth)
            total = total + layer.embed(indices[..., depth : depth + 1]) * scale
        return total

    def _rests(self, vectors: torch.Tensor, count: int) -> Iterator[torch.Tensor]:
        """What each of the first `count` depths is given of vectors (M, D), as its quantizer sees it."""
        rest = self.bound(vectors.float())
        for depth in range(count):
            layer, scale = self._layer(depth)
            yield rest / scale
            if depth + 1 < count:
                rest = rest - layer.quantize(rest / scale).code * scale

    def start(self, vectors: torch.Tensor, random: torch.Generator) -> None:
        """Each depth begins at what those before it leave of vectors (M, D); a shared codebook at all of that."""
        if len(self.layers) < self.depth:
            self.layers[0].start(vectors, random)
            self.layers[0].start(torch.cat(list(self._rests(vectors, self.depth))), random)
            return
        for depth, layer in enumerate(self.layers):
            *_, rest = self._rests(vectors, depth + 1)
            layer.start(rest, random)

    def settle(self, batches: Callable[[], Iterable[torch.Tensor]]) -> None:
        """One pass over the batches a quantizer, each after those before it have settled."""
        if len(self.layers) < self.depth:
            self.layers[0].settle(lambda: (rest for v in batches() for rest in list(self._rests(v, self.depth))))
            return
        for depth, layer in enumerate(self.layers):
            layer.settle(lambda depth=depth: (list(self._rests(v, depth + 1))[-1] for v in batches()))

    def shared(self, calls: int) -> None:
        for layer in self.layers:
            layer.shared(calls)

    def discard(self) -> None:
        for layer in self.layers:
            layer.discard()

    def update(self, step: int, seed: int) -> dict[str, torch.Tensor]:
        """Every quantizer's; the means of what they report."""
        found = [layer.update(step, seed_of("depth", seed, depth)) for depth, layer in enumerate(self.layers)]
        return {name: torch.stack([figures[name] for figures in found]).mean() for name in found[0]}
