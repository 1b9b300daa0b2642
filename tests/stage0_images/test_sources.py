"""Every kind of source opens as the same splits, labels and images; a wrong one is refused; names are escaped."""

from __future__ import annotations

from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_sources import png, saved, table, value_of, values_of, write_images, write_parquet


def test_digits_have_their_names_and_full_range(opened):
    source = opened("digits")
    split = source.splits["train"]
    assert source.classes == tuple("0123456789") and list(source.splits) == ["train"]
    assert split.count == 1797 and split.labels.dtype == np.int64 and set(split.labels) == set(range(10))
    image = split.fetch(np.array([0]))[0].content
    assert image.shape == (8, 8) and image.dtype == np.uint8 and image.max() == round(15 * 255 / 16)
    assert opened("digits", use_labels=False).classes is None


@pytest.mark.parametrize("readme", [False, True])
def test_a_folder_in_the_hubs_layout_is_read(opened, in_tmp, readme):
    names = ["cat", "dog"]
    folder = write_parquet(
        in_tmp / "pets", train=table([10, 20, 30], label=([1, 0, 1], names)), test=table([40], label=([0], names))
    )
    if readme:
        files = "".join(f"  - {{split: {s}, path: data/{s}-*}}\n" for s in ("train", "test"))
        (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n")
    before = sorted(folder.rglob("*"))
    source = opened(folder)
    assert source.classes == ("cat", "dog") and sorted(source.splits) == ["test", "train"]
    assert source.splits["train"].labels.tolist() == [1, 0, 1]
    assert values_of(source.splits["train"]) == [10, 20, 30] and values_of(source.splits["test"]) == [40]
    assert sorted(folder.rglob("*")) == before, "the user's folder is left as it was"


def test_files_beside_parquet_are_counted_unless_they_describe_the_dataset(opened, in_tmp):
    folder = write_parquet(in_tmp / "pets", train=table([10, 20]))
    write_images(folder, {"data/photo.png": 1})
    others = ("notes.txt", "more.zip", "list.csv", "checksums")
    for name in (*others, "README.md", "LICENSE", "LICENSE.txt", "card.json"):
        (folder / name).touch()
    source = opened(folder)
    assert values_of(source.splits["train"]) == [10, 20]
    kinds = {".png": "data/photo.png", ".txt": others[0], ".zip": others[1], ".csv": others[2]}
    expected = {file: f"{ending} beside parquet" for ending, file in kinds.items()}
    assert {one.file: one.kind for one in source.aside} == expected | {"checksums": "without an ending beside parquet"}


def test_images_that_rows_of_parquet_name_are_not_left_aside(opened, in_tmp):
    folder = write_images(in_tmp / "pets", {"1.png": 1})
    rows = datasets.Dataset.from_dict({"image": ["1.png"]}).cast_column("image", datasets.Image(decode=False))
    pq.write_table(rows.with_format("arrow")[:], folder / "train.parquet")
    source = opened(folder)
    assert values_of(source.splits["train"]) == [1] and source.aside == ()


def test_two_folders_of_one_name_are_not_confused(opened, in_tmp):
    first = write_parquet(in_tmp / "a" / "pets", train=table([10]))
    second = write_parquet(in_tmp / "b" / "pets", train=table([20]))
    assert values_of(opened(first).splits["train"]) == [10]
    assert values_of(opened(second).splits["train"]) == [20]


def test_rows_are_fetched_in_the_order_asked_for(opened, in_tmp):
    split = opened(write_parquet(in_tmp / "pets", train=table([10, 20, 30]))).splits["train"]
    assert [value_of(image.content) for image in split.fetch(np.array([2, 0]))] == [30, 10]


def test_encoded_bytes_are_images_where_the_column_is_named(opened, in_tmp, refused):
    (in_tmp / "raw").mkdir()
    pq.write_table(pa.table({"picture": [png(7)], "y": ["a"]}), in_tmp / "raw" / "train.parquet")
    assert values_of(opened(in_tmp / "raw", image_column="picture").splits["train"]) == [7]
    assert "name one of its columns: picture, y" in refused(in_tmp / "raw")
    assert "holds no images" in refused(in_tmp / "raw", image_column="y")


def test_saved_datasets_are_read(opened, in_tmp):
    names = ["cat", "dog"]
    train, test = table([1, 2], label=([0, 1], names)), table([3], label=([1], names))
    datasets.DatasetDict({"train": train, "dev": test}).save_to_disk(in_tmp / "dict")
    train.save_to_disk(in_tmp / "single")
    source = opened(in_tmp / "dict")
    assert sorted(source.splits) == ["train", "validation"] and source.splits["validation"].name == "dev"
    assert values_of(source.splits["validation"]) == [3] and source.splits["validation"].labels.tolist() == [1]
    single = opened(in_tmp / "single")
    assert list(single.splits) == ["train"] and values_of(single.splits["train"]) == [1, 2]


def test_a_damaged_saved_dataset_is_refused(in_tmp, refused):
    table([1, 2]).save_to_disk(in_tmp / "saved")
    for file in (in_tmp / "saved").glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:50])
    assert "cannot be read as a dataset" in refused(in_tmp / "saved")


