"""VGG-16 trained on ImageNet, as torchvision has it, with the heads of LPIPS (Zhang et al. 2018)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from tessera.errors import UserError
from tessera.features.networks.base import FeatureNetwork, imagenet_normalised, taken_after
from tessera.features.networks.sections import PretrainedParams
from tessera.features.networks.weights import Download, load_pretrained, read_weights

PLACES = (3, 8, 15, 22, 29)  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3, as LPIPS takes them
DOWNLOAD = Download("https://download.pytorch.org/models/vgg16-397923af.pth", "397923af")
HEADS = Path("functional/image/lpips_models/vgg.pth")  # in torchmetrics, which ships LPIPS's published heads


class Parameters(PretrainedParams):
    """The section `vgg16` of params.yaml. Without a file, the weights are torchvision's own download of 528 MB."""


class VGG16(FeatureNetwork):
    """Maps at the images' size and at 1/2, 1/4, 1/8 and 1/16 of it. A vector is the mean of the last, 512 wide.

    `channel_weights` are LPIPS's heads: the perceptual distance that they give is LPIPS itself.
    """

    widths = (64, 128, 256, 512, 512)

    def __init__(self, *, file: str | None, side: int) -> None:
        super().__init__(side)
        from torchvision.models import vgg16

        self.features = vgg16(weights=None).features
        for layer in self.features:
            if hasattr(layer, "inplace"):
                layer.inplace = False  # a map that is taken must not be changed by the layers after it
        load_pretrained(self, file, DOWNLOAD.path, "torchvision's vgg16", DOWNLOAD.sha256)
        for place, head in enumerate(_lpips_heads()):
            self.register_buffer(f"head_{place}", head, persistent=False)

    @property
    def channel_weights(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, f"head_{place}") for place in range(len(self.widths)))

    def normalised(self, images: Tensor) -> Tensor:
        return imagenet_normalised(images)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        return taken_after(self.features, PLACES, images)


def _lpips_heads() -> tuple[Tensor, ...]:
    """LPIPS's weight of each channel of each map, float32 (c_i,)."""
    spec = find_spec("torchmetrics")
    file = Path(next(iter(spec.submodule_search_locations))) / HEADS if spec else HEADS
    tensors, _ = read_weights(file, "reinstall torchmetrics, which ships them")
    names = [f"lin{place}.model.1.weight" for place in range(len(VGG16.widths))]
    if missing := [name for name in names if name not in tensors]:
        raise UserError(f"{file}: no tensor {missing[0]}; reinstall torchmetrics")
    return tuple(tensors[name].float().flatten() for name in names)
