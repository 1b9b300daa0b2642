"""Turn every prepared image into its codes and publish them in data/codes.

    python -m stage1_vqvae.extract

The training split also gets the extra passes that `extract_codes` asks for, for the prior: mirrored and shifted copies,
and codes drawn at random where the quantizer can.
Always float32. Leaves codebook usage and perplexity of the training and validation codes in
results/extract_codes/metrics.json, and the code histogram of the validation split in histogram.csv. Those of the test
split are `evaluate`'s to measure, once.
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
    from tessera.images.prepared import ImageSplit

USES = ("extract_codes",)  # the sections of params.yaml that change what this stage makes

RESULTS = paths.RESULTS / "extract_codes"
# Images encoded at a time, always, the last beside blanks: in a batch of another size convolutions round otherwise,
# and a vector between two codes would change sides with the number of processes.
TOGETHER = 64
HISTOGRAM_ROWS = 512


@dataclass(frozen=True)
class Pass:
    """One pass over a split: images mirrored or not, shifted down and right by pixels; codes drawn for the n-th time,
    or (0) the best ones."""

    flip: bool = False
    down: int = 0
    right: int = 0
    draw: int = 0


def passes(params: ExtractParams) -> list[Pass]:
    """The training passes; the image as it is comes first, and draws last."""
    offsets = range(-params.shift, params.shift + 1)
    flips = (False, True) if params.horizontal_flip else (False,)
    found = [Pass(flip, down, right) for flip in flips for down in offsets for right in offsets]
    draws = [Pass(draw=number + 1) for number in range(params.draws)]
    return [Pass(), *(each for each in found if each != Pass()), *draws]


def encode_split(model: VQVAE, split: ImageSplit, change: Pass, device: torch.device) -> Iterator[torch.Tensor]:
    """Tokens (m, N) of a split in order, batch by batch, the work divided over all processes."""
    import torch
    from accelerate.utils import gather
    from tqdm import tqdm

    from tessera.distributed import world
    from tessera.images.augment import shift
    from tessera.images.pixels import to_float
    from tessera.randomness import seed_of

    rank, size = world()
    layout = model.layout
    for start in tqdm(range(0, len(split), TOGETHER * size), disable=None if rank == 0 else True, leave=False):
        pixels = split.pixels(slice(start + rank * TOGETHER, start + (rank + 1) * TOGETHER))
        pixels = pixels.flip(-1) if change.flip else pixels
        batch = torch.zeros(TOGETHER, *layout.image_shape, dtype=torch.uint8)
        batch[: len(pixels)] = shift(
            pixels, torch.full((len(pixels),), change.down), torch.full((len(pixels),), change.right)
        )
        images = to_float(batch.to(device))
        if change.draw:  # each image's by its own seed, so that the work may be divided in any way
            first = start + rank * TOGETHER
            seeds = [seed_of("draw", change.draw, image) for image in range(first, first + TOGETHER)]
            codes = model.draw(images, torch.tensor(seeds))
        else:
            codes = model.encode(images)
        yield gather(layout.flatten(codes))[: len(split) - start].cpu()


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Encode every split; the main process writes."""
    import contextlib

    import numpy as np
    import torch

    from stage1_vqvae.model import load_vqvae
    from tessera.artifacts.arrays import ArrayWriter
    from tessera.artifacts.files import json_text
    from tessera.artifacts.publishing import publishing
    from tessera.codes.figures import CodeCounts
    from tessera.images.prepared import open_prepared
    from tessera.launch.devices import accelerator
    from tessera.training.tracking import write_results

    prepared = open_prepared(paths.PREPARED)
    model, manifest = load_vqvae(paths.VQVAE)
    manifest.require_parent("prepared", prepared.manifest.identity, paths.VQVAE)
    device = accelerator(params.runtime)
    model.to(device.device)
    layout, metrics, splits, histograms = model.layout, {}, {}, {}
    parents = {"vqvae": manifest.identity, "prepared": prepared.manifest.identity}
    main = device.is_main_process
    with publishing(paths.CODES, "codes", parents) if main else contextlib.nullcontext() as staging, torch.no_grad():
        for name, split in prepared.splits.items():
            changes = passes(params.extract_codes) if name == "train" else [Pass()]
            counts = CodeCounts(layout)
            with contextlib.ExitStack() as stack:
                file = staging and stack.enter_context(
                    ArrayWriter(staging / name / "codes.npy", (layout.num_tokens,), layout.dtype)
                )
                for index, change in enumerate(changes):
                    for tokens in encode_split(model, split, change, device.device):
                        if file:
                            file.append(tokens.numpy())
                        if index == 0:
                            counts.add(layout.unflatten(tokens))
            splits[name] = [len(changes), len(split)]
            if name != "test":
                levels = counts.figures()
                metrics[name] = {figure: [level[figure] for level in levels] for figure in levels[0]}
                histograms[name] = counts.levels
            if staging and split.labels is not None:
                with ArrayWriter(staging / name / "labels.npy", (), np.int64) as labels:
                    labels.append(np.asarray(split.labels))
        if staging:
            classes = prepared.stats.classes
            description = {"layout": layout.to_json(), "classes": classes and list(classes), "splits": splits}
            (staging / "layout.json").write_text(json_text(description), encoding="utf-8")
    if main:
        write_results(RESULTS, {"histogram": histogram(histograms["validation"])}, metrics)
        grids = " + ".join(
            f"{level.height}x{level.width}x{level.depth} of {level.codebook_size}" for level in layout.levels
        )
        print(f"{paths.CODES}: {grids}; " + ", ".join(f"{n} {c[1]} images x {c[0]}" for n, c in splits.items()))
    device.wait_for_everyone()


def histogram(counts: list[torch.Tensor]) -> list[dict[str, float]]:
    """Rows of the code histogram, codes from the most used to the least, from counts (depth, K) a level.

    `rank` is the code's place as a part of its codebook, so that codebooks of all sizes share an axis; `share` its part
    of all codes times K, which is 1 for an even codebook. At most HISTOGRAM_ROWS ranks, evenly spaced.
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
