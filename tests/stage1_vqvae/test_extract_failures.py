"""An extraction that is refused or fails leaves the old codes; one that is killed goes on after its last part."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from stage1_vqvae import extract
from stage1_vqvae.model import VQVAE
from tessera import paths
from tessera.artifacts.manifests import read_manifest
from tessera.images.prepared import ImageSplit

pytestmark = pytest.mark.usefixtures("on_the_cpu")
Write = Callable[..., None]


def written(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_vqvae_of_other_images_is_refused_and_old_codes_stay(
    trained: Callable, write_prepared: Write, capsys: pytest.CaptureFixture
) -> None:
    trained([8], [4])
    assert extract.main([]) == 0
    old, before = written(paths.CODES), read_manifest(paths.PREPARED, "prepared").identity
    write_prepared((3, 8, 16), seed=1)
    after = read_manifest(paths.PREPARED, "prepared").identity
    capsys.readouterr()
    assert extract.main([]) == 2
    error = capsys.readouterr().err
    assert error == (
        f"error: models/vqvae: made from another prepared: it names {before[:16]}, the prepared here is {after[:16]}; "
        "make it anew with `python -m stage1_vqvae.train` or `dvc repro`\n"
    )
    assert written(paths.CODES) == old


def test_a_damaged_vqvae_is_refused_and_old_codes_stay(trained: Callable, capsys: pytest.CaptureFixture) -> None:
    trained([8], [4])
    assert extract.main([]) == 0
    old = written(paths.CODES)
    path = paths.VQVAE / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    capsys.readouterr()
    assert extract.main([]) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith(f"error: {path}: its contents differ from the manifest's SHA-256") and error.count("\n") == 1
    )
    assert written(paths.CODES) == old


@pytest.mark.parametrize("refine", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_extraction_that_is_killed_goes_on_after_its_last_part(
    trained: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, refine: int
) -> None:
    trained([8, 20], [4, 2], changes={"extract_codes.refine": refine})
    assert extract.main([]) == 0
    whole, folders = written(paths.CODES), sorted(path.name for path in paths.CODES.parent.iterdir())
    figures = written(extract.RESULTS)
    shutil.rmtree(paths.CODES)  # as DVC does before it runs the stage
    parts, encode = [], extract.encode

    def noted(model: VQVAE, split: ImageSplit, change: extract.Pass, *rest: object) -> Iterator[torch.Tensor]:
        parts.append((len(split), change))
        yield from encode(model, split, change, *rest)
        if len(parts) == 12:
            raise KeyboardInterrupt

    monkeypatch.setattr(extract, "encode", noted)
    assert extract.main([]) == 130 and len(parts) == 12
    assert not paths.CODES.exists() and len(list(Path(".state/extract_codes").glob("*/*/*/codes*.npy"))) == 11
    capsys.readouterr()
    assert extract.main([]) == 0
    assert "going on after 11 of 20 parts" in capsys.readouterr().err
    # The part that was not finished is made again, and no other.
    assert parts[12] == parts[11] and len(set(parts)) == 20 and len(parts) == 21
    assert written(paths.CODES) == whole and written(extract.RESULTS) == figures
    assert sorted(path.name for path in paths.CODES.parent.iterdir()) == folders
    assert not list(Path(".state/extract_codes").iterdir())


def test_parts_of_other_images_are_not_taken(
    trained: Callable, write_prepared: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained([8], [4])

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(extract, "publish", die)
        assert extract.main([]) == 130
    trained([8], [4], changes={"stage1_vqvae.training.seed": 1})
    assert extract.main([]) == 0
    fresh = written(paths.CODES)
    shutil.rmtree(".state/extract_codes")
    assert extract.main([]) == 0 and written(paths.CODES) == fresh


def test_an_extraction_that_dies_leaves_the_old_codes(trained: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    trained([8], [4])
    assert extract.main([]) == 0
    old = written(paths.CODES)

    def die(counts: list) -> dict:
        raise MemoryError

    monkeypatch.setattr("tessera.codes.figures.codebook_figures", die)
    assert extract.main([]) == 2
    assert written(paths.CODES) == old
    assert sorted(p.name for p in paths.CODES.parent.iterdir()) == ["codes", "prepared"]
