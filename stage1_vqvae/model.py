"""VQVAE: a network, a quantizer a level, and a likelihood. One level is the plain case of N.

Source: van den Oord et al. 2017, "Neural Discrete Representation Learning"; levels after Razavi et al. 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stage1_vqvae.likelihoods.build import build_likelihood
from stage1_vqvae.networks.build import build_network, network_class
from stage1_vqvae.parameters import Stage1Params
from stage1_vqvae.quantizers.base import Quantizer
from stage1_vqvae.quantizers.build import build_quantizers
from stage1_vqvae.quantizers.noise import derived
from stage1_vqvae.quantizers.output import QuantizerOutput
from tessera.artifacts.manifests import Manifest
from tessera.artifacts.models import load_module
from tessera.codes.layout import CodeLayout, Level
from tessera.images.pixels import to_float
from tessera.images.prepared import Stats
from tessera.randomness import generator, seed_of

START_VECTORS_PER_CODE = 256  # k-means gains nothing from more


def model_config(section: Stage1Params, stats: Stats) -> dict[str, Any]:
    """What a VQVAE is built from: the parameters of stage 1 and what was prepared."""
    return {
        "image_shape": list(stats.image_shape),
        "data_variance": stats.variance,
        "preparation": stats.preparation,
        "network": section.network.values(),
        "quantizer": section.quantizer.values(),
        "likelihood": section.likelihood.values(),
    }


def planes(z_q: torch.Tensor) -> torch.Tensor:
    """z_q (B, h, w, D) as a feature map (B, D, h, w), always in one memory layout: in another, convolutions would round
    otherwise, and codes that were looked up decode to another image than the forward pass's."""
    return z_q.contiguous().permute(0, 3, 1, 2)


