"""Files of a source are read within bounds: regular ones, inside the source, in a limited share of the memory."""

from __future__ import annotations

import dataclasses
import io
import os
import resource
import socket
import struct
import threading
import tracemalloc
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_sources import png, saved, table, value_of, write_images, write_parquet
from PIL import Image

from stage0_images import columns, pixels, reading, writing
from stage0_images.dividing import Part
from stage0_images.pixels import decoding, is_image, largest_grey, read_image
from stage0_images.reading import HEADER_BYTES, BadImage, Budget, DiskFile, encoded
from stage0_images.sources import hub_folder


def contents(split) -> list[int | str]:
    """The grey value of each image, or why it is refused."""
    found: list[int | str] = []
    for image in split.fetch(np.arange(split.count)):
        try:
            found.append(value_of(image.content))
        except BadImage as error:
            found.append(str(error))
    return found


def naming(folder: Path, paths: list[str]) -> Path:
    """A folder with a parquet file whose rows have no bytes, but these paths."""
    rows = datasets.Dataset.from_dict({"path": paths}).with_format("arrow")[:]
    images = pa.StructArray.from_arrays(
        [pa.nulls(len(paths), pa.binary()), rows["path"].combine_chunks()], ["bytes", "path"]
    )
    features = datasets.Features({"image": datasets.Image()})
    schema = features.arrow_schema
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table([images], schema=schema), folder / "train.parquet")
    return folder


def test_a_row_that_names_a_file_gets_it_only_from_inside_the_source(opened, in_tmp):
    write_images(in_tmp, {"secret.png": 9, "pets/inside.png": 1, "pets-of-others/2.png": 2})
    (in_tmp / "pets" / "link.png").symlink_to(in_tmp / "secret.png")
    (in_tmp / "pets" / "near.png").symlink_to("inside.png")
    outside = [str(in_tmp / "secret.png"), "../secret.png", "link.png", "/dev/zero", "../pets-of-others/2.png"]
    folder = naming(in_tmp / "pets", ["inside.png", str(in_tmp / "pets" / "inside.png"), "near.png", *outside])
    found = contents(opened(folder).splits["train"])
    assert found == [1, 1, 1, *[reading.OUTSIDE] * len(outside)]


def hub(monkeypatch, data_files: list[str], rows: datasets.Dataset) -> None:
    """A dataset on the Hub that has these files and this training split."""

    class Builder:
        def __init__(self):
            self.config = SimpleNamespace(data_files={"train": data_files})

        def download_and_prepare(self):
            pass

        def as_dataset(self):
            return datasets.DatasetDict({"train": rows})

    monkeypatch.setattr(datasets, "load_dataset_builder", lambda **arguments: Builder())


def test_a_row_of_a_hub_dataset_without_bytes_gets_only_what_was_downloaded_for_it(opened, in_tmp, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(in_tmp / "hub"))
    write_images(in_tmp, {"secret.png": 9})
    own = write_images(hub_folder("owner/name"), {"blobs/1": 5})
    rows = datasets.Dataset.from_dict(
        {"image": [str(in_tmp / "secret.png"), "secret.png", str(own / "blobs/1")]},
        features=datasets.Features({"image": datasets.Image()}),
    )
    hub(monkeypatch, ["hf://datasets/owner/name@abc/train.parquet"], rows)
    split = opened("owner/name", revision="abc").splits["train"]
    assert contents(split) == [reading.OUTSIDE, reading.OUTSIDE, 5]


@pytest.mark.parametrize(
    "file", ["/etc/passwd", "hf://datasets/other/name@abc/1.parquet", "https://example.org/1.parquet"]
)
def test_a_hub_dataset_may_not_name_other_files(monkeypatch, refused, file):
    hub(monkeypatch, ["hf://datasets/owner/name@abc/1.parquet", file], table([1]))
    assert f"names {file}, which is not one of its own files" in refused("owner/name", revision="abc")


@pytest.mark.parametrize("place", ["absolute", "relative"])
def test_a_readme_may_not_name_files_elsewhere(in_tmp, refused, place):
    write_parquet(in_tmp / "private", train=table([9]))
    folder = write_parquet(in_tmp / "pets", train=table([1]))
    file = in_tmp / "private" / "data" / "train-00000-of-00001.parquet"
    named = file if place == "absolute" else os.path.relpath(file, folder)
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {named}\n---\n")
    assert "which is not one of its own files" in refused(folder)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("train/state.json", '"data-00000', '"../../private/train/data-00000'),
        ("dataset_dict.json", "train", "../private/train"),
    ],
)
def test_a_saved_dataset_may_not_name_files_elsewhere(in_tmp, refused, file, old, new):
    saved(in_tmp / "private", train=table([9]))
    folder = saved(in_tmp / "pets", train=table([1]))
    (folder / file).write_text((folder / file).read_text().replace(old, new))
    assert "which does not lie beside it" in refused(folder)
    (folder / file).write_text("[]")
    assert "not as `save_to_disk` writes it" in refused(folder)


