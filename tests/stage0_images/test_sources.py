"""Every kind of source opens as the same splits, labels and images; a wrong one is refused in one line."""

from __future__ import annotations

import io
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stage0_images.sources import open_source
from tessera.errors import UserError


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 4), value).save(file, "PNG")
    return file.getvalue()


def value_of(content: bytes | Path) -> int:
    return int(np.asarray(Image.open(content if isinstance(content, Path) else io.BytesIO(content)))[0, 0])


def values_of(split) -> list[int]:
    return [value_of(image.content) for image in split.fetch(np.arange(split.count))]


def write_images(folder: Path, names: dict[str, int]) -> Path:
    for name, value in names.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(value))
    return folder


def table(values: list[int], image: str = "image", **columns) -> datasets.Dataset:
    """A dataset with an image column; a column given as (values, class names) is one of class labels."""
    features = {image: datasets.Image()}
    data = {image: [{"bytes": png(value), "path": None} for value in values]}
    for name, column in columns.items():
        numbers, names = column if isinstance(column, tuple) else (column, None)
        kind = "string" if isinstance(numbers[0], str) else "float32" if isinstance(numbers[0], float) else "int64"
        features[name] = datasets.ClassLabel(names=names) if names else datasets.Value(kind)
        data[name] = numbers
    return datasets.Dataset.from_dict(data, features=datasets.Features(features))


def write_parquet(folder: Path, **splits: datasets.Dataset) -> Path:
    """A folder in the Hub's layout."""
    (folder / "data").mkdir(parents=True)
    for name, split in splits.items():
        # Through Arrow: `to_parquet` shows a progress bar of its own.
        pq.write_table(split.with_format("arrow")[:], folder / "data" / f"{name}-00000-of-00001.parquet")
    return folder


@pytest.fixture
def opened(in_tmp, params):
    """`opened(source, label_column="y", ...)`, watching what the source needs, from an empty current folder."""
    (in_tmp / "cache").mkdir()
    (in_tmp / "stand-in").touch()

    def opener(source, **changes):
        local = Path(source).expanduser().is_dir()
        data = {"source": str(source), "watch": str(source) if local else "stand-in"} | changes
        return open_source(params().data.model_copy(update=data), in_tmp / "cache")

    return opener


def refusal(opened, source, **changes) -> str:
    with pytest.raises(UserError) as error:
        opened(source, **changes)
    assert "\n" not in str(error.value)
    return str(error.value)


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


def test_two_folders_of_one_name_are_not_confused(opened, in_tmp):
    first = write_parquet(in_tmp / "a" / "pets", train=table([10]))
    second = write_parquet(in_tmp / "b" / "pets", train=table([20]))
    assert values_of(opened(first).splits["train"]) == [10]
    assert values_of(opened(second).splits["train"]) == [20]


def test_rows_are_fetched_in_the_order_asked_for(opened, in_tmp):
    split = opened(write_parquet(in_tmp / "pets", train=table([10, 20, 30]))).splits["train"]
    assert [value_of(image.content) for image in split.fetch(np.array([2, 0]))] == [30, 10]


def test_encoded_bytes_are_images_where_the_column_is_named(opened, in_tmp):
    (in_tmp / "raw").mkdir()
    pq.write_table(pa.table({"picture": [png(7)], "y": ["a"]}), in_tmp / "raw" / "train.parquet")
    assert values_of(opened(in_tmp / "raw", image_column="picture").splits["train"]) == [7]
    assert "name one of its columns: picture, y" in refusal(opened, in_tmp / "raw")
    assert "holds no images" in refusal(opened, in_tmp / "raw", image_column="y")


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


def test_a_damaged_saved_dataset_is_refused(opened, in_tmp):
    table([1, 2]).save_to_disk(in_tmp / "saved")
    for file in (in_tmp / "saved").glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:50])
    assert "cannot be read as a dataset" in refusal(opened, in_tmp / "saved")


def test_class_folders_give_labels(opened, in_tmp):
    folder = write_images(
        in_tmp / "pets", {"dog/b.png": 2, "cat/deep/a.png": 1, "cat/.hidden.png": 9, "cat/note.txt": 0}
    )
    source = opened(folder)
    split = source.splits["train"]
    assert source.classes == ("cat", "dog") and split.labels.tolist() == [0, 1] and values_of(split) == [1, 2]
    assert [image.file for image in split.fetch(np.arange(2))] == ["cat/deep/a.png", "dog/b.png"]
    assert opened(folder, use_labels=False).classes is None


