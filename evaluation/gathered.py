"""What is kept of the feature vectors of a set of images: sums over all of them, and the vectors of some.

Memory does not grow with the number of images. Processes each add their share, and `merge` gives all of them the same.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from evaluation.choices import fixed_choice
from evaluation.distances import Moments, frechet_distance, frechet_of_vectors, inception_score
from tessera.distributed import sum_over_processes, world
from tessera.randomness import generator

KEPT = 5000  # vectors of a set that are kept, a fixed random choice, for every figure that compares pairs of images
PARTS = 10  # of a set, over which the Inception Score is a mean


class Gathered:
    """The vectors of a set of images that are numbered from 0.

    Attributes:
        count: how many images the set has.
        rows: the numbers of the images whose vectors are kept, int64 (k,), ascending.
        vectors: float32 (k, F), these images' vectors.
        moments: of all vectors.
    """

    def __init__(self, count: int, width: int, device: torch.device) -> None:
        self.count, self.rows = count, fixed_choice(count, KEPT)
        self.vectors = torch.zeros(len(self.rows), width, device=device)
        self.moments = Moments(width, device)
        self.scores: tuple[Tensor, ...] | None = None  # sums for the Inception Score
        self._parts: Tensor | None = None  # the part of each image, int64 (count,), once logits are given

    def add(self, numbers: np.ndarray, vectors: Tensor, logits: Tensor | None = None) -> None:
        """Add images.

        Args:
            numbers: int64 (B,), the images' numbers, ascending. Each image is added once by one process.
            vectors: (B, F).
            logits: (B, classes) for the Inception Score, if the network has them.
        """
        self.moments.add(vectors)
        kept = np.isin(numbers, self.rows)
        places = np.searchsorted(self.rows, numbers[kept])
        self.vectors[places] = vectors[torch.from_numpy(kept).to(vectors.device)].float()
        if logits is not None:
            self._score(numbers, logits.double())

    def _score(self, numbers: np.ndarray, logits: Tensor) -> None:
        if self.scores is None:
            self.scores = (logits.new_zeros(PARTS, logits.shape[1]), logits.new_zeros(PARTS), logits.new_zeros(PARTS))
            # Files in folders are sorted by class. Parts of neighbours would hold one class each, and the score of a
            # part is high only if it holds many. The random order is the same on every process.
            order = torch.randperm(self.count, generator=generator("inception_score", self.count))
            self._parts = order * PARTS // self.count
        parts = self._parts[torch.from_numpy(numbers)].to(logits.device)
        log_probabilities = logits.log_softmax(1)
        probabilities = log_probabilities.exp()
        sums = (probabilities, (probabilities * log_probabilities).sum(1), torch.ones_like(logits[:, 0]))
        for total, values in zip(self.scores, sums, strict=True):
            total.index_add_(0, parts, values)

    def merge(self, classes: int | None = None) -> None:
        """Join what the processes added.

        Args:
            classes: the width of the logits, if they were given to any process.
        """
        self.moments.merge()
        sum_over_processes(self.vectors)  # zero on every process but the one that added it
        if classes is not None:
            zeros = self.moments.total
            empty = (zeros.new_zeros(PARTS, classes), zeros.new_zeros(PARTS), zeros.new_zeros(PARTS))
            self.scores = self.scores or empty
            for tensor in self.scores:
                sum_over_processes(tensor)

    def frechet_distance(self, other: Gathered) -> float:
        """The Fréchet distance of all vectors of both sets, the cheaper way if all are kept and they are few."""
        sets = (self, other)
        if all(len(x.rows) == x.count for x in sets) and min(x.count for x in sets) <= self.vectors.shape[1]:
            return frechet_of_vectors(self.vectors, other.vectors)
        return frechet_distance(self.moments, other.moments)

    def inception_score(self) -> tuple[float, float] | None:
        """Mean and standard deviation over `PARTS` parts, or None if there were no logits."""
        return None if self.scores is None else inception_score(*self.scores)


class Nearest:
    """The nearest training image of each of some vectors, among those that were added so far.

    Attributes:
        distances: float64 (n,), Euclidean.
        rows: int64 (n,), the training images' rows.
    """

    def __init__(self, vectors: Tensor) -> None:
        """vectors: (n, F), those whose nearest training images are looked for."""
        self.vectors = vectors.double()
        self.distances = self.vectors.new_full((len(vectors),), torch.inf)
        self.rows = torch.full((len(vectors),), -1, dtype=torch.int64, device=vectors.device)

    def add(self, rows: np.ndarray, vectors: Tensor) -> None:
        """Add training images: their rows int64 (B,), ascending from call to call, and their vectors (B, F)."""
        found, places = torch.cdist(self.vectors, vectors.double()).min(1)
        nearer = found < self.distances
        self.distances = torch.where(nearer, found, self.distances)
        self.rows = torch.where(nearer, torch.from_numpy(rows).to(self.rows.device)[places], self.rows)

    def merge(self) -> None:
        """Take the nearest of what all processes found; of equally near ones the first row."""
        rank, size = world()
        tables = [x.new_zeros(size, len(x)) for x in (self.distances, self.rows)]
        for table, own in zip(tables, (self.distances, self.rows), strict=True):
            table[rank] = own
        none = tables[1][rank] < 0  # a process without any training image; infinity would not add up
        tables[0][rank] = tables[0][rank].masked_fill(none, torch.finfo(torch.float64).max)
        distances, rows = (sum_over_processes(table) for table in tables)
        self.distances = distances.min(0).values
        rows = rows.masked_fill(distances > self.distances, torch.iinfo(torch.int64).max)
        self.rows = rows.min(0).values
