"""Inception-v3 as FID and the Inception Score have it: TensorFlow's weights of 2015 (Heusel et al. 2017).

It differs from torchvision's network in its pooling layers, its 1008 classes, and how images are resized. The Fréchet
distance of its vectors is the FID.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.inception import (
    BasicConv2d,
    Inception3,
    InceptionA,
    InceptionAux,
    InceptionB,
    InceptionC,
    InceptionD,
    InceptionE,
)

from tessera.features.networks.base import FeatureNetwork
from tessera.features.networks.sections import FeatureParams
from tessera.features.networks.weights import Download, load_pretrained

SIDE, CLASSES = 299, 1008
DOWNLOAD = Download(
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    "6726825d",
)
LAYERS = (
    ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"),
    ("maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3"),
    ("maxpool2", "Mixed_5b", "Mixed_5c", "Mixed_5d"),
    ("Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    ("Mixed_7a", "Mixed_7b", "Mixed_7c"),
)  # a map is taken after each line


class Parameters(FeatureParams):
    """The section `inception` of params.yaml.

    file: its weights, a safetensors file or the published .pth; None: the download of torch-fidelity, 91 MB.
    """

    file: str | None


class _MeanOfThoseThere:
    """In a block: its pooling branch takes means over the positions inside the image, without the zeros around it."""

    def _forward(self, images: Tensor) -> list[Tensor]:
        *others, _ = super()._forward(images)
        return [*others, self.branch_pool(F.avg_pool2d(images, 3, 1, 1, count_include_pad=False))]


class _A(_MeanOfThoseThere, InceptionA): ...


class _C(_MeanOfThoseThere, InceptionC): ...


class _E(_MeanOfThoseThere, InceptionE): ...


class _Last(InceptionE):
    """The last block, whose pooling branch takes the largest value."""

    def _forward(self, images: Tensor) -> list[Tensor]:
        *others, _ = super()._forward(images)
        return [*others, self.branch_pool(F.max_pool2d(images, 3, 1, 1))]


class Inception(FeatureNetwork):
    """Maps at five depths of the image resized to 299 x 299. A vector is the mean of the last, 2048 wide."""

    widths = (64, 192, 288, 768, 2048)

    def __init__(self, *, file: str | None) -> None:
        super().__init__()
        blocks = [BasicConv2d, _A, InceptionB, _C, InceptionD, _E, InceptionAux]
        network = Inception3(CLASSES, aux_logits=False, inception_blocks=blocks, init_weights=False)
        network.Mixed_7c = _Last(2048)
        for name, layer in network.named_children():
            self.add_module(name, layer)
        load_pretrained(self, file, DOWNLOAD.path, "FID's Inception-v3 (weights-inception-2015-12-05)", DOWNLOAD.sha256)

    def resized(self, images: Tensor) -> Tensor:
        """Images of 299 x 299 pixels, resized as TensorFlow 1 does: bilinearly, corner on corner, without smoothing."""
        for dim in (-2, -1):
            images = _stretched(images, dim)
        return images

    def normalised(self, images: Tensor) -> Tensor:
        return (images * 127.5 + 127.5 - 128) / 128

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        found = []
        for names in LAYERS:
            for name in names:
                images = getattr(self, name)(images)
            found.append(images)
        return found

    def vectors_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """`vectors`, and the logits of the 1008 classes without the bias, from which the published scores come."""
        vectors = self.vectors(images)
        return vectors, vectors @ self.fc.weight.T


def _stretched(images: Tensor, dim: int) -> Tensor:
    """Images with `SIDE` pixels along one dimension. Pixel i comes from position i * size / SIDE."""
    size = images.shape[dim]
    if size == SIDE:
        return images
    place = torch.arange(SIDE, device=images.device, dtype=images.dtype) * (size / SIDE)
    low = place.floor().long().clamp(max=size - 1)
    high = (low + 1).clamp(max=size - 1)
    share = (place - low).view(-1, *[1] * (-1 - dim))
    return torch.lerp(images.index_select(dim, low), images.index_select(dim, high), share)
