"""Turn every prepared image into its codes and publish them in data/codes.

    python -m stage1_vqvae.extract

The training split also gets the extra passes that `extract_codes` in params.yaml asks for: codes of mirrored and
shifted images, and codes drawn at random if the quantizer can draw. With `extract_codes.refine` all codes but drawn
ones are then improved (`stage1_vqvae.refined_codes`). Encoding is always in float32. The codes are the same bytes
whatever the number of processes. An extraction that was killed goes on after the parts that it had finished.

results/extract_codes/metrics.json has the codebook usage and perplexity of the training and the validation codes, and
with refinement the distortion before and after and the share of changed tokens; histogram.csv has the histogram of the
validation codes. `evaluate` measures the test codes.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tessera import entry, paths
from tessera.errors import UserError
from tessera.launch.shares import add_share
from tessera.parameters import Params

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    import torch

    from stage1_vqvae.model import VQVAE
    from stage1_vqvae.parameters import ExtractParams
    from tessera.artifacts.parts import PartFolder
    from tessera.codes.store import CodePart
    from tessera.images.prepared import ImageSplit, PreparedImages

MODULE = "stage1_vqvae.extract"
USES = ("extract_codes",)  # the sections of params.yaml that change what this stage makes
MEMORY = "runtime.batch_size below 64"  # by which it takes less memory

RESULTS = paths.RESULTS / "extract_codes"


@dataclass(frozen=True)
class Pass:
    """What one pass over a split does to the images.

    Attributes:
        flip: mirror the image.
        down, right: shift the image by this many pixels.
        draw: 0 for the best codes; n for the n-th draw of random codes.
    """

    flip: bool = False
    down: int = 0
    right: int = 0
    draw: int = 0


def passes(params: ExtractParams) -> list[Pass]:
    """The passes over the training split. The first one is the images as they are, and draws come last."""
    offsets = range(-params.shift, params.shift + 1)
    flips = (False, True) if params.horizontal_flip else (False,)
    found = [Pass(flip, down, right) for flip in flips for down in offsets for right in offsets]
    draws = [Pass(draw=number + 1) for number in range(params.draws)]
    return [Pass(), *(each for each in found if each != Pass()), *draws]


def encode(
    model: VQVAE,
    split: ImageSplit,
    change: Pass,
    rows: slice,
    together: int,
    device: torch.device,
    refine: int = 0,
    gained: Callable[[np.ndarray], None] | None = None,
) -> Iterator[torch.Tensor]:
    """Yield the int64 tokens (m, N) of some images of a split in order, batch by batch.

    Args:
        change: what is done to the images before they are encoded.
        rows: the images; `start` is a multiple of `together`.
        together: images in every batch. The last batch of a split is filled up with blank images.
        device: where the model is.
        refine: gradient steps by which codes that are not drawn are improved.
        gained: called with what these steps changed, float64 (m, 3): each image's -log p(x | z) in nats before and
            after, and its number of changed tokens.
    """
    import torch

    from stage1_vqvae.refined_codes import refine as refined
    from tessera.images.augment import shift
    from tessera.images.pixels import to_float
    from tessera.randomness import seed_of

    for start in range(rows.start, rows.stop, together):
        pixels = split.pixels(slice(start, min(start + together, rows.stop)))
        pixels = pixels.flip(-1) if change.flip else pixels
        batch = torch.zeros(together, *model.layout.image_shape, dtype=torch.uint8)
        batch[: len(pixels)] = shift(
            pixels, torch.full((len(pixels),), change.down), torch.full((len(pixels),), change.right)
        )
        batch = batch.to(device)
        if change.draw:  # each image has a random seed of its own, so that the work can be divided in any way
            seeds = [seed_of("draw", change.draw, image) for image in range(start, start + together)]
            codes = model.draw(to_float(batch), torch.tensor(seeds))
        elif refine:
            codes, *gains = refined(model, batch, refine)
            if gained:
                gained(torch.stack([gain.double() for gain in gains], 1)[: len(pixels)].cpu().numpy())
        else:
            codes = model.encode(to_float(batch))
        yield model.layout.flatten(codes)[: len(pixels)].cpu()


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Encode every split, part by part. Each process makes parts of its own; the main process publishes them."""
    from stage1_vqvae.code_figures import gains_of
    from stage1_vqvae.edits import tell_of_edits
    from stage1_vqvae.model import load_vqvae
    from tessera.artifacts.parts import PartFolder, identity
    from tessera.codes.store import code_parts
    from tessera.images.prepared import open_prepared
    from tessera.launch.devices import accelerator

    prepared = open_prepared(paths.PREPARED)
    model, manifest = load_vqvae(paths.VQVAE)
    manifest.require_parent("prepared", prepared.manifest.identity, paths.VQVAE)
    tell_of_edits(prepared, model, params)
    device = accelerator(params.runtime, apart=True)
    model.to(device.device)
    parents = {"vqvae": manifest.identity, "prepared": prepared.manifest.identity}
    changes = {name: passes(params.extract_codes) if name == "train" else [Pass()] for name in prepared.splits}
    splits = {name: {"images": len(split), "passes": len(changes[name])} for name, split in prepared.splits.items()}
    parts = code_parts(splits)
    with PartFolder("extract_codes", identity(MODULE, USES, params, parents), device, arguments.share) as folder:
        refine = params.extract_codes.refine
        make_parts(model, prepared, changes, parts, folder, device.device, params.runtime.batch_size, refine)
        if arguments.share:
            print(f"share {arguments.share}: {len(folder.left)} parts made")
            return
        gains = [name for part in parts if (name := gains_of(part, refine))]
        folder.wait([part.name for part in parts] + gains)
        if device.is_main_process:
            publish(model, prepared, splits, parts, folder, parents, refine)
    device.wait_for_everyone()


