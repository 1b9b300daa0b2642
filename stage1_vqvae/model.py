"""VQVAE: a network, a quantizer a level, and a likelihood. One level is the plain case of N.

Source: van den Oord et al. 2017, "Neural Discrete Representation Learning"; levels after Razavi et al. 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.artifacts import Manifest, load_model
from common.codes import CodeLayout, Level
from common.images import to_float
from common.randomness import generator
from stage1_vqvae.likelihood import build_likelihood
from stage1_vqvae.networks import build_network
from stage1_vqvae.quantizers import build_quantizers
from stage1_vqvae.quantizers.vq import gather_statistics

START_VECTORS_PER_CODE = 256  # k-means gains nothing from more


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
        name = config["quantizer"]["name"]
        self.likelihood = build_likelihood(config["likelihood"])
        outputs = self.likelihood.parameter_channels(image_shape[0])
        self.network = build_network(config["network"], image_shape, outputs, config["quantizer"][name]["codebook_dim"])
        self.quantizers = build_quantizers(config["quantizer"], len(self.network.grids))
        self.layout = CodeLayout(
            image_shape,
            tuple(
                Level(h, w, q.depth, q.codebook_size)
                for (h, w), q in zip(self.network.grids, self.quantizers, strict=True)
            ),
        )
        self._encode: Callable = self.network.encode
        self._decode: Callable = self.network.decode

    @property
    def codebook_parameters(self) -> frozenset[str]:
        """Names of parameters that belong to codebooks: no weight average touches them."""
        return frozenset(name for name, _ in self.named_parameters() if name.startswith("quantizers."))

    def compile(self) -> None:
        """Compile encoder and decoder for training steps; the quantizer and evaluation stay eager."""
        self._encode, self._decode = torch.compile(self.network.encode), torch.compile(self.network.decode)

    def _quantize(self, features: list[torch.Tensor], levels: int) -> tuple[list, torch.Tensor | None]:
        """Quantize the `levels` coarsest levels; also the context of the next one."""
        outputs, context = [], None
        for level in range(levels):
            z = self.network.latent(level, features[level], context)
            output = self.quantizers[level](z.permute(0, 2, 3, 1))
            outputs.append(output)
            context = self.network.context(level, output.z_q.permute(0, 3, 1, 2))
        return outputs, context

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The training loss and its named parts, for float images (B, C, H, W) in [-1, 1], or their uint8 pixels."""
        images = to_float(images) if images.dtype == torch.uint8 else images
        encode, decode = (self._encode, self._decode) if self.training else (self.network.encode, self.network.decode)
        outputs, _ = self._quantize(encode(images), len(self.quantizers))
        parameters = decode([o.z_q.permute(0, 3, 1, 2) for o in outputs])
        with torch.autocast(images.device.type, enabled=False):
            distortion = self.likelihood.loss(parameters, images, self.config["data_variance"])
            commitment = torch.stack([o.loss for o in outputs]).sum()
            return distortion + commitment, {"distortion": distortion, "commitment": commitment}

    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Float images (B, C, H, W) in [-1, 1] to code grids [(B, h, w, depth)] int64, coarsest first.

        Raises:
            ValueError: images of another shape than the model's.
        """
        if tuple(images.shape[1:]) != self.layout.image_shape:
            raise ValueError(f"expected images {self.layout.image_shape}, got {tuple(images.shape[1:])}")
        outputs, _ = self._quantize(self.network.encode(images), len(self.quantizers))
        return [output.indices for output in outputs]

    def decode_parameters(self, codes: list[torch.Tensor]) -> torch.Tensor:
        """Code grids to the likelihood's parameters (B, outputs, H, W) float32."""
        quantized = [q.lookup(c).permute(0, 3, 1, 2) for q, c in zip(self.quantizers, codes, strict=True)]
        return self.network.decode(quantized).float()

    def decode(self, codes: list[torch.Tensor]) -> torch.Tensor:
        """Code grids to float images (B, C, H, W) in [-1, 1]: the likelihood's mean."""
        return self.likelihood.mean(self.decode_parameters(codes))

    def update(self, step: int, seed: int) -> dict[str, torch.Tensor]:
        """Let every quantizer move, once for each optimizer step; the scalars' mean over levels, and each one's."""
        found = [q.update(step, seed=seed + level) for level, q in enumerate(self.quantizers)]
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
            counts, sums = torch.zeros_like(quantizer.ema_count), torch.zeros_like(quantizer.ema_sum)
            for images in batches():
                vectors = self._vectors(level, images)
                indices = quantizer(vectors).indices.flatten()
                more = gather_statistics(vectors, indices, quantizer.codebook_size)
                counts += more[0]
                sums += more[1]
            quantizer.reestimate(counts, sums)


def load_vqvae(folder: Path) -> tuple[VQVAE, Manifest]:
    """Load a published VQ-VAE from its own files, in evaluation mode on the CPU.

    Raises:
        UserError: missing, damaged, or not a VQ-VAE.
    """
    config, tensors, manifest = load_model(folder, "vqvae")
    model = VQVAE(config)
    model.load_state_dict(tensors)
    return model.eval(), manifest
