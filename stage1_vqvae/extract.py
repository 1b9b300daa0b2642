"""Turn every prepared image into its codes and publish them in data/codes.

    python -m stage1_vqvae.extract

The training split also gets the extra passes that `extract_codes` in params.yaml asks for: codes of mirrored and
shifted images, and codes drawn at random if the quantizer can draw. Encoding is always in float32.

results/extract_codes/metrics.json has the codebook usage and perplexity of the training and the validation codes, and
histogram.csv the histogram of the validation codes. `evaluate` measures the test codes.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tessera import entry, paths
from tessera.parameters import Params

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from stage1_vqvae.model import VQVAE
    from stage1_vqvae.parameters import ExtractParams
    from tessera.codes.figures import CodeCounts
    from tessera.codes.store import CodesWriter
    from tessera.images.prepared import ImageSplit

USES = ("extract_codes",)  # the sections of params.yaml that change what this stage makes

RESULTS = paths.RESULTS / "extract_codes"
# Images in every batch; the last batch is filled up with blank images. In a batch of another size convolutions round
# differently, and the code of a vector half way between two codes would depend on the number of processes.
TOGETHER = 64
HISTOGRAM_ROWS = 512


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


def encode_split(model: VQVAE, split: ImageSplit, change: Pass, device: torch.device) -> Iterator[torch.Tensor]:
    """Yield the int64 tokens (m, N) of a split's images in order, batch by batch. All processes share the work.

    Args:
        change: what is done to the images before they are encoded.
        device: where the model is.
    """
    import torch
    from accelerate.utils import gather

    from tessera.distributed import world
    from tessera.images.augment import shift
    from tessera.images.pixels import to_float
    from tessera.randomness import seed_of

    rank, size = world()
    layout = model.layout
    for start in range(0, len(split), TOGETHER * size):
        pixels = split.pixels(slice(start + rank * TOGETHER, start + (rank + 1) * TOGETHER))
        pixels = pixels.flip(-1) if change.flip else pixels
        batch = torch.zeros(TOGETHER, *layout.image_shape, dtype=torch.uint8)
        batch[: len(pixels)] = shift(
            pixels, torch.full((len(pixels),), change.down), torch.full((len(pixels),), change.right)
        )
        images = to_float(batch.to(device))
        if change.draw:  # each image has a random seed of its own, so that the work can be divided in any way
            first = start + rank * TOGETHER
            seeds = [seed_of("draw", change.draw, image) for image in range(first, first + TOGETHER)]
            codes = model.draw(images, torch.tensor(seeds))
        else:
            codes = model.encode(images)
        yield gather(layout.flatten(codes))[: len(split) - start].cpu()


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Encode every split. All processes encode; the main process writes."""
    import contextlib

    import torch

    from stage1_vqvae.model import load_vqvae
    from tessera.artifacts.publishing import publishing
    from tessera.codes.store import CodesWriter
    from tessera.images.prepared import open_prepared
    from tessera.launch.devices import accelerator
    from tessera.training.tracking import write_results

    prepared = open_prepared(paths.PREPARED)
    model, manifest = load_vqvae(paths.VQVAE)
    manifest.require_parent("prepared", prepared.manifest.identity, paths.VQVAE)
    device = accelerator(params.runtime)
    model.to(device.device)
    parents = {"vqvae": manifest.identity, "prepared": prepared.manifest.identity}
    main, counts = device.is_main_process, {}
    with publishing(paths.CODES, "codes", parents) if main else contextlib.nullcontext() as staging, torch.no_grad():
        writer = CodesWriter(staging, model.layout, prepared.stats.classes) if staging else None
        for name, split in prepared.splits.items():
            changes = passes(params.extract_codes) if name == "train" else [Pass()]
            counts[name] = extract_split(model, name, split, changes, writer, device.device)
        if writer:
            writer.close()
    if main:
        # The test split's figures are left to `evaluate`, which measures test once.
        measured = {name: counted for name, counted in counts.items() if name != "test"}
        metrics = {name: by_figure(counted.figures()) for name, counted in measured.items()}
        write_results(RESULTS, {"histogram": histogram(measured["validation"].levels)}, metrics)
        grids = " + ".join(
            f"{level.height}x{level.width}x{level.depth} of {level.codebook_size}" for level in model.layout.levels
        )
        images = ", ".join(f"{name} {s['images']} images x {s['passes']}" for name, s in writer.splits.items())
        print(f"{paths.CODES}: {grids}; {images}")
    device.wait_for_everyone()


def extract_split(
    model: VQVAE,
    name: str,
    split: ImageSplit,
    changes: list[Pass],
    writer: CodesWriter | None,
    device: torch.device,
) -> CodeCounts:
    """Encode all passes over a split, and write them and the labels if there is a writer.

    Returns:
        How often each code occurs in the first pass, which is the images as they are.
    """
    import contextlib

    from tessera.codes.figures import CodeCounts
    from tessera.console import Bar

    counts = CodeCounts(model.layout)
    with Bar(len(changes) * len(split), f"codes of {name}", "image") as bar:
        for index, change in enumerate(changes):
            with writer.begin_pass(name, len(split)) if writer else contextlib.nullcontext() as file:
                for tokens in encode_split(model, split, change, device):
                    if file:
                        file.append(tokens.numpy())
                    if index == 0:
                        counts.add(model.layout.unflatten(tokens))
                    bar.update(len(tokens))
    if writer and split.labels is not None:
        writer.write_labels(name, split.labels)
    return counts


def by_figure(levels: list[dict[str, float]]) -> dict[str, list[float]]:
    """The figures of each level, as a list of the levels' values for each figure."""
    return {figure: [level[figure] for level in levels] for figure in levels[0]}


def histogram(counts: list[torch.Tensor]) -> list[dict[str, float]]:
    """Rows of the code histogram, from the most used code to the least used one.

    Args:
        counts: int64 (depth, K) for each level.

    Returns:
        At most HISTOGRAM_ROWS evenly spaced rows for each level and depth. `rank` is the code's place divided by K, so
        that codebooks of all sizes share an axis. `share` is the code's share of all codes times K, which is 1 for
        every code of an evenly used codebook.
    """
    import torch

    rows = []
    for level, count in enumerate(counts):
        for depth, used in enumerate(count):
            size = len(used)
            shares = used.sort(descending=True).values.double() * size / used.sum()
            for place in torch.linspace(0, size - 1, min(size, HISTOGRAM_ROWS)).round().long().tolist():
                rank, share = (place + 1) / size, shares[place].item()
                rows.append({"level": level, "depth": depth, "rank": rank, "share": share})
    return rows


def main(argv: list[str] | None = None) -> int:
    return entry.main(run, __doc__, argv, parallel=True)


if __name__ == "__main__":
    raise SystemExit(main())