def make_parts(
    model: VQVAE,
    prepared: PreparedImages,
    changes: dict[str, list[Pass]],
    parts: list[CodePart],
    folder: PartFolder,
    device: torch.device,
    most: int,
    refine: int,
) -> None:
    """Encode the parts of the codes that this process has to make, and write them into `folder`.

    The parts that `folder` does not hold yet are divided among the processes.

    Args:
        changes: the passes over each split, by the split's name. A part's `number` is an index into this list.
        parts: all parts of all splits, those that are made already or by another process included.
        folder: where finished parts are kept until all are published. It tells which parts this process makes.
        device: where the model is.
        most: the largest number of images in a batch.
        refine: the number of gradient steps that improve each image's codes; 0: the codes stay the encoder's.

    Raises:
        UserError: `refine` is above 0, and the quantizer passes no gradient to z.
    """
    import numpy as np
    import torch

    from stage1_vqvae.code_figures import gains_of
    from tessera.console import Bar

    together = images_at_once(model, most, refine)
    layout, wanted = model.layout, set(folder.missing([part.name for part in parts]))
    mine = [part for part in parts if part.name in wanted]
    with torch.no_grad(), Bar(sum(part.rows.stop - part.rows.start for part in mine), "codes", "image") as bar:
        for part in mine:
            split, change, gained = prepared[part.split], changes[part.split][part.number], None
            with ExitStack() as stack:
                writer = stack.enter_context(folder.writing(part.name, (layout.num_tokens,), layout.dtype))
                if name := gains_of(part, refine):  # put in place before its codes are
                    gained = stack.enter_context(folder.writing(name, (3,), np.float64)).append
                for tokens in encode(model, split, change, part.rows, together, device, refine, gained):
                    writer.append(tokens.numpy())
                    bar.update(len(tokens))


def images_at_once(model: VQVAE, most: int, refine: int) -> int:
    """How many images are encoded at a time: a number that depends on the model, unless `most` is smaller.

    Raises:
        UserError: `refine` is above 0, and the quantizer passes no gradient to z.
    """
    import torch

    from stage1_vqvae.refined_codes import NoGradient, refined_together
    from tessera.footprint import images_together

    if not refine:
        blank = torch.zeros(1, *model.layout.image_shape, device=next(model.parameters()).device)
        return images_together(model, lambda: model.encode(blank), most)
    try:
        return refined_together(model, most)
    except NoGradient:
        name = model.config["quantizer"]["name"]
        raise UserError(
            f"extract_codes.refine: {refine}, but stage1_vqvae.quantizer {name} passes no gradient to z in evaluation, "
            "so its codes cannot be refined; set it to 0"
        ) from None


def publish(
    model: VQVAE,
    prepared: PreparedImages,
    splits: dict[str, dict[str, int]],
    parts: list[CodePart],
    folder: PartFolder,
    parents: dict[str, str],
    refine: int,
) -> None:
    """Publish the codes, and write their figures.

    Args:
        splits: for each split its number of `images` and of `passes`.
        parts: all parts, which are in `folder`.
        parents: the identities of the artifacts that the codes were made from.
        refine: gradient steps by which codes were improved.
    """
    from stage1_vqvae.code_figures import MEASURED, by_figure, counted, gained, histogram
    from tessera.artifacts.publishing import publishing
    from tessera.codes.store import write_description
    from tessera.training.tracking import write_results

    counts = {name: counted(model.layout, folder, name, parts) for name in MEASURED}
    metrics = {name: by_figure(found.figures()) for name, found in counts.items()}
    if refine:
        metrics = {name: figures | gained(model.layout, folder, name, parts) for name, figures in metrics.items()}
    labels = {name: split.labels for name, split in prepared.splits.items() if split.labels is not None}
    with publishing(paths.CODES, "codes", parents) as staging:
        folder.link([part.name for part in parts], staging)
        write_description(staging, model.layout, prepared.stats.classes, splits, labels)
    write_results(RESULTS, {"histogram": histogram(counts["validation"].levels)}, metrics)
    levels = model.layout.levels
    grids = " + ".join(f"{level.height}x{level.width}x{level.depth} of {level.codebook_size}" for level in levels)
    images = ", ".join(f"{name} {s['images']} images x {s['passes']}" for name, s in splits.items())
    print(f"{paths.CODES}: {grids}; {images}")


def main(argv: list[str] | None = None) -> int:
    return entry.main(run, __doc__, argv, add_share, parallel=True)


if __name__ == "__main__":
    raise SystemExit(main())
