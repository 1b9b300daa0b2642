"""Keeps the feature vectors of images in a file, for a benchmark that evaluates one VQ-VAE with many priors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import repository  # noqa: F401
from safetensors.torch import load_file, save_file
from torch import Tensor

from evaluation import distribution
from tessera.features.networks.base import FeatureNetwork


class Vectors:
    """In place of a network's `vectors`: batches that it has seen before are looked up."""

    def __init__(self, network: FeatureNetwork, kept: dict[str, Tensor]) -> None:
        """kept: vectors by the batch; what is missing is added."""
        self.compute, self.weights, self.kept = network.vectors, network.weights, kept

    def __call__(self, images: Tensor) -> Tensor:
        content = blake2b(self.weights.encode(), digest_size=20)
        content.update(images.cpu().numpy().tobytes())
        name = f"{content.hexdigest()}, {tuple(images.shape)}"
        if name not in self.kept:
            self.kept[name] = self.compute(images).cpu()
        return self.kept[name].to(images.device)


@contextlib.contextmanager
def keeping(file: Path) -> Iterator[None]:
    """Within a `with` block, `evaluate` takes the vectors of images from the file, where missing ones are added.

    Training images, test images and reconstructions are the same for every prior of a VQ-VAE.
    """
    build = distribution.build_features
    kept = load_file(file) if file.exists() else {}
    before = len(kept)

    def kept_features(features: dict[str, Any]) -> FeatureNetwork:
        network = build(features)
        network.vectors = Vectors(network, kept)
        return network

    distribution.build_features = kept_features
    try:
        yield
    finally:
        distribution.build_features = build
        if len(kept) > before:
            unfinished = file.with_name(f"{file.name}.part")
            save_file({name: vectors.contiguous() for name, vectors in kept.items()}, unfinished)
            unfinished.replace(file)
