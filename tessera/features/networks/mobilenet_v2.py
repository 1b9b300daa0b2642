"""MobileNetV2 trained on ImageNet, as torchvision has it (Sandler et al. 2018)."""

from __future__ import annotations

from torch import Tensor

from tessera.features.networks.base import FeatureNetwork, imagenet_normalised, taken_after
from tessera.features.networks.sections import PretrainedParams
from tessera.features.networks.weights import Download, load_pretrained

PLACES = (1, 3, 6, 13, 17)  # the layers of `features` after which a map is taken: the last at each resolution
DOWNLOAD = Download("https://download.pytorch.org/models/mobilenet_v2-7ebf99e0.pth", "7ebf99e0")


class Parameters(PretrainedParams):
    """The section `mobilenet_v2` of params.yaml. Without a file, the weights are torchvision's own download."""


class MobileNetV2(FeatureNetwork):
    """The five feature maps have sides of 1/2, 1/4, 1/8, 1/16 and 1/32 of the image's.

    A vector has 1,280 numbers: the last convolution's channels, each averaged over the positions.
    """

    widths = (16, 24, 32, 96, 320)

    def __init__(self, *, file: str | None, side: int) -> None:
        super().__init__(side)
        from torchvision.models import mobilenet_v2

        self.features = mobilenet_v2(weights=None).features
        load_pretrained(self, file, DOWNLOAD.path, "torchvision's mobilenet_v2", DOWNLOAD.sha256)

    def normalised(self, images: Tensor) -> Tensor:
        return imagenet_normalised(images)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        return taken_after(self.features, PLACES, images)

    def vectors(self, images: Tensor) -> Tensor:
        return self.features[-1](self.maps(images)[-1]).mean((2, 3))
