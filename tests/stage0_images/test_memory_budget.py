"""Threads together read, fetch and decode within a budget of memory; rows of tables are fetched in portions."""

from __future__ import annotations

import dataclasses
import io
import threading
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
from image_sources import png, write_images, write_parquet
from PIL import Image

from stage0_images import columns, pixels, reading, writing
from stage0_images.dividing import Part
from stage0_images.pixels import decoding, read_image
from stage0_images.reading import Budget, DiskFile, encoded


def test_threads_together_hold_no_more_than_the_budget():
    budget, held, most, lock = Budget(100), 0, 0, threading.Lock()

    def work(amount: int) -> None:
        nonlocal held, most
        with budget.holding(amount):
            with lock:
                held += min(amount, 100)
                most = max(most, held)
            threading.Event().wait(0.001)
            with lock:
                held -= min(amount, 100)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [30, 60, 10, 250, 45] * 20))
    assert 60 < most <= 100, "a larger piece than the budget is let in alone"


def test_large_images_are_decoded_one_after_the_other(monkeypatch, params):
    """Each takes more than half of the budget, so that eight threads decode one at a time."""
    monkeypatch.setattr(pixels, "DECODING", Budget(16 * pixels.PIXEL_BYTES * 3 // 2))
    inside, most, lock, whole = 0, 0, threading.Lock(), pixels._in_channels

    def watched(image, params):
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        threading.Event().wait(0.005)
        with lock:
            inside -= 1
        return whole(image, params)

    monkeypatch.setattr(pixels, "_in_channels", watched)
    with decoding(), ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(lambda value: read_image(png(value), params().data), range(16)))) == 16
    assert most == 1


def test_files_wait_for_memory_before_they_are_read(monkeypatch, in_tmp):
    write_images(in_tmp, {"1.png": 1, "2.png": 2})
    size = (in_tmp / "1.png").stat().st_size
    monkeypatch.setattr(reading, "READING", Budget(size))
    entered = threading.Event()

    def second() -> None:
        with encoded(DiskFile(in_tmp / "2.png"), size):
            entered.set()

    with encoded(DiskFile(in_tmp / "1.png"), size):
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.1)
    thread.join(10)
    assert entered.is_set()


def noise(seed: int, side: int) -> bytes:
    """A PNG of about side * side bytes, since noise cannot be compressed."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side), np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_rows_of_tables_are_fetched_in_portions_of_bounded_bytes(opened, in_tmp, monkeypatch):
    monkeypatch.setattr(columns, "PORTION_BYTES", 1000)
    rows = [png(1)] * 40 + [noise(0, 60), None, *[png(2)] * 2, noise(1, 20), noise(2, 20), noise(3, 20)]
    feature = {"image": datasets.Image()}
    images = datasets.Dataset.from_dict(
        {"image": [data and {"bytes": data, "path": None} for data in rows]}, features=datasets.Features(feature)
    )
    split = opened(write_parquet(in_tmp / "tables", train=images)).splits["train"]
    lengths = np.array([len(data or b"") for data in rows])
    assert lengths[0] * 32 > 1000 and lengths[40] > 1000 and 400 < lengths[-1] < 500
    for wanted in (np.arange(len(rows)), np.arange(1, len(rows), 2)):
        portions = list(split.portions(wanted))
        assert np.array_equal(np.concatenate([portion for portion, _ in portions]), wanted)
        for portion, size in portions:
            assert size == lengths[portion].sum() and len(portion) <= 32 and (size <= 1000 or len(portion) == 1)
        assert len(portions) < len(wanted) / 2
    assert [image.content for image in split.images(np.arange(len(rows)))] == rows
    assert [len(portion) for portion, _ in split.portions(np.arange(9), 4)] == [4, 4, 1]


def test_files_and_pixels_are_cut_into_portions_by_their_number(opened, in_tmp):
    folder = write_images(in_tmp / "pets", {f"{number:02}.png": 1 for number in range(40)})
    portions = list(opened(folder).splits["train"].portions(np.arange(40)))
    assert [(len(rows), size) for rows, size in portions] == [(32, 0), (8, 0)]


def test_rows_that_threads_have_not_decoded_yet_stay_within_the_budget(opened, in_tmp, monkeypatch, params):
    monkeypatch.setattr(columns, "PORTION_BYTES", 1000)
    monkeypatch.setattr(reading, "FETCHED", Budget(2500))
    rows = datasets.Dataset.from_dict(
        {"image": [{"bytes": noise(seed, 20), "path": None} for seed in range(60)]},
        features=datasets.Features({"image": datasets.Image()}),
    )
    split = opened(write_parquet(in_tmp / "tables", train=rows)).splits["train"]
    held, most, lock = 0, 0, threading.Lock()

    def fetch(wanted: np.ndarray) -> list:
        nonlocal held, most
        images = split.fetch(wanted)
        with lock:
            held += sum(len(image.content) for image in images)
            most = max(most, held)
        return images

    def slow(content: bytes, params) -> np.ndarray:
        nonlocal held
        threading.Event().wait(0.002)
        result = read_image(content, params)
        with lock:
            held -= len(content)
        return result

    monkeypatch.setattr(writing, "read_image", slow)
    part = Part(dataclasses.replace(split, fetch=fetch), np.arange(60))
    with decoding(), ThreadPoolExecutor(8) as pool:
        blocks = list(writing.decoded(part, params().data, pool, 16))
    assert [row for block in blocks for row, *_ in block] == list(range(60))
    assert 1000 < most <= 2500 and held == 0
