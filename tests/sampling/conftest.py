"""A tiny published run, made by the real entry points, for sampling's tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shipped import parameters

from sampling.pipeline import TwoStagePipeline
from stage1_vqvae import extract
from stage1_vqvae.codebooks import initialise_codebooks
from stage1_vqvae.model import VQVAE
from stage2_prior import train as train_prior
from tessera import paths
from tessera.artifacts.arrays import ArrayWriter
from tessera.artifacts.files import json_text
from tessera.artifacts.models import save_model
from tessera.artifacts.publishing import publishing
from tessera.images.pixels import to_float
from tessera.images.prepared import Stats, open_prepared

SIZE = {"layers": 1, "width": 16, "heads": 2, "dropout": 0.0}
TRAINING = {"steps": 4, "warmup_steps": 1, "batch_size": 16, "validate_every": 2}
TRAINING |= {"learning_rate": 0.03, "extra_pass_fraction": 0.0}
# A test case's option and the changes of its section; every other option is a case by its own name, without changes.
CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "sub-tokens": ("pixelcnn", {"largest_softmax": 3}),
    "transformer": ("transformer", {"architecture": "llama"}),
    "masked": ("masked", {"bound_draws": 4}),
    "chain": ("chain", {"links": [{"name": "pixelcnn"}, {"name": "masked"}]}),
}
IMAGES = {"train": 48, "validation": 12, "test": 20}


def publish_prepared(
    shape: tuple[int, int, int],
    classes: int,
    seed: int = 0,
    names: tuple[str, ...] | None = None,
    untrained: int | None = None,
) -> Stats:
    """Random images whose brightness tells their class. No training image shows the class `untrained`."""
    random = np.random.default_rng(seed)
    names = names or tuple(f"class {i}" for i in range(classes)) or None
    sides = dict(zip(("channels", "height", "width"), shape, strict=True))
    prepared_by = sides | {"fit": "crop", "background": [255, 255, 255], "max_pixels": 10**8}
    stats = Stats(shape, names, IMAGES, 0.0, 0.3, prepared_by)
    with publishing(paths.PREPARED, "prepared", {}) as folder:
        for split, count in IMAGES.items():
            labels = np.arange(count) % max(1, classes)
            if split == "train" and untrained is not None:
                labels[labels == untrained] = (untrained + 1) % classes
            pixels = random.integers(0, 60, (count, *shape)) + labels[:, None, None, None] * 60
            with ArrayWriter(folder / split / "images.npy", shape, np.uint8) as writer:
                writer.append(pixels)
            if classes:
                np.save(folder / split / "labels.npy", labels)
        (folder / "stats.json").write_text(json_text(stats.to_json()), encoding="utf-8")
    return stats


def publish_vqvae(
    stats: Stats,
    strides: list[int],
    sizes: int | list[int],
    identity: str,
    seed: int = 0,
    grids: list[list[int]] | None = None,
) -> None:
    """An untrained VQ-VAE whose codebook starts from the data, so that many codes are used. `grids`: of its scales."""
    conv = {"strides": strides, "channels": 8, "stem_channels": 4, "residual_blocks": 1, "residual_channels": 4}
    changes = {"codebook_size": sizes, "codebook_dim": 4, "kmeans_rounds": 2, "revival_threshold": 0.0}
    vq = parameters("stage1_vqvae.quantizer.vq", **changes)
    config = {
        "image_shape": list(stats.image_shape),
        "data_variance": stats.variance,
        "preparation": stats.preparation,
        "network": {"name": "conv", "conv": conv},
        "quantizer": {"name": "vq", "vq": vq},
        "likelihood": {"name": "gaussian", "gaussian": {"fit_images": 8}},
    }
    if grids:
        config["scales"] = {"grids": grids, "convolutions": 2, "strength": 0.5, "dropout": 0.0}
    torch.manual_seed(seed)
    model = VQVAE(config)
    for parameter in model.network.parameters():
        parameter.data.mul_(2)  # louder than an untrained network: other codes are clearly another image
    images = to_float(open_prepared(paths.PREPARED)["train"].pixels(slice(None)))
    initialise_codebooks(model, lambda: iter([images]), seed)
    save_model(paths.VQVAE, "vqvae", config, model.state_dict(), {"prepared": identity})


@pytest.fixture(scope="session")
def finished_runs() -> dict[str, Path]:
    """Copies of the runs that `tiny_run` has made, by what they were made from."""
    return {}


@pytest.fixture
def tiny_run(
    in_tmp: Path,
    raw_params: dict[str, Any],
    finished_runs: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Path]:
    """`tiny_run(shape, classes, strides, sizes, prior, guidance_scale)`: publish all up to the prior; its folder.

    `prior` is an option of stage2_prior or a label of CHANGES; one that learns takes a few steps. A run that another
    test has made before is copied. `grids`: of the scales; None: there are none.
    """
    from tessera.artifacts.manifests import read_manifest

    def make(
        shape: tuple[int, int, int] = (1, 8, 8),
        classes: int = 3,
        strides: list[int] | None = None,
        sizes: Any = 8,
        prior: str = "counts",
        guidance_scale: float = 2.0,
        names: tuple[str, ...] | None = None,
        untrained: int | None = None,
        grids: list[list[int]] | None = None,
    ) -> Path:
        strides = strides or [4]
        raw_params["data"] |= {"channels": shape[0], "height": shape[1], "width": shape[2]}
        raw_params["stage1_vqvae"]["network"]["conv"]["strides"] = strides
        raw_params["stage1_vqvae"]["quantizer"]["codebook_size"] = sizes
        raw_params["stage1_vqvae"]["scales"]["sides"] = grids
        raw_params["extract_codes"]["shift"] = 0
        name, changes = CHANGES.get(prior, (prior, {}))
        raw_params["stage2_prior"] |= SIZE | {"name": name}
        raw_params["stage2_prior"][name] |= changes
        raw_params["stage2_prior"]["masked"]["bound_draws"] = 4
        raw_params["stage2_prior"]["training"] |= TRAINING
        raw_params["sampling"] |= {"images": 14, "grid_columns": 3, "temperature": 0.9}
        raw_params["sampling"]["guidance_scale"] = guidance_scale
        raw_params["classifier"]["conv"]["channels"] = 8
        raw_params["classifier"]["training"] |= {"steps": 40, "warmup_steps": 5, "batch_size": 16, "validate_every": 20}
        raw_params["runtime"] |= {"processes": 1, "threads": 1, "batch_size": 8, "log_every": 10, "pictures": 1.0}
        key = json.dumps([raw_params, classes, names, untrained])
        if key in finished_runs:
            shutil.copytree(finished_runs[key], in_tmp, dirs_exist_ok=True)
            return in_tmp
        (in_tmp / "params.yaml").write_text(json.dumps(raw_params), encoding="utf-8")
        stats = publish_prepared(shape, len(names) if names else classes, names=names, untrained=untrained)
        publish_vqvae(stats, strides, sizes, read_manifest(paths.PREPARED, "prepared").identity, grids=grids)
        assert extract.main([]) == 0
        assert train_prior.main([]) == 0
        finished_runs[key] = shutil.copytree(in_tmp, tmp_path_factory.mktemp("run") / "finished")
        return in_tmp

    return make


@pytest.fixture
def pipeline(tiny_run) -> TwoStagePipeline:
    tiny_run()
    return TwoStagePipeline.load("models", "cpu")


@pytest.fixture
def pixels(pipeline) -> torch.Tensor:
    """The test images, uint8."""
    return open_prepared(paths.PREPARED)["test"].pixels(slice(None))
