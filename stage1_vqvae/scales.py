"""Scales: one feature map, quantized at growing grids, each of which codes what the coarser ones left over.

Source: Tian et al. 2024, "Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction",
algorithms 1 and 2, and the released code of its quantizer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from stage1_vqvae.networks.base import Network
from stage1_vqvae.quantizers.noise import derived, uniforms
from stage1_vqvae.quantizers.output import QuantizerOutput, planes


class Scales(Network):
    """A network of one level as one of several levels, its scales.

    A scale's z is the mean, over each cell of its grid, of what is left of the feature map. Its codes are brought up to
    the feature map's grid by bicubic interpolation, pass through a convolution, and are taken off what is left. The
    decoder receives the sum of what all scales brought up. A scale that is left out is zeros, which bring up nothing,
    since the convolutions have no bias. The first scales alone therefore make a coarser image.

    A convolution is (1 - strength) times the identity, plus `strength` times 3x3 weights. Neighbouring scales share
    one. Here the weights begin as the identity too, so that codes which begin at the data are decoded at their place.

    In training, the commitment is on the sum up to each scale, in place of each scale's own: `commitment_cost` times
    mean((f − sg(sum))²), where sg stops the gradient, and mean((sg(f) − sum)²), which trains the convolutions, as the
    reconstruction does. Both, and the quantizers' further losses, are means over scales. Codes are trained at their own
    scale, by what their quantizer has for it. The estimator of each scale's quantizer passes the gradient on, through
    what was taken off too; if quantizing changed nothing, this is the gradient of the sum.

    Args:
        network: of one level.
        dim: D, the width of z.
        commitment_cost: weight of the commitment.
        grids: the (height, width) of each scale, coarsest first; the last is the network's.
        convolutions: their number; no more than scales are made.
        strength: see above.
        dropout: the chance that an image of a training batch is decoded from its first few scales alone.
    """

    def __init__(
        self,
        network: Network,
        dim: int,
        commitment_cost: float,
        *,
        grids: list[list[int]],
        convolutions: int,
        strength: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.network, self.grids = network, [tuple(grid) for grid in grids]
        self.commitment_cost, self.strength, self.dropout = commitment_cost, strength, dropout
        self.stochastic = dropout > 0
        self.convolutions = nn.ModuleList(
            nn.Conv2d(dim, dim, 3, padding=1, bias=False) for _ in range(min(convolutions, len(grids)))
        )
        for convolution in self.convolutions:
            nn.init.dirac_(convolution.weight)

    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The feature map (B, D, h, w) of the finest grid, once for each scale."""
        (feature,) = self.network.encode(images)
        return [self.network.latent(0, feature, None)] * len(self.grids)

    def latent(self, level: int, feature: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        """What the coarser scales left, as means over the cells of a scale's grid, float32 (B, D, h, w)."""
        with torch.autocast(feature.device.type, enabled=False):
            left = feature.float() if context is None else feature.float() - context
            return F.adaptive_avg_pool2d(left, self.grids[level])

    def context(self, level: int, z_q: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        """The sum of what the scales up to this one bring up, float32 (B, D, h, w) of the finest grid."""
        with torch.autocast(z_q.device.type, enabled=False):
            brought = self.brought_up(level, z_q.float())
            return brought if context is None else context + brought

    def brought_up(self, level: int, z_q: torch.Tensor) -> torch.Tensor:
        """What a scale's z_q (B, D, h, w) adds to the sum, (B, D, h, w) of the finest grid."""
        if self.grids[level] != self.grids[-1]:
            z_q = F.interpolate(z_q, self.grids[-1], mode="bicubic", align_corners=False)
        convolution = self.convolutions[level * len(self.convolutions) // len(self.grids)]
        return (1 - self.strength) * z_q + self.strength * convolution(z_q)

    @property
    def last_layer(self) -> nn.Module:
        return self.network.last_layer

    def decode(self, quantized: list[torch.Tensor]) -> torch.Tensor:
        total = None
        for level, z_q in enumerate(quantized):
            total = self.context(level, z_q, total)
        return self.network.decode([total])

    def left_out(self, z_q: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(z_q)

    def shown_with(self, level: int) -> list[int]:
        """The scales up to this one."""
        return list(range(level + 1))

    def trained_by(
        self, features: list[torch.Tensor], outputs: list[QuantizerOutput], seeds: torch.Tensor | None
    ) -> list[QuantizerOutput]:
        """The outputs with the commitment on the sums in their losses; dropped scales of an image have z_q of zeros."""
        with torch.autocast(features[0].device.type, enabled=False):
            feature, total, found = features[0].float(), None, []
            kept = self._kept(len(feature), seeds, feature.device)
            for level, output in enumerate(outputs):
                total = self.context(level, planes(output.z_q.detach()), total)
                commitment = self.commitment_cost * F.mse_loss(feature, total.detach())
                loss = (output.loss + commitment + F.mse_loss(total, feature.detach())) / len(outputs)
                z_q = output.z_q if kept is None else output.z_q * (level < kept)[:, None, None, None]
                found.append(output._replace(loss=loss, z_q=z_q))
        return found

    def _kept(self, images: int, seeds: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
        """How many scales of each image are decoded, int64 (B,), all or any smaller number; None: all of all images."""
        if not self.dropout or len(self.grids) == 1:
            return None
        drawn = uniforms((images, 2), derived(seeds, len(self.grids)), device)
        some = 1 + (drawn[:, 1] * (len(self.grids) - 1)).long()
        return torch.where(drawn[:, 0] < self.dropout, some, len(self.grids))