def test_a_folder_without_class_folders_has_no_labels(opened, in_tmp):
    flat = opened(write_images(in_tmp / "flat", {"train_1.png": 1, "test_2.PNG": 2}))
    assert flat.classes is None and list(flat.splits) == ["train"] and flat.splits["train"].labels is None
    assert values_of(flat.splits["train"]) == [2, 1], "by file name; a file's name makes no split"
    assert opened(write_images(in_tmp / "one", {"images/1.png": 1, "images/2.png": 2})).classes is None


def test_split_folders_give_splits(opened, in_tmp):
    files = {"train/cat/1.png": 1, "train/dog/2.png": 2, "Val/dog/3.png": 3, "test/cat/4.png": 4}
    source = opened(write_images(in_tmp / "pets", files))
    assert {name: split.labels.tolist() for name, split in source.splits.items()} == {
        "train": [0, 1],
        "validation": [1],
        "test": [0],
    }
    flat = opened(write_images(in_tmp / "flat", {"train/1.png": 1, "test/2.png": 2}))
    assert flat.classes is None and values_of(flat.splits["test"]) == [2]


def test_linked_folders_are_followed_and_loops_are_not(opened, in_tmp):
    elsewhere = write_images(in_tmp / "elsewhere", {"1.png": 1})
    folder = write_images(in_tmp / "pets", {"dog/2.png": 2})
    (folder / "cat").symlink_to(elsewhere)
    (folder / "dog" / "loop").symlink_to(folder)
    assert values_of(opened(folder).splits["train"]) == [1, 2]


def test_ambiguous_folders_are_refused(opened, in_tmp):
    mixed = write_images(in_tmp / "mixed", {"test/1.png": 1, "cat/1.png": 1})
    assert "mixes split folders (test) with others (cat)" in refusal(opened, mixed)
    stray = write_images(in_tmp / "stray", {"cat/1.png": 1, "dog/1.png": 1, "3.png": 1})
    assert "others do not (3.png)" in refusal(opened, stray)
    assert opened(stray, use_labels=False).splits["train"].count == 3


def test_folders_without_images_are_refused(opened, in_tmp):
    (in_tmp / "empty" / "sub").mkdir(parents=True)
    assert "is an empty folder" in refusal(opened, in_tmp / "empty")
    (in_tmp / "texts").mkdir()
    (in_tmp / "texts" / "a.txt").write_text("a")
    assert "no image" in refusal(opened, in_tmp / "texts")


def test_a_damaged_parquet_file_is_refused(opened, in_tmp, capfd):
    folder = write_parquet(in_tmp / "pets", train=table([1]))
    file = next(folder.rglob("*.parquet"))
    file.write_bytes(file.read_bytes()[:100])
    assert "cannot be read as a dataset" in refusal(opened, folder)
    assert capfd.readouterr().err == "", "nothing but the one line"


@pytest.mark.parametrize("source", ["./gone", "../gone", "~/gone-away", "/gone/away", "gone", "a/b/c", "here/gone"])
def test_a_missing_folder_is_not_taken_for_a_hub_id(opened, in_tmp, source):
    (in_tmp / "here").mkdir()
    assert "no such folder" in refusal(opened, source, revision="main")


def test_a_file_is_not_a_source(opened, in_tmp):
    assert "is a file" in refusal(opened, in_tmp / "stand-in")


def test_a_hub_id_needs_a_revision(opened):
    assert refusal(opened, "owner/name").startswith("data.revision: required for the Hub id 'owner/name'")


def test_without_network_a_hub_id_says_so(opened, monkeypatch, capfd):
    # Offline mode fails as a machine without a network does, without its retries.
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refusal(opened, "nobody-at-all/no-such-images", revision="main")
    assert "no network to the Hub" in message and "data.source and data.watch" in message
    assert capfd.readouterr().err == ""


def test_a_hub_id_is_asked_for_with_its_revision_and_configuration(opened, monkeypatch):
    asked = {}

    def load_dataset(**arguments):
        asked.update(arguments)
        return datasets.DatasetDict({"train": table([5])})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = opened("owner/name", revision="abc", configuration="small")
    assert asked == {"path": "owner/name", "revision": "abc", "name": "small"}
    assert values_of(source.splits["train"]) == [5]


