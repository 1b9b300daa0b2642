"""Grouped (product) quantization: z is cut into groups of channels, each with codes of its own.

Sources: van den Oord et al. 2017, section 4 (ten codes a position); Jégou et al. 2011, "Product Quantization".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from stage1_vqvae.quantizers.base import Quantizer
from stage1_vqvae.quantizers.noise import derived
from stage1_vqvae.quantizers.output import QuantizerOutput
from stage1_vqvae.quantizers.sections import WrapperParams, inner
from tessera.parameters.sections import Positive
from tessera.randomness import seed_of

REFUSED = {"grouped": "groups of groups are more groups; raise groups"}
Inner = inner(REFUSED)


class Parameters(WrapperParams):
    """Parameters of `grouped`."""

    groups: Positive
    share_codebook: bool
    quantizer: Inner


class GroupedQuantizer(Quantizer):
    """`groups` quantizers side by side, or one for all groups (`share_codebook`); the loss is the mean of theirs."""

    def __init__(self, make: Callable[[], Quantizer], *, groups: int, share_codebook: bool) -> None:
        """`make` builds a quantizer as wide as a group."""
        parts = [make() for _ in range(1 if share_codebook else groups)]
        first = parts[0]
        super().__init__(first.codebook_size)
        self.parts, self.groups, self.depth = nn.ModuleList(parts), groups, groups * first.depth
        self.dim = groups * first.dim
        self.code_dim = None if first.code_dim is None else groups * first.code_dim
        self.stochastic, self.draws, self.at_data = first.stochastic, first.draws, first.at_data
        if share_codebook:
            first.shared(groups)

    def _parts(self) -> list[Quantizer]:
        """The quantizer of each group."""
        return [self.parts[group % len(self.parts)] for group in range(self.groups)]

    def _seeds(self, seeds: torch.Tensor | None) -> list[torch.Tensor | None]:
        return [derived(seeds, group) for group in range(self.groups)]

    def quantize(self, target: torch.Tensor, seeds: torch.Tensor | None = None) -> QuantizerOutput:
        """Each group by its own quantizer, which also bounds it."""
        cut = target.chunk(self.groups, -1)
        found = [part(x, s) for part, x, s in zip(self._parts(), cut, self._seeds(seeds), strict=True)]
        loss = torch.stack([output.loss for output in found]).mean()
        z_q, indices = (torch.cat([output[i] for output in found], -1) for i in (0, 1))
        if self.code_dim is None:
            return QuantizerOutput(z_q, indices, loss, None, None)
        target, code = (torch.cat([output[i] for output in found], -1) for i in (3, 4))
        return QuantizerOutput(z_q, indices, loss, target, code)

    def pick(self, target: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """Drawn in each group by itself."""
        cut = target.chunk(self.groups, -1)
        return torch.cat([p.draw(x, s) for p, x, s in zip(self._parts(), cut, self._seeds(seeds), strict=True)], -1)

    def embed(self, indices: torch.Tensor) -> torch.Tensor:
        cut = indices.chunk(self.groups, -1)
        return torch.cat([part.embed(i) for part, i in zip(self._parts(), cut, strict=True)], -1)

    def _cut(self, vectors: torch.Tensor) -> list[list[torch.Tensor]]:
        """What each quantizer is given of vectors (M, D): its group, or all groups of a shared one."""
        cut = list(vectors.chunk(self.groups, -1))
        return [cut] if len(self.parts) < self.groups else [[x] for x in cut]

    def start(self, vectors: torch.Tensor, random: torch.Generator) -> None:
        for part, own in zip(self.parts, self._cut(vectors), strict=True):
            part.start(torch.cat(own), random)

    def settle(self, batches: Callable[[], Iterable[torch.Tensor]]) -> None:
        for i, part in enumerate(self.parts):
            part.settle(lambda i=i: (torch.cat(self._cut(vectors)[i]) for vectors in batches()))

    def shared(self, calls: int) -> None:
        for part in self.parts:
            part.shared(calls)

    def discard(self) -> None:
        for part in self.parts:
            part.discard()

    def update(self, step: int, seed: int) -> dict[str, torch.Tensor]:
        """Every quantizer's; the means of what they report."""
        found = [part.update(step, seed_of("group", seed, group)) for group, part in enumerate(self.parts)]
        return {name: torch.stack([figures[name] for figures in found]).mean() for name in found[0]}
