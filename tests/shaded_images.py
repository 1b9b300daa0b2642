"""Folders of images of which each has its own shade, and what `prepare` made of them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from tessera.artifacts.files import file_hash
from tessera.images.prepared import open_prepared

PREPARED = Path("data/prepared")


def write_images(folder: Path, count: int, size: tuple[int, int] = (12, 10), classes: bool = True) -> None:
    """Image i has the shade i; its class is i's parity."""
    for i in range(count):
        file = folder / (f"odd/{i:03}.png" if i % 2 else f"even/{i:03}.png") if classes else folder / f"{i:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (i, i, i)).save(file)


def hashes() -> dict[str, str]:
    return {str(file): file_hash(file) for file in sorted(PREPARED.rglob("*")) if file.is_file()}


def shades(split: str) -> list[int]:
    return open_prepared(PREPARED)[split].images[:, 0, 0, 0].tolist()
