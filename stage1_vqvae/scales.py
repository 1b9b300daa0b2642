"""Scales: one feature map, quantized at growing grids, each of which codes what the coarser ones left over.

Source: Tian et al. 2024, "Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction",
algorithms 1 and 2, and the released code of its quantizer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input, conv2d_weight

from stage1_vqvae.networks.base import Network
from stage1_vqvae.quantizers.noise import derived, uniforms
from stage1_vqvae.quantizers.output import QuantizerOutput, planes


class Sums(NamedTuple):
    """What the scales up to one bring up, float32 (B, D, h, w) of the finest grid.

    Attributes:
        total: the sum.
        of_weights: the same values. In training, they have a gradient for the convolutions alone, and none for z_q.
    """

    total: torch.Tensor
    of_weights: torch.Tensor


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
        for level, (height, width) in enumerate(self.grids):
            self.register_buffer(f"rows_{level}", bicubic(height, self.grids[-1][0]), persistent=False)
            self.register_buffer(f"columns_{level}", bicubic(width, self.grids[-1][1]), persistent=False)

    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The feature map (B, D, h, w) of the finest grid, once for each scale."""
        (feature,) = self.network.encode(images)
        return [self.network.latent(0, feature, None)] * len(self.grids)

    def latent(self, level: int, feature: torch.Tensor, context: Sums | None) -> torch.Tensor:
        """What the coarser scales left, as means over the cells of a scale's grid, float32 (B, D, h, w)."""
        with torch.autocast(feature.device.type, enabled=False):
            left = feature.float() if context is None else feature.float() - context.total
            return F.adaptive_avg_pool2d(left, self.grids[level])

    def context(self, level: int, z_q: torch.Tensor, context: Sums | None) -> Sums:
        """The sum of what the scales up to this one bring up."""
        with torch.autocast(z_q.device.type, enabled=False):
            weight = self.convolutions[level * len(self.convolutions) // len(self.grids)].weight
            enlarged = self._enlarged(level, z_q.float())
            if self.training:
                brought = Sums(*_Convolved.apply(enlarged, weight, self.strength))
                return brought if context is None else Sums(*map(torch.add, context, brought))
            total = convolved(enlarged, weight, self.strength)
            total = total if context is None else context.total + total
            return Sums(total, total)

    def _enlarged(self, level: int, z_q: torch.Tensor) -> torch.Tensor:
        """z_q (B, D, h, w) of a scale on the finest grid, by bicubic interpolation."""
        if self.grids[level] == self.grids[-1]:
            return z_q
        rows, columns = getattr(self, f"rows_{level}"), getattr(self, f"columns_{level}")
        stored = rows @ z_q.permute(0, 2, 3, 1).flatten(2)  # channels come last in memory
        return (columns @ stored.unflatten(2, (-1, z_q.shape[1]))).permute(0, 3, 1, 2)

    @property
    def last_layer(self) -> nn.Module:
        return self.network.last_layer

    def decoder_inputs(self, quantized: list[torch.Tensor]) -> list[torch.Tensor]:
        """The sum of what all scales bring up, float32 (B, D, h, w) of the finest grid."""
        sums = None
        for level, z_q in enumerate(quantized):
            sums = self.context(level, z_q, sums)
        return [sums.total]

    def decode(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        return self.network.decode(inputs)

    def left_out(self, z_q: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(z_q)

    def shown_with(self, level: int) -> list[int]:
        """The scales up to this one."""
        return list(range(level + 1))

    def trained_by(
        self,
        features: list[torch.Tensor],
        outputs: list[QuantizerOutput],
        contexts: list[Any],
        seeds: torch.Tensor | None,
    ) -> tuple[list[QuantizerOutput], list[torch.Tensor]]:
        """The outputs with the commitment on the sums in their losses, and the sum of the scales that are kept."""
        level = len(outputs) - 1
        sums = [*contexts, self.context(level, planes(outputs[-1].z_q), contexts[-1] if contexts else None)]
        with torch.autocast(features[0].device.type, enabled=False):
            feature, found = features[0].float(), []
            kept = self._kept(len(feature), seeds, feature.device)
            decoded = sums[-1].total if kept is None else sums[0].total
            for level, (output, each) in enumerate(zip(outputs, sums, strict=True)):
                commitment = self.commitment_cost * F.mse_loss(feature, each.total.detach())
                loss = (output.loss + commitment + F.mse_loss(each.of_weights, feature.detach())) / len(outputs)
                found.append(output._replace(loss=loss))
                if kept is not None and level:
                    decoded = torch.where((level < kept)[:, None, None, None], each.total, decoded)
        return found, [decoded]

    def _kept(self, images: int, seeds: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
        """How many scales of each image are decoded, int64 (B,), all or any smaller number; None: all of all images."""
        if not self.dropout or len(self.grids) == 1:
            return None
        drawn = uniforms((images, 2), derived(seeds, len(self.grids)), device)
        some = 1 + (drawn[:, 1] * (len(self.grids) - 1)).long()
        return torch.where(drawn[:, 0] < self.dropout, some, len(self.grids))


def bicubic(small: int, large: int) -> torch.Tensor:
    """The matrix (large, small) that bicubic interpolation multiplies rows or columns by."""
    return F.interpolate(torch.eye(small)[None, None], (large, small), mode="bicubic", align_corners=False)[0, 0]


def convolved(x: torch.Tensor, weight: torch.Tensor, strength: float) -> torch.Tensor:
    """What a convolution makes of x (B, D, h, w): (1 - strength) times x, plus `strength` times 3x3 weights of it."""
    return torch.lerp(x, F.conv2d(x, weight, padding=1), strength)


class _Convolved(torch.autograd.Function):
    """`convolved`, and the same values again with a gradient for the weights alone.

    Two calls of `convolved` would give the same, with twice the work in the forward pass and for the weights' gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, strength: float) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(x, weight)
        ctx.strength = strength
        result = convolved(x, weight, strength)
        return result, result.clone()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: torch.Tensor, of_weights: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, _ = ctx.needs_input_grad
        both = ctx.strength * (gradient + of_weights)
        return (
            torch.lerp(gradient, conv2d_input(x.shape, weight, gradient, padding=1), ctx.strength) if for_x else None,
            conv2d_weight(x, weight.shape, both, padding=1) if for_weight else None,
            None,
        )
