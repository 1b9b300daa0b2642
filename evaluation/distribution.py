"""How the distribution of images that a model shows differs from that of the test images, in a network's features.

Test images are compared with their reconstructions, with samples of both kinds, and with training images: the last
comparison is the floor, what two sets of real images differ by. docs/distances.md explains every figure.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.choices import fixed_choice
from evaluation.distances import (
    DENSITY_NEIGHBOURS,
    bootstrap,
    frechet_of_vectors,
    interval,
    kernel_distance,
    neighbour_figures,
)
from evaluation.gathered import Gathered, Nearest
from tessera.console import Bar, waiting
from tessera.distributed import share
from tessera.features.networks.build import build_features
from tessera.footprint import TOGETHER
from tessera.images.pixels import to_float
from tessera.images.prepared import ImageSplit, PreparedImages

TRAINING = 50_000  # training images that are looked at, at most: a fixed random choice
COMPARED = 1000  # samples, and test images, whose nearest training images are looked for, at most
SHOWN = 24  # pairs of a sample and its nearest training image in the picture
KINDS = ("default", "unguided")


class Distribution:
    """Gathers the feature vectors of a run's images, and computes what they tell.

    Attributes:
        network: the frozen network that gives the features.
        closest: after `figures`, uint8 samples (n, C, H, W) that are nearest to training images, and these.
    """

    def __init__(
        self,
        features: dict[str, Any],
        prepared: PreparedImages,
        samples: dict[str, ImageSplit],
        rows: np.ndarray,
        device: torch.device,
    ) -> None:
        """Load the network.

        Args:
            features: what `build_features` takes.
            rows: the test images that are measured.

        Raises:
            UserError: there is no such network here, or no weights of it.
        """
        self.network = build_features(features).to(device)
        self.prepared, self.samples, self.rows, self.device = prepared, samples, rows, device
        blank = torch.zeros(1, *prepared.stats.image_shape, device=device)
        with torch.no_grad():
            vectors, logits = self.network.vectors_and_logits(blank)
        self.width, self.classes = vectors.shape[1], None if logits is None else logits.shape[1]
        sizes = {"test": len(rows), "reconstructions": len(rows)} | {kind: len(samples[kind]) for kind in KINDS}
        self.sets = {name: Gathered(size, self.width, device) for name, size in sizes.items()}
        train = len(prepared["train"])
        self.training = fixed_choice(train, TRAINING)
        counts = {min(size, len(self.training)) for size in sizes.values()}
        # A smaller fixed choice is part of a larger one, so that one pass over the training images serves all floors.
        self.floors = {count: (fixed_choice(train, count), Gathered(count, self.width, device)) for count in counts}
        self.closest: list[Tensor] | None = None
        self.unavailable: dict[str, str] = {}

    @torch.no_grad()
    def see(self, name: str, part: slice, images: Tensor) -> None:
        """Add images to a set.

        Args:
            part: the images' indices in the set.
            images: float (B, C, H, W) in [-1, 1], of 8 bits.
        """
        vectors, logits = self.network.vectors_and_logits(images.float())
        self.sets[name].add(np.arange(part.start, part.stop), vectors, logits)

    def figures(self) -> dict[str, Any]:
        """Look at samples and training images, and compute all figures, the same on every process.

        `test` and `reconstructions` must have been seen whole, by all processes together.

        Returns:
            `distribution` and `memorisation`.
        """
        self._see_samples()
        for gathered in self.sets.values():
            gathered.merge(self.classes)
        nearest = {name: Nearest(self._compared(name)) for name in ("default", "test")}
        self._see_training(nearest)
        for _, gathered in self.floors.values():
            gathered.merge()
        for found in nearest.values():
            found.merge()
        with waiting("distances", report=False):
            return {"distribution": self._distances(), "memorisation": self._memorisation(nearest)}

    def _distances(self) -> dict[str, Any]:
        """The figures of all sets, and of a floor."""
        shown = ("reconstructions", *KINDS)
        # The floor that stands by itself is that of the samples' number.
        rows, floor = self.floors[min(len(self.samples["default"]), len(self.training))]
        found = {"features": self.network.name, "weights": self.network.weights[:16], "dimensions": self.width}
        found |= {name: self._compare(name, self.sets[name], self._labels(name)) for name in shown}
        found["floor"] = self._compare("floor", floor, self.prepared["train"].label_tensor(rows[floor.rows]))
        for name in shown:
            of_same_size = self.floors[min(self.sets[name].count, len(self.training))][1]
            if "frechet_distance" in found[name]:
                found[name]["frechet_distance_floor"] = self.sets["test"].frechet_distance(of_same_size)
        return found

    def _see_samples(self) -> None:
        for kind in KINDS:
            split = self.samples[kind]
            parts = share(len(split), TOGETHER)
            with Bar(sum(part.stop - part.start for part in parts), f"features, {kind}", "image") as bar:
                for part in parts:
                    self.see(kind, part, to_float(split.pixels(part).to(self.device)))
                    bar.update(part.stop - part.start)

    @torch.no_grad()
    def _see_training(self, nearest: dict[str, Nearest]) -> None:
        parts = share(len(self.training), TOGETHER)
        with Bar(sum(part.stop - part.start for part in parts), "features, training", "image") as bar:
            for part in parts:
                rows = self.training[part]
                images = to_float(self.prepared["train"].pixels(rows).to(self.device))
                vectors = self.network.vectors(images)
                for chosen, gathered in self.floors.values():
                    own = np.isin(rows, chosen)
                    mask = torch.from_numpy(own).to(vectors.device)
                    gathered.add(np.searchsorted(chosen, rows[own]), vectors[mask])
                for found in nearest.values():
                    found.add(rows, vectors)
                bar.update(part.stop - part.start)

    def _labels(self, name: str) -> Tensor | None:
        """The labels of a set's kept images."""
        rows = self.sets[name].rows
        if name in KINDS:
            return self.samples[name].label_tensor(rows)
        return self.prepared["test"].label_tensor(self.rows[rows])

    def _compare(self, name: str, shown: Gathered, labels: Tensor | None) -> dict[str, Any]:
        """The figures of one set against the test images."""
        real = self.sets["test"]
        fewer = min(real.count, shown.count)
        found: dict[str, Any] = {"features": self.network.name, "images": shown.count}
        if fewer < 2:
            self.unavailable[f"distribution.{name}"] = "it takes two images of each kind"
            return found
        paired = name == "reconstructions"
        distance, kid = real.frechet_distance(shown), kernel_distance(real.vectors, shown.vectors, paired)
        found |= {"kid": kid, "frechet_distance": distance}
        if fewer <= self.width:
            found["note"] = (
                f"{fewer} images are no more than the {self.width} dimensions of {self.network.name}, so the Fréchet "
                "distance is far above that of more images: go by kid"
            )
        equal = min(len(real.rows), len(shown.rows))
        if equal > DENSITY_NEIGHBOURS:
            # The KID is of the kept images, and the Fréchet distance of all.
            error = bootstrap(real.vectors, shown.vectors, paired, fewer)
            found["kid_interval"] = interval(kid, error.kid)
            found["frechet_distance_interval"] = interval(distance, error.frechet_distance, least=0.0)
            # Of equally many images, since these figures depend on how many there are.
            found |= neighbour_figures(*(x.vectors[fixed_choice(len(x.rows), equal)] for x in (real, shown)))
        else:
            few = f"intervals, precision, recall, density and coverage take more than {DENSITY_NEIGHBOURS} images"
            self.unavailable[f"distribution.{name}"] = few
        if score := shown.inception_score():
            found["inception_score"], found["inception_score_deviation"] = score
        if labels is not None:
            found["per_class"] = self._per_class(shown, labels, paired)
        return found

    def _per_class(self, shown: Gathered, labels: Tensor, paired: bool) -> list[dict[str, Any]]:
        """Both distances of each class that both sets have two kept images of."""
        real, known = self.sets["test"].vectors, self._labels("test")
        found = []
        for number, name in enumerate(self.prepared.stats.classes or ()):
            one, other = real[(known == number).to(self.device)], shown.vectors[(labels == number).to(self.device)]
            if min(len(one), len(other)) > 1:
                kid = kernel_distance(one, other, paired)
                figures = {"class": name, "frechet_distance": frechet_of_vectors(one, other), "kid": kid}
                found.append(figures | {"images": len(other), "test_images": len(one)})
        return found

    def _compared(self, name: str) -> Tensor:
        vectors = self.sets[name].vectors
        return vectors[fixed_choice(len(vectors), COMPARED)]

    def _memorisation(self, nearest: dict[str, Nearest]) -> dict[str, Any]:
        """How near samples are to training images, against how near test images are."""
        samples, test = nearest["default"], nearest["test"]
        nearer = (samples.distances[:, None] < test.distances).double()
        nearer += (samples.distances[:, None] == test.distances).double() / 2
        order = samples.distances.argsort(stable=True)[:SHOWN].cpu()
        kept = self.sets["default"].rows[fixed_choice(len(self.sets["default"].rows), COMPARED)]
        pairs = ((self.samples["default"], kept[order.numpy()]), (self.prepared["train"], samples.rows.cpu()[order]))
        self.closest = [split.pixels(np.asarray(rows)) for split, rows in pairs]
        return {
            "features": self.network.name,
            "sample_distance": samples.distances.median().item(),
            "test_distance": test.distances.median().item(),
            "nearer_than_test": nearer.mean().item(),
            "samples": len(samples.distances),
            "test_images": len(test.distances),
            "training_images": len(self.training),
        }
