"""Grouped (product) quantization: z is cut into groups of channels, and each group has codes of its own.

Sources: van den Oord et al. 2017, "Neural Discrete Representation Learning", section 4 (ten codes a position); Jégou et
al. 2011, "Product Quantization for Nearest Neighbor Search".
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

REFUSED = {"grouped": "groups inside groups are the same as more groups; raise groups instead"}
Inner = inner(REFUSED)


class Parameters(WrapperParams):
    """The section `grouped` of params.yaml."""

    groups: Positive
    share_codebook: bool
    quantizer: Inner


class GroupedQuantizer(Quantizer):
    """Quantizes groups of channels side by side. The loss is the mean of the groups' losses.

    Args:
        make: a function that builds the quantizer of one group.
        groups: the number of groups. z has `groups` times the width of one quantizer.
        share_codebook: True: one quantizer serves all groups. False: each group has its own.
    """

    def __init__(self, make: Callable[[], Quantizer], *, groups: int, share_codebook: bool) -> None:
        parts = [make() for _ in range(1 if share_codebook else groups)]
        first = parts[0]
        super().__init__(first.codebook_size)
        self.parts, self.groups, self.depth = nn.ModuleList(parts), groups, groups * first.depth
        self.dim = groups * first.dim
        self.code_dim = None if first.code_dim is None else groups * first.code_dim
        self.stochastic, self.can_draw = first.stochastic, first.can_draw
        if share_codebook:
            first.expect_calls(groups)

    def _parts(self) -> list[Quantizer]:
        """One quantizer for each group, in order. With a shared codebook it is the same object `groups` times."""
        return [self.parts[group % len(self.parts)] for group in range(self.groups)]

    def _seeds(self, seeds: torch.Tensor | None) -> list[torch.Tensor | None]:
        """The random seeds (B,) of each group."""
        return [derived(seeds, group) for group in range(self.groups)]

    def quantize(self, target: torch.Tensor, seeds: torch.Tensor | None = None) -> QuantizerOutput:
        """Cuts each target (..., D) into groups of channels and quantizes each group by itself.

        Each group has its own quantizer, or all groups have the same one if they share a codebook.

        Returns:
            z_q (..., D), indices (..., groups · depth of one quantizer), targets and codes of the groups, joined along
            the last dimension in the order of the groups. Targets and codes are None where the quantizers have none.
            The loss is the mean of the groups' losses.
        """
        cut = target.chunk(self.groups, -1)
        found = [part(x, s) for part, x, s in zip(self._parts(), cut, self._seeds(seeds), strict=True)]
        loss = torch.stack([output.loss for output in found]).mean()
        z_q, indices = (torch.cat([output[i] for output in found], -1) for i in (0, 1))
        if self.code_dim is None:
            return QuantizerOutput(z_q, indices, loss, None, None)
        target, code = (torch.cat([output[i] for output in found], -1) for i in (3, 4))
        return QuantizerOutput(z_q, indices, loss, target, code)

    def draw_indices(self, target: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """Draws codes for z (B, ..., D), in each group independently."""
        cut = target.chunk(self.groups, -1)
        return torch.cat([p.draw(x, s) for p, x, s in zip(self._parts(), cut, self._seeds(seeds), strict=True)], -1)

    def embed(self, indices: torch.Tensor) -> torch.Tensor:
        cut = indices.chunk(self.groups, -1)
        return torch.cat([part.embed(i) for part, i in zip(self._parts(), cut, strict=True)], -1)

    def _vectors_of(self, part: int, vectors: torch.Tensor) -> torch.Tensor:
        """The vectors that one of the quantizers in `parts` quantizes.

        Args:
            part: the quantizer's index in `parts`; 0 if the codebook is shared.
            vectors: z (M, D), with the channels of all groups.

        Returns:
            (M, d), the channels of the quantizer's group, d = D / groups. If the codebook is shared: (groups · M, d),
            first the channels of the first group of all vectors, then those of the second, and so on.
        """
        cut = vectors.chunk(self.groups, -1)
        return torch.cat(cut if len(self.parts) < self.groups else cut[part : part + 1])

    def initialise_from_data(self, vectors: Callable[[], torch.Tensor], random: torch.Generator) -> None:
        for i, part in enumerate(self.parts):
            part.initialise_from_data(lambda i=i: self._vectors_of(i, vectors()), random)

    def re_estimate(self, batches: Callable[[], Iterable[torch.Tensor]]) -> None:
        for i, part in enumerate(self.parts):
            part.re_estimate(lambda i=i: (self._vectors_of(i, vectors) for vectors in batches()))

    def expect_calls(self, times: int) -> None:
        for part in self.parts:
            part.expect_calls(times)

    def discard(self) -> None:
        for part in self.parts:
            part.discard()

    def update(self, step: int, seed: int) -> dict[str, torch.Tensor]:
        """Updates the quantizer of every group, each with its own seed. Each figure is the mean over the groups."""
        found = [part.update(step, seed_of("group", seed, group)) for group, part in enumerate(self.parts)]
        return {name: torch.stack([figures[name] for figures in found]).mean() for name in found[0]}