def test_a_damaged_parquet_file_is_refused(in_tmp, capfd, refused):
    folder = write_parquet(in_tmp / "pets", train=table([1]))
    file = next(folder.rglob("*.parquet"))
    file.write_bytes(file.read_bytes()[:100])
    assert "cannot be read as a dataset" in refused(folder)
    assert capfd.readouterr().err == "", "nothing but the one line"


@pytest.mark.parametrize("source", ["./gone", "../gone", "~/gone-away", "/gone/away", "gone", "a/b/c", "here/gone"])
def test_a_missing_folder_is_not_taken_for_a_hub_id(in_tmp, source, refused):
    (in_tmp / "here").mkdir()
    assert "no such folder" in refused(source, revision="main")


def test_a_file_is_not_a_source(in_tmp, refused):
    assert "is a file" in refused(in_tmp / "stand-in")


def test_without_network_a_hub_id_says_so(monkeypatch, capfd, refused):
    # Offline mode fails as a machine without a network does, without its retries.
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refused("nobody-at-all/no-such-images", revision="main")
    assert "no network to the Hub" in message and "data.source and data.watch" in message
    assert capfd.readouterr().err == ""


def test_a_hub_id_is_asked_for_with_its_revision_and_configuration(opened, monkeypatch):
    asked = {}

    class Builder:
        config = SimpleNamespace(data_files={"train": ["hf://datasets/owner/name@abc/train.parquet"]})

        def download_and_prepare(self):
            asked["prepared"] = True

        def as_dataset(self):
            return datasets.DatasetDict({"train": table([5])})

    def load_dataset_builder(**arguments):
        asked.update(arguments)
        return Builder()

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    source = opened("owner/name", revision="abc", configuration="small")
    assert asked == {"path": "owner/name", "revision": "abc", "name": "small", "prepared": True}
    assert values_of(source.splits["train"]) == [5]


def test_watch_must_be_the_local_folder(opened, in_tmp, refused):
    write_images(in_tmp / "pets", {"1.png": 1})
    assert "set it to 'pets' too" in refused("pets", watch="stand-in")
    assert opened("pets", watch="./pets").splits["train"].count == 1
    assert "is not a file" in refused("digits", watch="gone")
    assert "is not a file" in refused("owner/name", watch="pets", revision="main")


def test_a_training_split_is_needed_and_other_splits_are_named(opened, in_tmp, refused):
    assert "no training split, only test" in refused(saved(in_tmp / "test", test=table([1])))
    assert "no training split, only test" in refused(write_images(in_tmp / "plain", {"test/1.png": 1}))
    both = opened(saved(in_tmp / "extra", train=table([1]), extra=table([2])))
    assert list(both.splits) == ["train"] and both.unused == ("extra",)


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
