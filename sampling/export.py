"""Write images as one .npz file, in the form that other evaluation tools read, such as ADM's evaluator.

    python -m sampling.export samples.npz
    python -m sampling.export test.npz --of test

`arr_0` is uint8 (n, H, W, 3), in which a grey image has three equal channels. `arr_1` is int64 (n,), the labels, where
there are any. Images are those of results/sample, of data/prepared, or reconstructions of the test images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tessera import entry, paths
from tessera.errors import UserError
from tessera.parameters import Params

if TYPE_CHECKING:
    import numpy as np
    import torch

SAMPLES, SPLITS = ("default", "unguided"), ("train", "validation", "test")
REBUILT = "reconstructions"  # of the test images


def images_of(kind: str, decoder: str) -> tuple[int, np.ndarray | None, Callable[[slice], torch.Tensor]]:
    """The number of images of one kind, their labels int64 (n,) or None, and a function from rows to uint8 pixels.

    Args:
        decoder: of reconstructions: likelihood or refined.

    Raises:
        UserError: the folder that they are in, or a model, is missing or damaged.
    """
    import numpy as np

    from tessera.images.prepared import open_prepared
    from tessera.images.samples import open_samples

    split = (open_samples(paths.SAMPLES) if kind in SAMPLES else open_prepared(paths.PREPARED))[
        "test" if kind == REBUILT else kind
    ]
    labels = None if split.labels is None else np.asarray(split.labels)
    return len(split), labels, rebuilt(decoder) if kind == REBUILT else split.pixels


def rebuilt(decoder: str) -> Callable[[slice], torch.Tensor]:
    """What decodes the codes of some test images, uint8 (B, C, H, W)."""
    from sampling.pipeline import TwoStagePipeline
    from tessera.codes.store import open_codes
    from tessera.images.pixels import to_uint8

    pipeline, codes = TwoStagePipeline.load(paths.MODELS, decoder=decoder), open_codes(paths.CODES)["test"]
    return lambda rows: to_uint8(pipeline.decode_tokens(codes.rows(rows))).cpu()


def write_npz(path: Path, count: int, labels: np.ndarray | None, pixels: Callable[[slice], torch.Tensor]) -> None:
    """Write the file whole or not at all. The same images always give the same bytes.

    Args:
        pixels: gives uint8 (B, C, H, W) of some rows.
    """
    import zipfile

    import numpy as np

    from tessera.artifacts.files import replacing
    from tessera.footprint import TOGETHER

    def rows() -> Iterator[np.ndarray]:
        for start in range(0, count, TOGETHER):
            images = pixels(slice(start, min(start + TOGETHER, count)))
            yield images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()

    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        batches = rows()
        first = next(batches)
        shape = {"descr": "|u1", "fortran_order": False, "shape": (count, *first.shape[1:])}
        # An entry's date is that of its ZipInfo, the same always.
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, shape)
            file.write(first.tobytes())
            for batch in batches:
                file.write(batch.tobytes())
        if labels is not None:
            with archive.open(zipfile.ZipInfo("arr_1.npy"), "w") as file:
                np.lib.format.write_array(file, labels, version=(1, 0))


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Find the images and write them."""
    path = arguments.file
    if path.suffix != ".npz" or path.is_dir():
        raise UserError(f"{path}: expected the name of an .npz file, such as {path.with_suffix('.npz')}")
    count, labels, pixels = images_of(arguments.kind, params.sampling.decoder)
    write_npz(path, count, labels, pixels)
    print(f"{path}: {count} images of {arguments.kind}{'' if labels is None else ', with labels'}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE.npz", help="what is written")
    parser.add_argument(
        "--of",
        dest="kind",
        choices=[*SAMPLES, REBUILT, *SPLITS],
        default=SAMPLES[0],
        help="which images: samples of either kind, reconstructions of the test images, or a split (default: default)",
    )


def main(argv: list[str] | None = None) -> int:
    return entry.main(run, __doc__, argv, add_arguments)


if __name__ == "__main__":
    raise SystemExit(main())
