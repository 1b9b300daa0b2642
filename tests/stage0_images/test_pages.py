"""docs/guide/images.md says what a user cannot see otherwise: which names, endings and files mean something."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stage0_images.folders import SYSTEM
from stage0_images.labels import LABEL_NAMES
from stage0_images.metadata import FILE, NAMES
from stage0_images.pixels import FORMATS, image_suffixes
from stage0_images.splits import SPLIT_WORDS

WRITTEN = {"MPO": "JPEG", "JPEG2000": "JPEG 2000", "PNG": "PNG", "WEBP": "WebP"}  # MPO: several JPEG images in a file

# A build of Pillow may lack these formats, and then knows no endings of theirs.
AVIF, JPEG_2000 = (".avif", ".avifs"), (".j2c", ".j2k", ".jp2", ".jpc", ".jpf", ".jpx")


@pytest.fixture
def page(repository: Path) -> str:
    return " ".join((repository / "docs" / "guide" / "images.md").read_text(encoding="utf-8").split())


def test_the_page_names_every_word_for_a_split_every_label_column_and_every_table_of_labels(page: str) -> None:
    for words in (*SPLIT_WORDS.values(), LABEL_NAMES):
        assert sum(order in page for order in (", ".join(words), f"{', '.join(words[:-1])} or {words[-1]}")) >= 1, words
    assert all(f"`{name}`" in page for name in (*NAMES, FILE))


def test_the_page_names_every_format_and_says_what_is_taken_of_an_animation(page: str) -> None:
    (formats,) = (line for line in page.split(". ") if "`prepare` reads JPEG" in line)
    assert all(WRITTEN.get(name, name) in formats for name in FORMATS)
    assert "Of an animation or a file with several pages it takes the first image" in page


def test_the_page_names_every_ending_of_an_image_and_no_other(page: str) -> None:
    endings = page.split("The endings, in upper or lower case, are ")[1].split(". The format")[0]
    assert set(re.findall(r"`(\.\w+)`", endings)) == image_suffixes().union(AVIF, JPEG_2000)


def test_the_page_says_that_runs_in_a_copy_of_the_repository_need_an_absolute_path(page: str) -> None:
    assert "`dvc exp run --temp`" in page and "must be absolute" in page


def test_the_page_names_every_folder_of_operating_systems(page: str) -> None:
    assert all(f"`{name}`" in page.lower() for name in SYSTEM)
