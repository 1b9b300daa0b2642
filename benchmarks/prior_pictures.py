"""Pictures of a comparison of priors: two samples of each class, and completed images, with a row for each prior."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import repository  # noqa: F401
import torch
from PIL import Image

from tessera import paths
from tessera.images.grids import COLUMNS, PADDING, enlargement, image_grid, save_grid


def file_name(preset: str, label: str) -> str:
    return f"{preset}_{label.replace(', ', '_')}"


def keep(folder: Path, name: str, shape: tuple[int, int, int], columns: int, completed: torch.Tensor) -> None:
    """Keeps a prior's grids: that of `sample` in the current folder, without the margin of names, and `completed`.

    Args:
        shape: of an image.
        columns: of the grid of samples.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wide = PADDING + columns * (shape[2] * enlargement(shape) + PADDING)
    with Image.open(paths.SAMPLES / "grid.png") as grid:
        grid.crop((grid.width - wide, 0, *grid.size)).save(folder / f"{name}.png")
    save_grid(completed, folder / f"{name}_completed.png")


def cells(path: Path, columns: int) -> torch.Tensor:
    """The square images of a grid picture with so many columns: uint8 (rows, columns, 3, size, size)."""
    picture = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).movedim(-1, 0)[:, PADDING:, PADDING:]
    step = picture.shape[-1] // columns
    return picture.unfold(1, step - PADDING, step).unfold(2, step - PADDING, step).movedim(0, 2)


def overviews(folder: Path, preset: str, labels: dict[str, bool], columns: int) -> None:
    """Makes the two pictures of all priors from their grids.

    Args:
        labels: the priors in the pictures' order, and whether each was trained.
        columns: of a grid of samples.
    """
    names = [file_name(preset, label) for label in labels]
    samples = [cells(folder / f"{name}.png", columns)[:, :2].flatten(0, 1) for name in names]
    save_grid(image_grid(torch.cat(samples), len(samples[0])), folder / f"{preset}.png")
    stacks = []
    for name, label in zip(names, labels, strict=True):
        shown, given, completed = cells(folder / f"{name}_completed.png", COLUMNS).unflatten(0, (-1, 3)).unbind(1)
        stacks = stacks or [shown.flatten(0, 1), given.flatten(0, 1)]
        stacks += [completed.flatten(0, 1)] if labels[label] else []
    save_grid(image_grid(torch.cat(stacks), len(stacks[0])), folder / f"{preset}_completed.png")
