"""Draw pictures of images and their reconstructions, which show what the VQ-VAE keeps of an image.

    python -m stage1_vqvae.reconstruct

Writes results/reconstruct/images/train.png and validation.png. The first row of each shows images, and the last row
shows their reconstructions. With several levels, a row for each level in between shows the reconstructions from that
level alone, coarsest first; all other levels are replaced by their mean embedding over these images. Razavi et al.
2019, "Generating Diverse High-Fidelity Images with VQ-VAE-2", figure 3, is a similar picture. Where levels are scales
(`stage1_vqvae.scales`), each row shows the reconstructions from the scales up to one of them. `sampling.decoder` says
which decoder draws them.

The images are spread over the classes. They are the same in every run of the same data. The codes are the encoder's,
also where `extract_codes.refine` improves those of data/codes.
"""

from __future__ import annotations

import argparse

from tessera import entry, paths
from tessera.parameters import Params

USES = ("sampling.decoder",)  # the sections of params.yaml that change what this stage makes

IMAGES = paths.RESULTS / "reconstruct" / "images"
SPLITS = ("train", "validation")
GRID_IMAGES = 32  # images in each picture


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Draws a picture for the training split and one for the validation split. Each is one process's work."""
    from stage1_vqvae.decoder import load_decoder
    from stage1_vqvae.edits import tell_of_edits
    from stage1_vqvae.model import load_vqvae
    from stage1_vqvae.pictures import reconstructions
    from tessera.images.examples import spread_over_classes
    from tessera.images.grids import save_grid, stacked_grid
    from tessera.images.prepared import open_prepared
    from tessera.launch.devices import accelerator

    processes = accelerator(params.runtime, apart=True)
    prepared = open_prepared(paths.PREPARED)
    model, manifest = load_vqvae(paths.VQVAE)
    manifest.require_parent("prepared", prepared.manifest.identity, paths.VQVAE)
    tell_of_edits(prepared, model, params)
    decoder, _ = load_decoder(paths.DECODERS, params.sampling.decoder, model, manifest)
    model, decoder = model.to(processes.device), decoder.to(processes.device)
    for name in SPLITS[processes.process_index :: processes.num_processes]:
        split = prepared[name]
        pixels = split.pixels(spread_over_classes(split, GRID_IMAGES))
        save_grid(stacked_grid(reconstructions(model, pixels, decoder)), IMAGES / f"{name}.png")
    processes.wait_for_everyone()
    if processes.is_main_process:
        several = len(model.layout.levels) > 1
        print(f"{IMAGES}: images above their reconstructions" + (", each level or scale first" if several else ""))


def main(argv: list[str] | None = None) -> int:
    return entry.main(run, __doc__, argv, parallel=True)


if __name__ == "__main__":
    raise SystemExit(main())
