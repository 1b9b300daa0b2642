"""A source gets no file from outside: not by a row, a link, a README, nor the files of a saved or a Hub dataset."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_sources import contents, saved, table, write_images, write_parquet

from stage0_images import reading
from stage0_images.sources import hub_folder


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
