"""data/codes: what is written in parts reads as one array (passes, n, N), and wrong codes are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from written_parts import write_codes

from tessera.artifacts.files import json_text
from tessera.artifacts.publishing import publishing
from tessera.codes.layout import CodeLayout, Level
from tessera.codes.store import PassArray, open_codes
from tessera.errors import UserError

TWO = CodeLayout((3, 16, 24), (Level(2, 3, 1, 10), Level(4, 6, 1, 300)))
COUNTS = {"train": 11, "validation": 2, "test": 2}
CLASSES = ("a", "b", "c", "d")


def publish(
    folder: Path,
    passes: int = 3,
    part_rows: int = 4,
    highest: int | None = None,
    labels: bool = True,
    wrong_label: int | None = None,
) -> dict[str, np.ndarray]:
    """Codes as `extract_codes` publishes them: train with `passes` passes, validation and test with one."""
    values, written, numbers = np.random.default_rng(0), {}, {}
    with publishing(folder, "codes", {"vqvae": "a" * 64, "prepared": "b" * 64}) as staging:
        for name, count in COUNTS.items():
            repeats = passes if name == "train" else 1
            written[name] = values.integers(0, TWO.codebook_sizes.numpy(), (repeats, count, TWO.num_tokens))
            if highest is not None:
                written[name][-1, -1, 0] = highest
            numbers[name] = np.arange(count) % 4
            if wrong_label is not None:
                numbers[name][-1] = wrong_label
        write_codes(staging, TWO, CLASSES if labels else None, written, numbers if labels else {}, part_rows)
    return written


def test_open_codes_gives_splits_passes_and_labels(tmp_path):
    written = publish(tmp_path / "codes")
    codes = open_codes(tmp_path / "codes")
    assert codes.layout == TWO and codes.classes == CLASSES and codes.num_classes == 4
    assert codes.manifest.parents["vqvae"] == "a" * 64
    train = codes["train"]
    assert (len(train), train.passes, len(codes["test"]), codes["test"].passes) == (11, 3, 2, 1)
    assert torch.equal(train.rows(slice(None)), torch.from_numpy(written["train"][0]))
    picked = train.rows(np.array([10, 0]), np.array([2, 1]))
    assert picked.dtype == torch.int64 and torch.equal(picked, torch.from_numpy(written["train"][[2, 1], [10, 0]]))
    assert train.label_tensor(np.array([3, 1])).tolist() == [3, 1]


def test_unlabelled_codes_have_no_labels(tmp_path):
    publish(tmp_path / "codes", labels=False)
    codes = open_codes(tmp_path / "codes")
    assert codes.classes is None and codes.num_classes == 0 and codes["train"].label_tensor(slice(None)) is None


def test_the_files_are_parts_of_each_pass_in_the_smallest_dtype(tmp_path):
    publish(tmp_path / "codes")
    names = sorted(path.relative_to(tmp_path / "codes").as_posix() for path in (tmp_path / "codes").rglob("*.npy"))
    parts = [f"train/pass-{number:03d}/codes-{part:05d}.npy" for number in range(3) for part in range(3)]
    singles = [f"{name}/pass-000/codes-00000.npy" for name in ("test", "validation")]
    assert names == sorted([*parts, *singles, *(f"{name}/labels.npy" for name in COUNTS)])
    assert np.load(tmp_path / "codes" / parts[0]).dtype == np.uint16
    assert json.loads((tmp_path / "codes" / "layout.json").read_text())["splits"]["train"] == {
        "images": 11,
        "passes": 3,
    }


@pytest.mark.parametrize("part_rows", [1, 4, 11, 100])
def test_parts_read_as_one_array_of_passes(tmp_path, part_rows):
    expected = publish(tmp_path / "codes", part_rows=part_rows)["train"]
    tokens = open_codes(tmp_path / "codes")["train"].tokens
    assert tokens.shape == expected.shape and tokens.dtype == np.uint16
    many, few = np.random.default_rng(1).integers(0, 11, (2, 40)) % [[3], [11]], np.array([2, -1, 0])
    keys = [
        0,
        -1,
        slice(1, None),
        slice(None),
        (1, slice(2, 9)),
        (2, slice(9, 1, -3)),
        (0, few),
        (few, few),
        (np.array([0, 2]), slice(3, 8)),
        (slice(0, 2), few),
        (1, 5),
        (0, np.arange(11) % 2 == 0),
        tuple(many),
        (few[:, None], np.array([[1, 2]])),
    ]
    for key in keys:
        np.testing.assert_array_equal(tokens[key], expected[key])
    np.testing.assert_array_equal(np.asarray(tokens), expected)


@pytest.mark.parametrize("key", [(0, 11), (0, -12), (3, 0), (np.array([0, 1]), np.array([0, 11]))])
def test_rows_of_another_pass_are_not_reached_by_an_index_too_large(key):
    with pytest.raises(IndexError):
        PassArray(np.zeros((33, 5), np.uint8), 3)[key]


def test_a_code_outside_its_codebook_is_refused_when_it_is_read(tmp_path):
    """The coarse level has 10 codes; the fine level's 300 make the dtype wide enough for more."""
    publish(tmp_path / "codes", highest=10)
    train = open_codes(tmp_path / "codes")["train"]
    train.rows(slice(0, 10))
    with pytest.raises(
        UserError, match=r"token 0 holds the code 10, but its codebook ends at 9; .*stage1_vqvae\.extract"
    ):
        train.rows(slice(8, 11), 2)


@pytest.mark.parametrize("label", [4, -1])
def test_a_label_without_a_class_is_refused_on_opening(tmp_path, label):
    publish(tmp_path / "codes", wrong_label=label)
    with pytest.raises(UserError, match=rf"labels\.npy: label {label} in row \d+, expected 0 to 3; make it anew"):
        open_codes(tmp_path / "codes")


@pytest.mark.parametrize("name", ["train/pass-000/codes-00000.npy", "test/labels.npy", "layout.json"])
def test_damaged_codes_are_refused(tmp_path, name):
    publish(tmp_path / "codes")
    file = tmp_path / "codes" / name
    whole = file.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"python -m stage1_vqvae\.extract"):
            open_codes(tmp_path / "codes")


@pytest.mark.parametrize("change", [{"part_rows": 5}, {"splits": {"train": [3, 11]}}, {"layout": {}}, {"classes": 3}])
def test_a_description_of_another_version_is_one_line(tmp_path, change):
    publish(tmp_path / "codes")
    raw = json.loads((tmp_path / "codes" / "layout.json").read_text())
    files = {path: path.read_bytes() for path in (tmp_path / "codes").rglob("*") if path.is_file()}
    with publishing(tmp_path / "codes", "codes", {}) as staging:
        for path, data in files.items():
            if path.name != "manifest.json":
                target = staging / path.relative_to(tmp_path / "codes")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
        (staging / "layout.json").write_text(json_text(raw | change), encoding="utf-8")
    with pytest.raises(UserError, match=r"make it anew with `python -m stage1_vqvae\.extract`") as caught:
        open_codes(tmp_path / "codes")
    assert "\n" not in str(caught.value)
