"""What `evaluate` measures on the test split: likelihood, reconstructions, codes, and a classifier's agreement."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from evaluation.metrics import label_nats, psnr, squared_error, ssim
from sampling.pipeline import TwoStagePipeline
from stage2_prior.priors.base import Prior
from stage2_prior.priors.build import build_prior
from tessera import paths
from tessera.artifacts.manifests import read_manifest
from tessera.codes.figures import CodeCounts
from tessera.codes.store import Codes, open_codes
from tessera.features.classifier import load_classifier, predict
from tessera.images.grids import stacked_grid
from tessera.images.pixels import to_float, to_uint8
from tessera.images.prepared import ImageSplit, open_prepared
from tessera.images.samples import open_samples

GRID_IMAGES = 32
UNAVAILABLE = "unavailable"  # what a figure that needs labels says where there are none

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


def batches(count: int, size: int, name: str) -> Iterator[slice]:
    """The rows of a split, `size` at a time, with a progress bar."""
    for start in tqdm(range(0, count, size), desc=name, unit="batch", disable=None):
        yield slice(start, min(start + size, count))


def fit_counts(codes: Codes, params: dict[str, Any], size: int) -> Prior:
    """The counts prior, fitted on the training codes of the images as they are; `params`: its parameters."""
    train, layout = codes["train"], codes.layout.to_json()
    config = {"name": "counts", "params": params, "layout": layout, "num_classes": codes.num_classes}
    prior = build_prior(config)
    prior.fit((train.rows(rows), train.label_tensor(rows)) for rows in batches(len(train), size, "counts"))
    return prior.eval()


class Evaluation:
    """The artifacts of a run, checked against each other, and what is measured on them.

    Args:
        counts: parameters of the counts prior.
        batch_size: images at a time; changes no result.
    """

    def __init__(self, counts: dict[str, Any], batch_size: int) -> None:
        check_lineage()
        self.counts, self.batch_size = counts, batch_size
        self.prepared, self.codes = open_prepared(paths.PREPARED), open_codes(paths.CODES)
        self.pipeline = TwoStagePipeline.load(paths.MODELS)
        self.classifier, _ = load_classifier(paths.CLASSIFIER)
        if self.classifier is not None:
            self.classifier.to(self.pipeline.device)
        self.samples = open_samples(paths.SAMPLES)
        self.layout = self.codes.layout

    def metrics(self) -> dict[str, Any]:
        """Every figure by section and name; those of the classifier are "unavailable" without labels."""
        distortion, reconstruction, agreement = self._images()
        rates = self._rates()
        bits = {"distortion": distortion}
        bits |= {name: self.layout.bits_per_dim(nats) for name, nats in rates["image"].items()}
        for prior in ("uniform", "counts", "prior"):
            bits[f"total_{prior}"] = bits["distortion"] + bits[f"rate_{prior}"]
        classifier = {"real_accuracy": UNAVAILABLE, "reconstruction_agreement": UNAVAILABLE}
        return {
            "bits_per_dim": bits,
            "nats_per_token": rates["token"],
            "reconstruction": reconstruction,
            "codebook": self._codebook(),
            "classifier": classifier | agreement | self._samples(),
            "images": {"test": len(self.prepared["test"]), "samples": len(self.samples["default"])},
        }

    @torch.no_grad()
    def _images(self) -> tuple[float, dict[str, float], dict[str, float]]:
        """Distortion in bits per dimension, reconstruction quality, and what the classifier makes of both."""
        split, codes, vqvae = self.prepared["test"], self.codes["test"], self.pipeline.vqvae
        sums = dict.fromkeys(("nats", "psnr", "ssim", "error", "real", "rebuilt", "judged"), 0.0)
        trained = torch.tensor(self.pipeline.classes.trained)  # a class without training images cannot be recognised
        for rows in batches(len(split), self.batch_size, "test images"):
            pixels = split.pixels(rows).to(self.pipeline.device)
            images = to_float(pixels)
            grids = self.layout.unflatten(codes.rows(rows).to(self.pipeline.device))
            parameters = vqvae.decode_parameters(grids)
            rebuilt = vqvae.likelihood.mean(parameters).float().clamp(-1, 1)
            sums["nats"] += vqvae.likelihood.nll(parameters, pixels).double().sum().item()
            sums["psnr"] += psnr(rebuilt, images).sum().item()
            sums["ssim"] += ssim(rebuilt, images).sum().item()
            sums["error"] += squared_error(rebuilt, images).sum().item()
            if self.classifier is not None:
                labels = split.label_tensor(rows)
                judged = torch.isin(labels, trained)
                sums["judged"] += judged.sum().item()
                for name, version in {"real": pixels, "rebuilt": to_uint8(rebuilt)}.items():
                    sums[name] += (predict(self.classifier, version) == labels)[judged].sum().item()
        mean = {name: value / len(split) for name, value in sums.items()}
        reconstruction = {
            "psnr": mean["psnr"],
            "ssim": mean["ssim"],
            "nmse": mean["error"] / (self.layout.dimensions * self.prepared.stats.variance),
        }
        agreement = {}
        if sums["judged"]:
            names = {"real": "real_accuracy", "rebuilt": "reconstruction_agreement"}
            agreement = {figure: sums[name] / sums["judged"] for name, figure in names.items()}
        return self.layout.bits_per_dim(mean["nats"]), reconstruction, agreement

    @torch.no_grad()
    def _rates(self) -> dict[str, dict[str, float]]:
        """Nats of the test codes under each prior.

        `token`: -log p(z | y) / N, what a prior is trained on. `image`: -log p(z, y), whose negative bounds log p(z)
        from below: where a prior is conditional the label's own nats are added, -log p(y) under the training labels'
        smoothed frequencies, so that conditional and unconditional priors compare and -log p(x) is truly bounded.
        """
        split, device = self.codes["test"], self.pipeline.device
        priors = {
            "counts": fit_counts(self.codes, self.counts, self.batch_size).to(device),
            "prior": self.pipeline.prior,
        }
        nats, variance = dict.fromkeys(priors, 0.0), 0.0
        for rows in batches(len(split), self.pipeline.prior.measured_at_once(self.batch_size), "test codes"):
            tokens, labels = split.rows(rows).to(device), split.label_tensor(rows)
            labels = None if labels is None else labels.to(device)
            for name, prior in priors.items():
                found, error = prior.estimate(tokens, labels if prior.num_classes else None)
                nats[name] += found.double().sum().item()
                variance += error.double().sum().item()
        label = 0.0
        if self.codes.num_classes:
            train = np.asarray(self.codes["train"].labels)
            label = float(label_nats(np.asarray(split.labels), train, self.codes.num_classes).mean())
        uniform, image, token = self.layout.uniform_nats, {}, {}
        token["uniform"], image["rate_uniform"] = uniform / self.layout.num_tokens, uniform
        for name, prior in priors.items():
            token[name] = nats[name] / (len(split) * self.layout.num_tokens)
            # Under the uniform prior a label says nothing of the codes, so its nats need not be paid for.
            conditional = prior.num_classes > 0 and prior.uses_labels
            image[f"rate_{name}"] = nats[name] / len(split) + (label if conditional else 0.0)
        if not self.pipeline.prior.exact:  # a bound, by sampling: how far off its estimate may be
            image["rate_prior_standard_error"] = math.sqrt(variance) / len(split)
        return {"token": token, "image": image}

    def _codebook(self) -> dict[str, Any]:
        """Usage and perplexity over the test codes: the mean over levels, and each level's, coarsest first."""
        split, counts = self.codes["test"], CodeCounts(self.layout)
        for rows in batches(len(split), self.batch_size, "test codes"):
            counts.add(self.layout.unflatten(split.rows(rows)))
        levels = [{"usage": f["codebook_usage"], "perplexity": f["perplexity"]} for f in counts.figures()]
        return {**{name: float(np.mean([level[name] for level in levels])) for name in levels[0]}, "per_level": levels}

    def _samples(self) -> dict[str, float | str]:
        """The share of sampled images in which the classifier sees the class that was asked for."""
        names = {"sample_agreement": "default", "unguided_agreement": "unguided"}
        return {name: self._agreement(self.samples[kind]) for name, kind in names.items()}

    def _agreement(self, split: ImageSplit) -> float | str:
        if self.classifier is None:
            return UNAVAILABLE
        hits = 0
        for rows in batches(len(split), self.batch_size, "samples"):
            hits += (predict(self.classifier, split.pixels(rows)) == split.label_tensor(rows)).sum().item()
        return hits / len(split)

    def reconstructions(self) -> torch.Tensor:
        """The first test images above their reconstructions, as one picture."""
        count = min(GRID_IMAGES, len(self.prepared["test"]))
        images = self.pipeline.decode_tokens(self.codes["test"].rows(slice(0, count)))
        return stacked_grid([self.prepared["test"].pixels(slice(0, count)), to_uint8(images)])
