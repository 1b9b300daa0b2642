"""PatchGAN's discriminator: a small convolutional network whose every output judges one patch of the image.

Sources: Isola et al. 2017, "Image-to-Image Translation with Conditional Adversarial Networks", section 3.2.2; Esser et
al. 2021, "Taming Transformers for High-Resolution Image Synthesis", for its form.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stage1_vqvae.discriminators.base import Discriminator
from stage1_vqvae.discriminators.sections import DiscriminatorParams
from tessera.distributed import sum_over_processes, world
from tessera.parameters.sections import Misfit, Positive

KERNEL = 4
WIDEST = 8  # the largest width, in units of `channels`
GROUPS = 8  # of a group norm, or fewer where the width is no multiple
DEVIATION = 0.02  # of the initial weights, as pix2pix has it


class Parameters(DiscriminatorParams):
    """The section `patch` of params.yaml.

    `channels`: of the first layer; they double with each further layer up to eight times as many. `layers`: the number
    of convolutions that halve the resolution; with 3 of them an output sees 70x70 pixels. `norm`: batch is the
    published one, by which the images of a batch are judged together, over all processes; group judges each image by
    itself.
    """

    channels: Positive
    layers: Positive
    norm: Literal["group", "batch"]

    def fits_images(self, shape: tuple[int, int, int]) -> None:
        least = 3 * 2**self.layers
        if min(shape[1:]) < least:
            raise Misfit(
                f"{self.layers} layers need images of at least {least} pixels a side, got {shape[1]}x{shape[2]}; give "
                "fewer",
                "layers",
            )


class Patch(Discriminator):
    """Some 4x4 convolutions of stride 2, one of stride 1, and one to a single channel, with leaky ReLUs between them.

    All convolutions but the first and the last are followed by a norm.

    Args:
        image_channels: of the images.
    """

    def __init__(self, image_channels: int, *, channels: int, layers: int, norm: str) -> None:
        super().__init__()
        if norm == "batch":
            self.whole_batch = "the discriminator's batch norm looks at a whole batch; set norm to group"
        widths = [channels * min(2**layer, WIDEST) for layer in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(image_channels, widths[0], KERNEL, 2, 1), nn.LeakyReLU(0.2)]
        for layer in range(1, layers + 1):
            stride = 2 if layer < layers else 1
            parts.append(nn.Conv2d(widths[layer - 1], widths[layer], KERNEL, stride, 1, bias=False))
            parts += [_norm(norm, widths[layer]), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*parts, nn.Conv2d(widths[-1], 1, KERNEL, 1, 1))
        for part in self.layers:
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, 0.0, DEVIATION)
            elif isinstance(part, nn.BatchNorm2d | nn.GroupNorm):
                nn.init.normal_(part.weight, 1.0, DEVIATION)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.layers(images)]


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes, for losses that each process computes a share of.

    Every process uses the sum, so the gradient that a process's own tensor receives is summed over all processes too.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return sum_over_processes(tensor.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)  # a gradient penalty derives the gradient once more


class BatchNorm(nn.BatchNorm2d):
    """A batch norm by the means and variances of the whole batch, over all processes. Each has equally many images.

    Nobody reads running statistics, so there are none. (torch's SyncBatchNorm keeps them, and needs GPUs.)

    Args:
        width: number of channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, track_running_stats=False)

    def forward(self, input: Tensor) -> Tensor:
        if world()[1] == 1:
            return super().forward(input)
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        values = values - _everywhere(values)
        deviation = (_everywhere(values.square()) + self.eps).sqrt()
        shape = (-1, 1, 1)
        return (values / deviation * self.weight.view(shape) + self.bias.view(shape)).to(input.dtype)


def _everywhere(values: Tensor) -> Tensor:
    """The mean of each channel of (B, C, h, w) over the images and positions of all processes, (C, 1, 1)."""
    return _Sum.apply(values.mean((0, 2, 3))).view(-1, 1, 1) / world()[1]


def _norm(name: str, width: int) -> nn.Module:
    """A norm over `width` channels."""
    return BatchNorm(width) if name == "batch" else nn.GroupNorm(math.gcd(GROUPS, width), width)
