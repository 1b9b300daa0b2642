"""Images as the .npz file that other tools read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sampling import export, sample
from sampling.pipeline import TwoStagePipeline
from tessera import paths
from tessera.codes.store import open_codes
from tessera.images.pixels import to_uint8
from tessera.images.prepared import open_prepared
from tessera.images.samples import open_samples


def written(*arguments: str) -> dict[str, np.ndarray]:
    assert export.main(["images.npz", *arguments]) == 0
    with np.load("images.npz") as file:
        return {name: file[name] for name in file.files}


def nhwc(pixels: torch.Tensor) -> np.ndarray:
    return pixels.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()


@pytest.mark.slow
def test_samples_test_images_and_reconstructions_are_written_as_adms_evaluator_reads_them(
    tiny_run: Callable, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tessera.footprint.TOGETHER", 6)
    tiny_run()
    assert sample.main([]) == 0
    samples, test = open_samples(paths.SAMPLES), open_prepared(paths.PREPARED)["test"]
    pipeline, codes = TwoStagePipeline.load(paths.MODELS), open_codes(paths.CODES)["test"]
    rebuilt = to_uint8(pipeline.decode_tokens(codes.rows(slice(None))))
    for kind, pixels, labels in (
        ("default", samples["default"].pixels(slice(None)), samples["default"].labels),
        ("unguided", samples["unguided"].pixels(slice(None)), samples["unguided"].labels),
        ("test", test.pixels(slice(None)), test.labels),
        ("reconstructions", rebuilt, test.labels),
    ):
        found = written("--of", kind)
        assert found["arr_0"].dtype == np.uint8 and np.array_equal(found["arr_0"], nhwc(pixels))
        assert found["arr_1"].dtype == np.int64 and np.array_equal(found["arr_1"], labels)
        assert f"{len(pixels)} images of {kind}, with labels" in capsys.readouterr().out
    written()
    before = Path("images.npz").read_bytes()
    assert np.array_equal(written()["arr_0"], nhwc(samples["default"].pixels(slice(None))))
    assert Path("images.npz").read_bytes() == before


def test_images_without_labels_have_none(write_prepared: Callable, write_params: Callable) -> None:
    write_prepared((3, 8, 12), classes=0)
    write_params()
    found = written("--of", "train")
    assert list(found) == ["arr_0"] and found["arr_0"].shape == (50, 8, 12, 3)


@pytest.mark.parametrize("name", ["samples.png", "samples"])
def test_another_ending_is_refused(write_params: Callable, capsys, name: str) -> None:
    write_params()
    assert export.main([name]) == 2
    assert "expected the name of an .npz file, such as samples.npz" in capsys.readouterr().err


def test_without_samples_it_says_what_makes_them(write_params: Callable, capsys) -> None:
    write_params()
    assert export.main(["samples.npz"]) == 2
    assert "sampling.sample" in capsys.readouterr().err and not Path("samples.npz").exists()
