"""What `evaluate` measures on the test split: likelihood, reconstructions, codes, and a classifier's agreement."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.metrics import label_nats, psnr, squared_error, ssim, ssim_unavailable
from sampling.pipeline import TwoStagePipeline
from stage2_prior.priors.base import Prior
from stage2_prior.priors.build import build_prior
from tessera import paths
from tessera.artifacts.manifests import read_manifest
from tessera.codes.figures import CodeCounts
from tessera.codes.store import Codes, open_codes
from tessera.console import Bar
from tessera.features.classifiers.base import predict
from tessera.features.classifiers.build import load_classifier
from tessera.images.examples import spread_over_classes
from tessera.images.grids import stacked_grid
from tessera.images.pixels import to_float, to_uint8
from tessera.images.prepared import ImageSplit, open_prepared
from tessera.images.samples import open_samples
from tessera.randomness import generator

GRID_IMAGES = 32

FOLDERS = {
    "prepared": paths.PREPARED,
    "vqvae": paths.VQVAE,
    "codes": paths.CODES,
    "prior": paths.PRIOR,
    "classifier": paths.CLASSIFIER,
    "samples": paths.SAMPLES,
}

# Who was made from whom, upstream first: the first mismatch is the one to mend.
LINEAGE = (
    ("vqvae", "prepared"),
    ("codes", "prepared"),
    ("codes", "vqvae"),
    ("prior", "codes"),
    ("prior", "vqvae"),
    ("classifier", "prepared"),
    ("samples", "vqvae"),
    ("samples", "prior"),
)


def check_lineage(folders: dict[str, Path] = FOLDERS) -> None:
    """Refuse artifacts that do not belong together.

    Raises:
        UserError: one is missing, or names another parent than the one at hand.
    """
    manifests = {kind: read_manifest(folder, kind, contents=False) for kind, folder in folders.items()}
    for child, parent in LINEAGE:
        manifests[child].require_parent(parent, manifests[parent].identity, folders[child])


def fixed_choice(total: int, count: int | None) -> np.ndarray:
    """Which of the `total` images of a split are measured, int64 (n,) in ascending order.

    They are the first `count` of a random order that depends on `total` alone. So the same images are measured in every
    run of the same data, whatever the seeds, and a smaller choice is part of a larger one.

    Args:
        count: how many; None, or more than there are: all.
    """
    if count is None or count >= total:
        return np.arange(total)
    return np.sort(torch.randperm(total, generator=generator("evaluate", total)).numpy()[:count])


def batches(count: int, size: int, name: str) -> Iterator[slice]:
    """The rows of a split, `size` at a time, with a progress bar."""
    with Bar(count, name, "image") as bar:
        for start in range(0, count, size):
            rows = slice(start, min(start + size, count))
            yield rows
            bar.update(rows.stop - rows.start)


def fit_counts(codes: Codes, params: dict[str, Any], size: int) -> Prior:
    """The counts prior, fitted on the training codes of the images as they are; `params`: its parameters."""
    train, layout = codes["train"], codes.layout.to_json()
    config = {"name": "counts", "params": params, "layout": layout, "num_classes": codes.num_classes}
    prior = build_prior(config)
    prior.fit((train.rows(rows), train.label_tensor(rows)) for rows in batches(len(train), size, "counts"))
    return prior.eval()


class Evaluation:
    """The artifacts of a run, checked against each other, and what is measured on them.

    Attributes:
        rows: the test images that are measured, in ascending order.
        unavailable: the figures that cannot be measured, and why.
    """

    def __init__(self, counts: dict[str, Any], batch_size: int, images: int | None = None) -> None:
        """Open the artifacts.

        Args:
            counts: parameters of the counts prior.
            batch_size: images at a time; changes no result.
            images: how many test images are measured (`fixed_choice`); None: all.

        Raises:
            UserError: an artifact is missing, damaged, or was not made from the others.
        """
        check_lineage()
        self.counts, self.batch_size = counts, batch_size
        self.prepared, self.codes = open_prepared(paths.PREPARED), open_codes(paths.CODES)
        self.pipeline = TwoStagePipeline.load(paths.MODELS)
        self.classifier, manifest = load_classifier(paths.CLASSIFIER)
        self.samples = open_samples(paths.SAMPLES)
        self.layout = self.codes.layout
        self.rows = fixed_choice(len(self.prepared["test"]), images)
        self.unavailable: dict[str, str] = {}
        if self.classifier is None:
            self.unavailable["classifier"] = manifest.read_json("config.json")["reason"]
        else:
            self.classifier.to(self.pipeline.device)
        if reason := ssim_unavailable(*self.layout.image_shape[1:]):
            self.unavailable["reconstruction.ssim"] = reason

    def metrics(self) -> dict[str, Any]:
        """Every figure by section and name. What is unavailable is left out; `unavailable` says why."""
        distortion, reconstruction, agreement = self._images()
        rates = self._rates()
        bits = {"distortion": distortion}
        bits |= {name: self.layout.bits_per_dim(nats) for name, nats in rates["image"].items()}
        for prior in ("uniform", "counts", "prior"):
            bits[f"total_{prior}"] = bits["distortion"] + bits[f"rate_{prior}"]
        figures = {
            "bits_per_dim": bits,
            "nats_per_token": rates["token"],
            "reconstruction": reconstruction,
            "codebook": self._codebook(),
            "classifier": agreement | self._samples(),
            "images": {"test": len(self.rows), "samples": len(self.samples["default"])},
            "unavailable": self.unavailable,
        }
        return {section: found for section, found in figures.items() if found}

    @torch.no_grad()
    def _images(self) -> tuple[float, dict[str, float], dict[str, float]]:
        """Distortion in bits per dimension, reconstruction quality, and what the classifier makes of both."""
        split, codes, vqvae = self.prepared["test"], self.codes["test"], self.pipeline.vqvae
        measures = {"psnr": psnr, "ssim": ssim, "nmse": squared_error}
        if "reconstruction.ssim" in self.unavailable:
            del measures["ssim"]
        trained = torch.tensor(self.pipeline.classes.trained)  # a class without training images cannot be recognised
        quality, nats = dict.fromkeys(measures, 0.0), 0.0
        hits, judged = dict.fromkeys(("real_accuracy", "reconstruction_agreement"), 0), 0
        for part in batches(len(self.rows), self.batch_size, "test images"):
            rows = self.rows[part]
            pixels = split.pixels(rows).to(self.pipeline.device)
            images = to_float(pixels)
            grids = self.layout.unflatten(codes.rows(rows).to(self.pipeline.device))
            parameters = vqvae.decode_parameters(grids)
            rebuilt = vqvae.likelihood.mean(parameters).float().clamp(-1, 1)
            nats += vqvae.likelihood.nll(parameters, pixels).double().sum().item()
            for name, measure in measures.items():
                quality[name] += measure(rebuilt, images).sum().item()
            if self.classifier is not None:
                labels = split.label_tensor(rows)
                known = torch.isin(labels, trained)
                judged += known.sum().item()
                shown = {"real_accuracy": pixels, "reconstruction_agreement": to_uint8(rebuilt)}
                for name, version in shown.items():
                    hits[name] += (predict(self.classifier, version) == labels)[known].sum().item()
        quality = {name: value / len(self.rows) for name, value in quality.items()}
        quality["nmse"] /= self.layout.dimensions * self.prepared.stats.variance
        agreement = {name: count / judged for name, count in hits.items()} if judged else {}
        if self.classifier is not None and not judged:
            reason = "no test image is of a class that has training images"
            self.unavailable |= {f"classifier.{name}": reason for name in hits}
        return self.layout.bits_per_dim(nats / len(self.rows)), quality, agreement

    @torch.no_grad()
    def _rates(self) -> dict[str, dict[str, float]]:
        """Nats of the test codes under each prior.

        `token`: -log p(z | y) / N, what a prior is trained on. `image`: -log p(z, y), whose negative bounds log p(z)
        from below: where a prior is conditional the label's own nats are added, -log p(y) under the training labels'
        smoothed frequencies, so that conditional and unconditional priors compare and -log p(x) is truly bounded.
        """
        split, device, count = self.codes["test"], self.pipeline.device, len(self.rows)
        priors = {
            "counts": fit_counts(self.codes, self.counts, self.batch_size).to(device),
            "prior": self.pipeline.prior,
        }
        nats, variance = dict.fromkeys(priors, 0.0), 0.0
        for part in batches(count, self.pipeline.prior.measured_at_once(self.batch_size), "test codes"):
            rows = self.rows[part]
            tokens, labels = split.rows(rows).to(device), split.label_tensor(rows)
            labels = None if labels is None else labels.to(device)
            for name, prior in priors.items():
                found, error = prior.estimate(tokens, labels if prior.num_classes else None)
                nats[name] += found.double().sum().item()
                variance += error.double().sum().item()
        label = 0.0
        if self.codes.num_classes:
            train = np.asarray(self.codes["train"].labels)
            label = float(label_nats(np.asarray(split.labels)[self.rows], train, self.codes.num_classes).mean())
        uniform, image, token = self.layout.uniform_nats, {}, {}
        token["uniform"], image["rate_uniform"] = uniform / self.layout.num_tokens, uniform
        for name, prior in priors.items():
            token[name] = nats[name] / (count * self.layout.num_tokens)
            # Under the uniform prior a label says nothing of the codes, so its nats need not be paid for.
            conditional = prior.num_classes > 0 and prior.uses_labels
            image[f"rate_{name}"] = nats[name] / count + (label if conditional else 0.0)
        if not self.pipeline.prior.exact:  # a bound, by sampling: how far off its estimate may be
            image["rate_prior_standard_error"] = math.sqrt(variance) / count
        return {"token": token, "image": image}

    def _codebook(self) -> dict[str, Any]:
        """Usage and perplexity over the test codes: the mean over levels, and each level's, coarsest first."""
        split, counts = self.codes["test"], CodeCounts(self.layout)
        for part in batches(len(self.rows), self.batch_size, "test codes"):
            counts.add(self.layout.unflatten(split.rows(self.rows[part])))
        levels = [{"usage": f["codebook_usage"], "perplexity": f["perplexity"]} for f in counts.figures()]
        return {**{name: float(np.mean([level[name] for level in levels])) for name in levels[0]}, "per_level": levels}

    def _samples(self) -> dict[str, float]:
        """The share of sampled images in which the classifier sees the class that was asked for."""
        if self.classifier is None:
            return {}
        names = {"sample_agreement": "default", "unguided_agreement": "unguided"}
        return {name: self._agreement(self.samples[kind]) for name, kind in names.items()}

    def _agreement(self, split: ImageSplit) -> float:
        hits = 0
        for rows in batches(len(split), self.batch_size, "samples"):
            hits += (predict(self.classifier, split.pixels(rows)) == split.label_tensor(rows)).sum().item()
        return hits / len(split)

    def reconstructions(self) -> torch.Tensor:
        """Test images, spread over the classes, above their reconstructions, as one picture."""
        rows = spread_over_classes(self.prepared["test"], GRID_IMAGES)
        images = self.pipeline.decode_tokens(self.codes["test"].rows(rows))
        return stacked_grid([self.prepared["test"].pixels(rows), to_uint8(images)])
