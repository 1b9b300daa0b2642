"""Draw pictures of images and their reconstructions, which show what the VQ-VAE keeps of an image.

    python -m stage1_vqvae.reconstruct

Writes results/reconstruct/images/train.png and validation.png. The first row of each shows images, and the last row
shows their reconstructions. With several levels, a row for each level in between shows the reconstructions from that
level alone, coarsest first; all other levels are replaced by their mean embedding over these images. Razavi et al.
2019, "Generating Diverse High-Fidelity Images with VQ-VAE-2", figure 3, is a similar picture.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tessera import entry, paths
from tessera.parameters import Params

if TYPE_CHECKING:
    import torch

    from stage1_vqvae.model import VQVAE
    from tessera.images.prepared import ImageSplit

USES = ()  # the sections of params.yaml that change what this stage makes

IMAGES = paths.RESULTS / "reconstruct" / "images"
GRID_IMAGES = 32  # images in each picture


def rows(model: VQVAE, split: ImageSplit, device: torch.device) -> list[torch.Tensor]:
    """The rows of a picture.

    Returns:
        uint8 (B, C, H, W) for each row: the first images of the split, their reconstructions from each level alone if
        there are several levels, and their reconstructions from all levels.
    """
    from tessera.images.pixels import to_float, to_uint8

    pixels = split.pixels(slice(0, GRID_IMAGES))
    codes = model.encode(to_float(pixels.to(device)))
    levels = len(codes)
    kept = [[level] for level in range(levels)] if levels > 1 else []
    found = [to_uint8(model.decode(codes, only).cpu()) for only in [*kept, list(range(levels))]]
    return [pixels, *found]


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Draws a picture for the training split and one for the validation split."""
    import torch

    from stage1_vqvae.model import load_vqvae
    from tessera.images.grids import save_grid, stacked_grid
    from tessera.images.prepared import open_prepared
    from tessera.launch.devices import configure_torch

    configure_torch(params.runtime.threads)
    prepared = open_prepared(paths.PREPARED)
    model, manifest = load_vqvae(paths.VQVAE)
    manifest.require_parent("prepared", prepared.manifest.identity, paths.VQVAE)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    for name in ("train", "validation"):
        with torch.no_grad():
            save_grid(stacked_grid(rows(model, prepared[name], device)), IMAGES / f"{name}.png")
    several = len(model.layout.levels) > 1
    print(f"{IMAGES}: images above their reconstructions" + (", each level alone first" if several else ""))


def main(argv: list[str] | None = None) -> int:
    return entry.main(run, __doc__, argv)


if __name__ == "__main__":
    raise SystemExit(main())
