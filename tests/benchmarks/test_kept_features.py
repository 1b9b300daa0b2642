"""Kept feature vectors are those that the network gives, and are computed once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tessera.features.networks.base import FeatureNetwork


class Counted(FeatureNetwork):
    """The mean of each channel; counts the images that it has looked at."""

    seen = 0

    def maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        Counted.seen += len(images)
        return [images * 2]


@pytest.fixture
def keeping(repository: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    from kept_features import keeping

    return keeping


def test_vectors_of_a_batch_are_computed_once_by_each_network(
    keeping, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evaluation import distribution

    def build(weights: str) -> FeatureNetwork:
        network = Counted()
        network.weights = weights
        return network

    monkeypatch.setattr(distribution, "build_features", build)
    monkeypatch.setattr(Counted, "seen", 0)
    file, images = tmp_path / "features.safetensors", torch.rand(3, 2, 4, 4)
    for weights, turned, seen in (("a", 1, 3), ("a", 1, 3), ("b", 1, 6), ("a", -1, 9), ("b", 1, 9)):
        with keeping(file):
            vectors, logits = distribution.build_features(weights).vectors_and_logits(turned * images)
        torch.testing.assert_close(vectors, 2 * turned * images.mean((2, 3)))
        assert logits is None and Counted.seen == seen
    assert distribution.build_features is build
    shape = images.reshape(2, 3, 4, 4)  # the same numbers
    with keeping(file):
        assert distribution.build_features("a").vectors(shape).shape == (2, 3)
