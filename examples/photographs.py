"""Two classes of small images, cut from the two photographs that come with scikit-learn.

    python examples/photographs.py FOLDER [--count 1500] [--side 64]

Writes FOLDER/china and FOLDER/flower with `--count` PNG files each: squares of 96 to 256 pixels from any place of the
photograph, mirrored or not, brought to `--side` pixels. The same command writes the same images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image


def cut(photograph: Image.Image, random: np.random.Generator, side: int) -> Image.Image:
    """One square of the photograph, `side` pixels wide."""
    width = int(random.integers(96, 257))
    x, y = (int(random.integers(0, length - width + 1)) for length in photograph.size)
    square = photograph.crop((x, y, x + width, y + width)).resize((side, side), Image.Resampling.LANCZOS)
    return ImageOps.mirror(square) if random.integers(2) else square


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=1500)
    parser.add_argument("--side", type=int, default=64)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    for name in ("china", "flower"):
        photograph = Image.fromarray(load_sample_image(f"{name}.jpg"))
        (options.folder / name).mkdir(parents=True)
        for number in range(options.count):
            cut(photograph, random, options.side).save(options.folder / name / f"{number:05d}.png")


if __name__ == "__main__":
    main()