class VQVAE(nn.Module):
    """Images to grids of codes, and back to a distribution over images.

    Args:
        config: image_shape (C, H, W); data_variance (of training pixels in [-1, 1]); network, quantizer and likelihood,
            each {"name": NAME, NAME: {its parameters}}. Kept as `config`: the whole model is rebuilt from it.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        image_shape = tuple(config["image_shape"])
        self.likelihood = build_likelihood(config["likelihood"])
        outputs = self.likelihood.parameter_channels(image_shape[0])
        network = config["network"]
        grids = network_class(network).grids_of(image_shape, **network[network["name"]])
        self.quantizers = build_quantizers(config["quantizer"], len(grids))
        self.network = build_network(network, image_shape, outputs, self.quantizers[0].dim)
        self.layout = CodeLayout(
            image_shape,
            tuple(Level(h, w, q.depth, q.codebook_size) for (h, w), q in zip(grids, self.quantizers, strict=True)),
        )
        self._encode: Callable = self.network.encode
        self._decode: Callable = self.network.decode
        self._loss: Callable = self.likelihood.loss

    @property
    def codebook_parameters(self) -> frozenset[str]:
        """Names of parameters that are codebooks, which `settle` re-estimates: no weight average touches them."""
        parts = [(name, module) for name, module in self.named_modules() if isinstance(module, Quantizer)]
        settled = {f"{name}.{parameter}" for name, module in parts for parameter in module.settled}
        return frozenset(name for name, _ in self.named_parameters() if name in settled)

    @property
    def stochastic(self) -> bool:
        """Whether training draws codes at random, by the `seeds` of `forward`."""
        return any(quantizer.stochastic for quantizer in self.quantizers)

    def compile(self) -> None:
        """Compile encoder, decoder and loss for training steps; the quantizer and evaluation stay eager."""
        self._encode, self._decode = torch.compile(self.network.encode), torch.compile(self.network.decode)
        self._loss = torch.compile(self.likelihood.loss)

    def _quantize(
        self, features: list[torch.Tensor], levels: int, seeds: torch.Tensor | None = None
    ) -> tuple[list[QuantizerOutput], torch.Tensor | None]:
        """Quantize the `levels` coarsest levels; also the context of the next one."""
        outputs, context = [], None
        for level in range(levels):
            z = self.network.latent(level, features[level], context)
            output = self.quantizers[level](z.permute(0, 2, 3, 1), derived(seeds, level))
            outputs.append(output)
            context = self.network.context(level, planes(output.z_q), context)
        return outputs, context

    def quantize(self, images: torch.Tensor, seeds: torch.Tensor | None = None) -> list[QuantizerOutput]:
        """What each level's quantizer makes of float images (B, C, H, W) in [-1, 1], coarsest first.

        Raises:
            ValueError: images of another shape than the model's.
        """
        self._check(images)
        encode = self._encode if self.training else self.network.encode
        return self._quantize(encode(images), len(self.quantizers), seeds)[0]

    def _check(self, images: torch.Tensor) -> None:
        if tuple(images.shape[1:]) != self.layout.image_shape:
            raise ValueError(f"expected images {self.layout.image_shape}, got {tuple(images.shape[1:])}")

    def forward(
        self, images: torch.Tensor, seeds: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The training loss and its named parts.

        Args:
            images: float (B, C, H, W) in [-1, 1], or their uint8 pixels.
            seeds: int64 (B,), by which stochastic quantizers draw; None: torch's global generator.
        """
        images = to_float(images) if images.dtype == torch.uint8 else images
        outputs = self.quantize(images, seeds)
        decode, loss = (self._decode, self._loss) if self.training else (self.network.decode, self.likelihood.loss)
        parameters = decode([planes(o.z_q) for o in outputs])
        with torch.autocast(images.device.type, enabled=False):
            distortion = loss(parameters, images, self.config["data_variance"])
            quantizer_loss = torch.stack([o.loss for o in outputs]).sum()
            return distortion + quantizer_loss, {"distortion": distortion, "quantizer_loss": quantizer_loss}

    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Float images (B, C, H, W) in [-1, 1] to code grids [(B, h, w, depth)] int64, coarsest first."""
        return [output.indices for output in self.quantize(images)]

    def draw(self, images: torch.Tensor, seeds: torch.Tensor) -> list[torch.Tensor]:
        """Code grids as `encode` gives them, but drawn at random by quantizers that can (`draws`).

        Every finer level is conditioned on the coarser level's codes as they were drawn: the decoder gets both.

        Raises:
            ValueError: images of another shape than the model's.
        """
        self._check(images)
        features, context, grids = self.network.encode(images), None, []
        for level, quantizer in enumerate(self.quantizers):
            z = self.network.latent(level, features[level], context).permute(0, 2, 3, 1)
            grids.append(quantizer.draw(z, derived(seeds, level)) if quantizer.draws else quantizer(z).indices)
            context = self.network.context(level, planes(quantizer.lookup(grids[-1])), context)
        return grids

    def decode_parameters(self, codes: list[torch.Tensor], levels: list[int] | None = None) -> torch.Tensor:
        """Code grids to the likelihood's parameters (B, outputs, H, W) float32.

        Args:
            levels: those that count, None for all; the others say what their codes say on average.

        Raises:
            ValueError: grids of another layout than the model's, or a level that it does not have.
        """
        self.layout.check(codes)
        if levels is not None and not set(levels) <= set(range(len(codes))):
            raise ValueError(f"expected levels from 0 to {len(codes) - 1}, got {levels}")
        quantized = [planes(q.lookup(c)) for q, c in zip(self.quantizers, codes, strict=True)]
        if levels is not None:
            means = [z_q.mean((0, 2, 3), keepdim=True).expand_as(z_q) for z_q in quantized]
            quantized = [z_q if i in levels else means[i] for i, z_q in enumerate(quantized)]
        return self.network.decode(quantized).float()

    def decode(self, codes: list[torch.Tensor], levels: list[int] | None = None) -> torch.Tensor:
        """Code grids to float images (B, C, H, W) in [-1, 1]: the likelihood's mean; `levels` as above."""
        return self.likelihood.mean(self.decode_parameters(codes, levels))

    def update(self, step: int, seed: int) -> dict[str, torch.Tensor]:
        """Let every quantizer move, once for each optimizer step; the scalars' mean over levels, and each one's."""
        found = [q.update(step, seed_of("level", seed, level)) for level, q in enumerate(self.quantizers)]
        scalars = {name: torch.stack([f[name] for f in found]).mean() for name in found[0]}
        if len(found) > 1:
            scalars |= {f"{name}_level{i}": value for i, f in enumerate(found) for name, value in f.items()}
        return scalars

    def discard(self) -> None:
        """Forget what the quantizers gathered, after a step that was skipped."""
        for quantizer in self.quantizers:
            quantizer.discard()

    def _vectors(self, level: int, images: torch.Tensor) -> torch.Tensor:
        """z (M, D) of a level, all coarser levels quantized."""
        features = self.network.encode(images)
        _, context = self._quantize(features, level)
        z = self.network.latent(level, features[level], context)
        return z.permute(0, 2, 3, 1).flatten(0, 2).float()

    @torch.no_grad()
    def start(self, batches: Callable[[], Iterable[torch.Tensor]], seed: int) -> None:
        """Start every codebook at the data, coarsest first; `batches` yields the same float images each time."""
        self.eval()
        for level, quantizer in enumerate(self.quantizers):
            if not quantizer.at_data:
                continue
            random = generator("start", seed, level)
            vectors = torch.cat([self._vectors(level, images) for images in batches()])
            enough = START_VECTORS_PER_CODE * quantizer.codebook_size
            if len(vectors) > enough:
                vectors = vectors[torch.randperm(len(vectors), generator=random)[:enough].to(vectors.device)]
            quantizer.start(vectors, random)
        self.train()

    @torch.no_grad()
    def settle(self, batches: Callable[[], Iterable[torch.Tensor]]) -> None:
        """Re-estimate every codebook for the weights as they are, coarsest first, over the same float images."""
        for level, quantizer in enumerate(self.quantizers):
            kept: list[torch.Tensor] = []  # for a quantizer of several parts, which asks for them several times

            def vectors(level: int = level, kept: list[torch.Tensor] = kept) -> list[torch.Tensor]:
                if not kept:
                    kept.extend(self._vectors(level, images) for images in batches())
                return kept

            quantizer.settle(vectors)


def load_vqvae(folder: Path) -> tuple[VQVAE, Manifest]:
    """Load a published VQ-VAE from its own files, in evaluation mode on the CPU.

    Raises:
        UserError: missing, damaged, or not a VQ-VAE that this version builds.
    """
    return load_module(folder, "vqvae", VQVAE)