def test_watch_must_be_the_local_folder(opened, in_tmp):
    write_images(in_tmp / "pets", {"1.png": 1})
    assert "set it to 'pets' too" in refusal(opened, "pets", watch="stand-in")
    assert opened("pets", watch="./pets").splits["train"].count == 1
    assert "is not a file" in refusal(opened, "digits", watch="gone")
    assert "is not a file" in refusal(opened, "owner/name", watch="pets", revision="main")


def saved(folder: Path, **splits: datasets.Dataset) -> Path:
    datasets.DatasetDict(splits).save_to_disk(folder)
    return folder


def test_a_training_split_is_needed_and_other_splits_are_named(opened, in_tmp):
    assert "no training split, only test" in refusal(opened, saved(in_tmp / "test", test=table([1])))
    assert "no training split, only test" in refusal(opened, write_images(in_tmp / "plain", {"test/1.png": 1}))
    both = opened(saved(in_tmp / "extra", train=table([1]), extra=table([2])))
    assert list(both.splits) == ["train"] and both.unused == ("extra",)


def test_columns_are_found_by_type_or_named(opened, in_tmp):
    fine = ([0, 1], ["a", "b"])
    coarse = ([1, 1], ["x", "y"])
    folder = saved(in_tmp / "two", train=table([1, 2], "img", fine=fine, coarse=coarse))
    message = refusal(opened, folder)
    assert message.startswith("data.label_column: several columns") and "fine, coarse" in message
    assert opened(folder, label_column="coarse").classes == ("x", "y")
    assert opened(folder, use_labels=False).classes is None
    message = refusal(opened, folder, image_column="image")
    assert "no column 'image'" in message and "img, fine, coarse" in message
    assert "no column 'gone'" in refusal(opened, folder, label_column="gone")
    two = table([1, 2], "left").add_column("right", [{"bytes": png(3), "path": None}] * 2)
    two = two.cast_column("right", datasets.Image())
    pair = saved(in_tmp / "pair", train=two)
    assert "several columns of image type (left, right)" in refusal(opened, pair)
    assert values_of(opened(pair, image_column="right").splits["train"]) == [3, 3]


def test_strings_and_integers_named_as_labels_become_classes_in_sorted_order(opened, in_tmp):
    folder = saved(
        in_tmp / "raw",
        train=table([1, 2, 3], number=[10, 2, 10], word=["b", "a", "b"], weight=[0.5, 1.0, 2.0]),
        test=table([4], number=[7], word=["c"], weight=[1.0]),
    )
    assert opened(folder).classes is None, "only class labels are taken without being named"
    numbers = opened(folder, label_column="number")
    assert numbers.classes == ("2", "7", "10")
    assert numbers.splits["train"].labels.tolist() == [2, 0, 2] and numbers.splits["test"].labels.tolist() == [1]
    words = opened(folder, label_column="word")
    assert words.classes == ("a", "b", "c") and words.splits["train"].labels.tolist() == [1, 0, 1]
    assert "expected class labels, integers or strings" in refusal(opened, folder, label_column="weight")


def test_a_test_split_whose_labels_are_secret_is_left_aside_unless_labels_are(opened, in_tmp):
    names = ["a", "b"]
    hidden = saved(
        in_tmp / "hidden", train=table([1, 2], label=([0, 1], names)), test=table([3, 4], label=([-1, -1], names))
    )
    source = opened(hidden)
    assert set(source.splits) == {"train"} and source.unused == ("test (no labels)",)
    assert source.splits["train"].labels.tolist() == [0, 1]
    assert opened(hidden, use_labels=False).splits["test"].labels is None


def test_unlabelled_images_among_labelled_ones_are_refused(opened, in_tmp):
    names = ["a", "b"]
    some = saved(
        in_tmp / "some", train=table([1, 2], label=([0, 1], names)), test=table([3, 4], label=([1, -1], names))
    )
    message = refusal(opened, some)
    assert "1 of 2 images of the split test have no label" in message and "data.use_labels: false" in message
    absent = saved(in_tmp / "absent", train=table([1, 2], label=([0, 1], names)), test=table([3]))
    assert "missing in the split test" in refusal(opened, absent)
    null = saved(in_tmp / "null", train=table([1, 2], word=["a", None]))
    assert "1 of 2 images" in refusal(opened, null, label_column="word")
    other = saved(in_tmp / "other", train=table([1], label=([0], names)), test=table([2], label=([0], ["b", "a"])))
    assert "other classes" in refusal(opened, other)
