"""What every feature network is: a frozen network that turns images into feature maps and vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in [0, 1]


class FeatureNetwork(nn.Module):
    """A frozen network in whose features images are compared. A subclass defines `widths` and `feature_maps`.

    Its weights never receive a gradient, and it is in evaluation mode always. Its output is differentiable with
    respect to the images.

    Attributes:
        name: the option's name. Every figure that the network gives carries it.
        widths: the number of channels of each map, shallow first.
        weights: SHA-256 of the file that the weights came from; "" before they are loaded.
        channels: of the images that `feature_maps` takes. Grey images get as many.
    """

    name: str = ""
    widths: tuple[int, ...] = ()
    channels: int = 3

    def __init__(self, side: int = 1) -> None:
        """side: the shorter side, in pixels, to which smaller images are enlarged."""
        super().__init__()
        self.side, self.weights = side, ""

    @property
    def channel_weights(self) -> tuple[Tensor, ...] | None:
        """For each map a weight (c_i,) of each channel, by which LPIPS weighs squared differences; None: it has none.

        Features are divided by their norm over the channels first. Weights are at least 0.
        """
        return None

    def freeze(self) -> FeatureNetwork:
        """Take the gradients from its weights and put it into evaluation mode, for good."""
        self.requires_grad_(False)
        return self.eval()

    def train(self, mode: bool = True) -> FeatureNetwork:
        """Stays in evaluation mode, whatever `mode` is: a module around it may be trained."""
        return super().train(False)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps (B, c_i, h_i, w_i) at several depths, shallow first.

        Args:
            images: float (B, C, H, W) in [-1, 1] with 1 or 3 channels, of any size. Resizing (`resized`) and the
                network's own normalisation happen inside.
        """
        return self.feature_maps(self.normalised(self.resized(self.coloured(images))))

    def vectors(self, images: Tensor) -> Tensor:
        """One vector (B, F) for each image: by default the mean of the deepest map over its positions.

        Args:
            images: as for `maps`.
        """
        return self.maps(images)[-1].mean((2, 3))

    def vectors_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """`vectors`, and the class logits that the Inception Score is computed from; None where it is not defined."""
        return self.vectors(images), None

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """The maps of images that are resized and normalised already. A subclass defines it."""
        raise NotImplementedError

    def normalised(self, images: Tensor) -> Tensor:
        """Images in [-1, 1] as the network's training had them: here as they are."""
        return images

    def coloured(self, images: Tensor) -> Tensor:
        """Images with as many channels as the network takes: a grey image has three equal ones."""
        channels = images.shape[1]
        if channels not in (1, self.channels):
            raise ValueError(f"{self.name}: expected images of 1 or {self.channels} channels, got {channels}")
        return images.expand(-1, self.channels, -1, -1)

    def resized(self, images: Tensor) -> Tensor:
        """Images whose shorter side has at least `side` pixels: smaller ones are enlarged bilinearly."""
        height, width = images.shape[-2:]
        short = min(height, width)
        if short >= self.side:
            return images
        size = [max(self.side, round(length * self.side / short)) for length in (height, width)]
        return F.interpolate(images, size, mode="bilinear", align_corners=False)


def imagenet_normalised(images: Tensor) -> Tensor:
    """Images in [-1, 1] with ImageNet's mean and standard deviation taken from [0, 1] RGB, as torchvision has them."""
    mean = images.new_tensor(IMAGENET_MEAN).view(3, 1, 1)
    std = images.new_tensor(IMAGENET_STD).view(3, 1, 1)
    return ((images + 1) / 2 - mean) / std


def taken_after(layers: nn.Sequential, places: Sequence[int], images: Tensor) -> list[Tensor]:
    """The outputs of some layers of a sequence. Layers after the last of them are not run.

    Args:
        places: the layers' positions, in ascending order.
    """
    found, value = [], images
    for place in range(places[-1] + 1):
        value = layers[place](value)
        if place in places:
            found.append(value)
    return found
