"""What `evaluate` measures on the test split: likelihood, reconstructions, codes, and a classifier's agreement."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from evaluation.choices import fixed_choice
from evaluation.distribution import Distribution
from evaluation.lineage import check_lineage
from evaluation.metrics import label_nats, psnr, squared_error, ssim, ssim_unavailable, tokens
from sampling.pipeline import TwoStagePipeline
from stage1_vqvae.decoder import LIKELIHOOD
from stage2_prior.priors.base import Prior
from stage2_prior.priors.build import build_prior
from tessera import paths
from tessera.codes.figures import CodeCounts
from tessera.codes.store import Codes, open_codes
from tessera.console import Bar
from tessera.distributed import largest_over_processes, share, sum_over_processes, sums_over_blocks
from tessera.errors import UserError
from tessera.features.classifiers.base import predict
from tessera.features.classifiers.build import load_classifier
from tessera.footprint import TOGETHER, images_together
from tessera.images.examples import spread_over_classes
from tessera.images.grids import stacked_grid
from tessera.images.pixels import to_float, to_uint8
from tessera.images.prepared import ImageSplit, open_prepared
from tessera.images.samples import open_samples

PRIORS = ("uniform", "counts", "prior")
NO_LIKELIHOOD = "stage1_vqvae.objective had further terms, so that no likelihood was fitted"
GRID_IMAGES = 32
COUNTED_TOGETHER = 1024  # images whose codes are counted at once


def fit_counts(codes: Codes, params: dict[str, Any]) -> Prior:
    """The counts prior, fitted on the training codes of the images as they are; `params`: its parameters."""
    train, layout = codes["train"], codes.layout.to_json()
    config = {"name": "counts", "params": params, "layout": layout, "num_classes": codes.num_classes}

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        with Bar(len(train), "counts", "image") as bar:
            for start in range(0, len(train), COUNTED_TOGETHER):
                rows = slice(start, min(start + COUNTED_TOGETHER, len(train)))
                yield train.rows(rows), train.label_tensor(rows)
                bar.update(rows.stop - start)

    prior = build_prior(config)
    prior.fit(batches())
    return prior.eval()


class Evaluation:
    """The artifacts of a run, checked against each other, and what is measured on them.

    Attributes:
        rows: the test images that are measured, in ascending order.
        images_together: images that are decoded at once.
        unavailable: the figures that cannot be measured, and why.
    """

    def __init__(
        self,
        counts: dict[str, Any],
        images: int | None = None,
        device: torch.device | str | None = None,
        most: int = TOGETHER,
        features: dict[str, Any] | None = None,
        decoder: str = LIKELIHOOD,
    ) -> None:
        """Open the artifacts. Every process of a run does.

        Args:
            counts: parameters of the counts prior.
            images: how many test images are measured (`fixed_choice`); None: all.
            device: where the models are put; None for the GPU if there is one.
            most: images that are encoded and decoded at once, at most.
            features: the network in whose features distances are measured (`build_features`); None: they are not.
            decoder: which one turns codes into images: likelihood or refined. Bits are always of the likelihood's.

        Raises:
            UserError: an artifact is missing, damaged, or was not made from the others.
        """
        check_lineage(decoder=decoder)
        self.counts = counts
        self.prepared, self.codes = open_prepared(paths.PREPARED), open_codes(paths.CODES)
        self.pipeline = TwoStagePipeline.load(paths.MODELS, device, decoder=decoder)
        self.classifier, manifest = load_classifier(paths.CLASSIFIER)
        self.samples = open_samples(paths.SAMPLES)
        self.layout = self.codes.layout
        self.rows = fixed_choice(len(self.prepared["test"]), images)
        self.unavailable: dict[str, str] = {}
        if self.classifier is None:
            self.unavailable["classifier"] = manifest.read_json("config.json")["reason"]
        else:
            self.classifier.to(self.pipeline.device)
        blank = torch.zeros(1, *self.layout.image_shape, dtype=torch.uint8, device=self.pipeline.device)
        vqvae = self.pipeline.vqvae
        self.images_together = images_together(
            vqvae, lambda: vqvae.decode_parameters(vqvae.encode(to_float(blank))), most
        )
        if not vqvae.has_likelihood:
            self.unavailable["bits_per_dim.distortion"] = NO_LIKELIHOOD
            self.unavailable |= {f"bits_per_dim.total_{prior}": NO_LIKELIHOOD for prior in PRIORS}
        if reason := ssim_unavailable(*self.layout.image_shape[1:]):
            self.unavailable["reconstruction.ssim"] = reason
        self.distribution = self._distribution_in(features) if features else None

    def _distribution_in(self, features: dict[str, Any]) -> Distribution | None:
        """Where distances are measured; None if there is no such network here. The other figures do not need it.

        All processes measure distances, or none does: a process would wait for the vectors of the others.
        """
        found, failed = None, ""
        try:
            found = Distribution(features, self.prepared, self.samples, self.rows, self.pipeline.device)
        except UserError as error:
            failed = str(error)
        if not largest_over_processes(int(found is None), self.pipeline.device):
            return found
        reason = failed or "the network could be loaded on some processes only; run again, or by a single process"
        self.unavailable["distribution"] = f"evaluation.features: {reason}"
        return None

    def metrics(self) -> dict[str, Any]:
        """Every figure by section and name. What is unavailable is left out; `unavailable` says why."""
        distortion, reconstruction, agreement = self._images()
        rates = self._rates()
        bits = {} if distortion is None else {"distortion": distortion}
        bits |= {name: self.layout.bits_per_dim(nats) for name, nats in rates["image"].items()}
        if distortion is not None:
            bits |= {f"total_{prior}": distortion + bits[f"rate_{prior}"] for prior in PRIORS}
        figures = {
            "bits_per_dim": bits,
            "nats_per_token": rates["token"],
            "reconstruction": reconstruction,
            "codebook": self._codebook(),
            "classifier": agreement | self._samples(),
            "images": {"test": len(self.rows), "samples": len(self.samples["default"])},
            **(self.distribution.figures() if self.distribution else {}),
            "models": self.pipeline.parents,  # whose figures these are
            "unavailable": self.unavailable,
        }
        self.unavailable |= self.distribution.unavailable if self.distribution else {}
        return {section: found for section, found in figures.items() if found}

    def _sums(
        self, names: Sequence[str], count: int, block: int, what: str, measure: Callable[[slice], dict[str, float]]
    ) -> dict[str, float]:
        """`sums_over_blocks` with a progress bar of this process's rows, which is called `what`."""
        with Bar(sum(rows.stop - rows.start for rows in share(count, block)), what, "image") as bar:

            def measured(rows: slice) -> dict[str, float]:
                found = measure(rows)
                bar.update(rows.stop - rows.start)
                return found

            return sums_over_blocks(names, count, block, measured, self.pipeline.device)

    @torch.no_grad()
    def _images(self) -> tuple[float | None, dict[str, float], dict[str, float]]:
        """Distortion in bits per dimension, reconstruction quality, and what the classifier makes of both.

        The distortion is None where there is no likelihood.
        """
        split, codes, vqvae = self.prepared["test"], self.codes["test"], self.pipeline.vqvae
        decoder = self.pipeline.decoder
        figures = {"psnr": psnr, "ssim": ssim, "nmse": squared_error}
        if "reconstruction.ssim" in self.unavailable:
            del figures["ssim"]
        trained = torch.tensor(self.pipeline.classes.trained)  # a class without training images cannot be recognised
        judgements = ("real_accuracy", "reconstruction_agreement") if self.classifier is not None else ()

        def measure(part: slice) -> dict[str, float]:
            rows = self.rows[part]
            pixels = split.pixels(rows).to(self.pipeline.device)
            images = to_float(pixels)
            grids = self.layout.unflatten(codes.rows(rows).to(self.pipeline.device))
            parameters = vqvae.decode_parameters(grids)
            shown = parameters if decoder is vqvae else decoder.decode_parameters(grids)
            rebuilt = decoder.likelihood.mean(shown).float().clamp(-1, 1)
            if self.distribution:
                self.distribution.see("test", part, images)
                self.distribution.see("reconstructions", part, to_float(to_uint8(rebuilt)))
            nats = vqvae.likelihood.nll(parameters, pixels).double().sum().item() if vqvae.has_likelihood else 0.0
            found = {"nats": nats, "judged": 0.0}
            found |= {name: figure(rebuilt, images).sum().item() for name, figure in figures.items()}
            if judgements:
                labels = split.label_tensor(rows)
                known = torch.isin(labels, trained)
                found["judged"] = known.sum().item()
                for name, shown in zip(judgements, (pixels, to_uint8(rebuilt)), strict=True):
                    found[name] = (predict(self.classifier, shown) == labels)[known].sum().item()
            return found

        names = ["nats", "judged", *figures, *judgements]
        sums = self._sums(names, len(self.rows), self.images_together, "test images", measure)
        quality = {name: sums[name] for name in figures}
        quality = {name: value / len(self.rows) for name, value in quality.items()}
        quality["nmse"] /= self.layout.dimensions * self.prepared.stats.variance
        judged = sums["judged"]
        agreement = {name: sums[name] / judged for name in judgements} if judged else {}
        if agreement:
            labels = split.label_tensor(self.rows)
            agreement["majority_accuracy"] = labels[torch.isin(labels, trained)].bincount().max().item() / judged
        if judgements and not judged:
            reason = "no test image is of a class that has training images"
            self.unavailable |= {f"classifier.{name}": reason for name in (*judgements, "majority_accuracy")}
        distortion = self.layout.bits_per_dim(sums["nats"] / len(self.rows)) if vqvae.has_likelihood else None
        return distortion, quality, agreement

    @torch.no_grad()
    def _rates(self) -> dict[str, dict[str, float]]:
        """Nats of the test codes under each prior.

        `token`: -log p(z | y) / N, what a prior is trained on. `image`: -log p(z, y), whose negative bounds log p(z)
        from below: where a prior is conditional the label's own nats are added, -log p(y) under the training labels'
        smoothed frequencies, so that conditional and unconditional priors compare and -log p(x) is truly bounded.
        """
        split, device, count = self.codes["test"], self.pipeline.device, len(self.rows)
        priors = {"counts": fit_counts(self.codes, self.counts).to(device), "prior": self.pipeline.prior}

        def measure(part: slice) -> dict[str, float]:
            rows = self.rows[part]
            tokens, labels = split.rows(rows).to(device), split.label_tensor(rows)
            labels = None if labels is None else labels.to(device)
            found = {"variance": 0.0}
            for name, prior in priors.items():
                each, error = prior.estimate(tokens, labels if prior.num_classes else None)
                found[name] = each.double().sum().item()
                found["variance"] += error.double().sum().item()
            return found

        block = self.pipeline.prior.measured_at_once(TOGETHER)
        nats = self._sums(["variance", *priors], count, block, "test codes", measure)
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
            image["rate_prior_standard_error"] = math.sqrt(nats["variance"]) / count
        return {"token": token, "image": image}

    def _codebook(self) -> dict[str, Any]:
        """Usage and perplexity over the test codes: the mean over levels, and each level's, coarsest first."""
        split, counts = self.codes["test"], CodeCounts(self.layout)
        for part in share(len(self.rows), COUNTED_TOGETHER):
            counts.add(self.layout.unflatten(split.rows(self.rows[part])))
        counts.levels = [sum_over_processes(level.to(self.pipeline.device)).cpu() for level in counts.levels]
        levels = [{"usage": f["codebook_usage"], "perplexity": f["perplexity"]} for f in counts.figures()]
        means = {name: float(np.mean([level[name] for level in levels])) for name in levels[0]}
        return means | tokens(self.layout, len(self.prepared["train"])) | {"per_level": levels}

    def _samples(self) -> dict[str, Any]:
        """The share of sampled images in which the classifier sees the class that was asked for; of each class too."""
        if self.classifier is None:
            return {}
        default, unguided = (self.samples[kind] for kind in ("default", "unguided"))
        hits, asked = self._hits(default), np.bincount(np.asarray(default.labels)).tolist()
        return {
            "sample_agreement": sum(hits) / len(default),
            "unguided_agreement": sum(self._hits(unguided)) / len(unguided),
            "per_class": [
                {"class": name, "sample_agreement": right / count, "samples": count}
                for name, right, count in zip(self.prepared.stats.classes, hits, asked, strict=False)
                if count
            ],
        }

    def _hits(self, split: ImageSplit) -> list[int]:
        """How many images of each class the classifier takes for what they are, in the order of the classes."""
        names = [str(number) for number in range(self.prepared.stats.num_classes)]

        def measure(rows: slice) -> dict[str, float]:
            labels = split.label_tensor(rows)
            right = labels[predict(self.classifier, split.pixels(rows)) == labels]
            return dict(zip(names, right.bincount(minlength=len(names)).tolist(), strict=True))

        sums = self._sums(names, len(split), TOGETHER, "samples", measure)
        return [round(sums[name]) for name in names]

    def reconstructions(self) -> torch.Tensor:
        """Test images, spread over the classes, above their reconstructions, as one picture."""
        rows = spread_over_classes(self.prepared["test"], GRID_IMAGES)
        images = self.pipeline.decode_tokens(self.codes["test"].rows(rows))
        return stacked_grid([self.prepared["test"].pixels(rows), to_uint8(images)])