def test_what_is_no_regular_file_is_never_waited_for(opened, in_tmp, refused):
    folder = write_images(in_tmp / "pets", {"cat/1.png": 1, "dog/2.png": 2})
    os.mkfifo(folder / "cat" / "pipe.png")
    (folder / "dog" / "endless.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(folder / "unix"))
    source = opened(folder)
    assert contents(source.splits["train"]) == [1, 2]
    assert {one.file for one in source.aside} == {"cat/pipe.png", "dog/endless.png", "unix"}
    for name in ("cat/pipe.png", "dog/endless.png"):  # as if the file had been exchanged after the listing
        assert not is_image(DiskFile(folder / name))
        with pytest.raises(BadImage, match="not a regular file"), encoded(DiskFile(folder / name), 100):
            pass
    parquet = write_parquet(in_tmp / "tables", train=table([1]))
    os.mkfifo(parquet / ".huggingface.yaml")  # `datasets` would wait for it
    assert ".huggingface.yaml: a pipe, a socket or a device; remove it" in refused(parquet)


HUGE = 600 * 2**20


def huge_header(file):
    """Write a PNG file whose header has a chunk of 600 MiB of zeros."""
    size = b"IHDR" + struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    file.write(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(size) - 4) + size + struct.pack(">I", zlib.crc32(size)))
    file.write(struct.pack(">I", HUGE) + b"eXIf")


@pytest.mark.parametrize("zipped", [False, True])
def test_an_unnamed_file_with_a_huge_header_is_not_read_and_set_aside(opened, in_tmp, zipped):
    folder = in_tmp / "pets"
    folder.mkdir()
    if zipped:
        with zipfile.ZipFile(folder / "more.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("1.png", png(1))
            with archive.open("x.dat", "w") as file:
                huge_header(file)
                for _ in range(HUGE // 2**20):
                    file.write(bytes(2**20))
    else:
        (folder / "1.png").write_bytes(png(1))
        with (folder / "x.dat").open("wb") as file:
            huge_header(file)
            file.truncate(file.tell() + HUGE)
    tracemalloc.start()
    try:
        source = opened(folder)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * HEADER_BYTES
    assert contents(source.splits["train"]) == [1]
    assert {one.file for one in source.aside} == {"more/x.dat" if zipped else "x.dat"}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000"])
def test_an_image_is_known_by_its_contents(in_tmp, kind):
    Image.new("RGB", (40, 30), (200, 30, 60)).save(in_tmp / "x.dat", kind)
    assert is_image(DiskFile(in_tmp / "x.dat"))


def test_metadata_that_is_a_pipe_or_huge_is_not_used(opened, in_tmp):
    folder = write_images(in_tmp / "pets", {"1.png": 1})
    with (folder / "metadata.csv").open("wb") as file:
        file.truncate(2**40)
    assert "not used, since it cannot be read (a file of 1099511627776 bytes" in opened(folder).notes[0]


def peak() -> int:
    """The largest memory that this process has used, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_sparse_file_is_refused_without_being_read(in_tmp, params):
    (in_tmp / "sparse.png").write_bytes(png(1))
    os.truncate(in_tmp / "sparse.png", 2 * 2**30)
    before = peak()
    with decoding(), pytest.raises(BadImage, match="a file of 2147483648 bytes, over the 816777216 that are read"):
        read_image(DiskFile(in_tmp / "sparse.png"), params().data)
    assert largest_grey(DiskFile(in_tmp / "sparse.png"), 10**8) is None
    assert peak() - before < 2**26


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


def test_names_that_steer_a_terminal_are_escaped_wherever_they_are_shown(opened, in_tmp, refused):
    evil = "\x1b[31mcat\n"
    folder = write_images(in_tmp / "pets", {f"{evil}/1.png": 1, "dog/2.png": 2, f"{evil}/{evil}.txt/3.png": 3})
    (folder / f"{evil}.heic").write_bytes(b"x")
    (folder / f"{evil}-link").symlink_to(in_tmp)
    message = refused(folder)
    assert r"\x1b[31mcat\n-link: a symbolic link to" in message
    (folder / f"{evil}-link").unlink()
    source = opened(folder)
    assert source.classes == (r"\x1b[31mcat\n", "dog")
    shown = [one.file for one in source.aside] + [one.kind for one in source.aside] + list(source.notes)
    shown += [image.file for image in source.splits["train"].fetch(np.arange(3))]
    assert shown and all(text.isprintable() for text in shown)
    rows = table([1, 2, 3, 4], label=([0, 1, 0, 1], [evil, "dog"]), **{evil: [1, 2, 1, 2]})
    source = opened(write_parquet(in_tmp / "tables", train=rows))
    assert source.classes == (r"\x1b[31mcat\n", "dog") and all(note.isprintable() for note in source.notes)
    assert refused(in_tmp / "tables", image_column=evil).isprintable()
