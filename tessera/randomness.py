"""Random streams keyed by what they are for, so that 1 and N processes, and a resumed run, draw the same numbers."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def seed_of(*key: int | str) -> int:
    """A 63-bit seed from a key such as ("augment", seed, step): unequal keys give unrelated streams."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(*key: int | str) -> torch.Generator:
    """A CPU torch generator for a key."""
    return torch.Generator().manual_seed(seed_of(*key))


class SampleOrder:
    """Which training images make the global batch of each step: epoch after epoch, each in an order of its own.

    A pure function of (seed, step), so that nothing about the order needs saving. A batch may span two epochs.
    """

    def __init__(self, images: int, batch_size: int, seed: int) -> None:
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self._permutations: dict[int, np.ndarray] = {}

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._permutations:
            self._permutations = {e: p for e, p in self._permutations.items() if e == epoch - 1}
            stream = np.random.Generator(np.random.Philox(seed_of("order", self.seed, epoch)))
            self._permutations[epoch] = stream.permutation(self.images)
        return self._permutations[epoch]

    def batch(self, step: int) -> np.ndarray:
        """int64 (batch_size,) indices of the images of a step."""
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, offsets = np.divmod(places, self.images)
        return np.concatenate([self._permutation(int(e))[offsets[epochs == e]] for e in np.unique(epochs)])
