"""The VQ-VAE: a network, the quantizers of its levels, and a likelihood.

Sources: van den Oord et al. 2017, "Neural Discrete Representation Learning"; Razavi et al. 2019, "Generating Diverse
High-Fidelity Images with VQ-VAE-2", for several levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stage1_vqvae.likelihoods.build import build_likelihood
from stage1_vqvae.networks.build import build_network, network_class
from stage1_vqvae.parameters import PARTS
from stage1_vqvae.quantizers.base import Quantizer
from stage1_vqvae.quantizers.build import build_quantizers, commitment_cost, without_commitment
from stage1_vqvae.quantizers.noise import derived
from stage1_vqvae.quantizers.output import QuantizerOutput, planes, summed_loss
from stage1_vqvae.scales import Scales
from tessera.artifacts.manifests import Manifest
from tessera.artifacts.models import load_module, refuse_others
from tessera.codes.layout import CodeLayout, Level
from tessera.images.pixels import to_float
from tessera.randomness import seed_of

Move = Callable[[int, Tensor], Tensor]  # what a level's z (B, h, w, D) becomes before it is quantized


class VQVAE(nn.Module):
    """Turns images into grids of codes, and grids of codes into a distribution over images.

    Args:
        config: `image_shape` (C, H, W); `data_variance`, the variance of training pixels in [-1, 1]; and `network`,
            `quantizer` and `likelihood`, each {"name": NAME, NAME: {its parameters}}. The quantizer's also has
            `"shared_by_levels": True` if one quantizer serves all levels. `scales` are the arguments of `Scales` but
            for the first three, if the network's one feature map is quantized at several scales.

    Attributes:
        config: the argument. The whole model can be built again from it.
        layout: the CodeLayout of the code grids.
        quantizers: one quantizer per level, coarsest first; or a single one that all levels share.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        image_shape = tuple(config["image_shape"])
        self.likelihood = build_likelihood(config["likelihood"])
        outputs, network = self.likelihood.parameter_channels(image_shape[0]), config["network"]
        grids = network_class(network).grids_of(image_shape, **network[network["name"]])
        scales, quantizer = config.get("scales"), config["quantizer"]
        if scales:
            if len(grids) != 1 or tuple(scales["grids"][-1]) != tuple(grids[0]):
                raise ValueError(f"scales end at {scales['grids'][-1]}, and the network's grids are {grids}")
            grids = [tuple(grid) for grid in scales["grids"]]
        self.quantizers = build_quantizers(without_commitment(quantizer) if scales else quantizer, len(grids))
        self.network = build_network(network, image_shape, outputs, self.quantizers[0].dim)
        if scales:
            self.network = Scales(self.network, self.quantizers[0].dim, commitment_cost(quantizer), **scales)
        levels = [(*grid, self.quantizer_of(level)) for level, grid in enumerate(grids)]
        self.layout = CodeLayout(image_shape, tuple(Level(h, w, q.depth, q.codebook_size) for h, w, q in levels))
        self._encode: Callable = self.network.encode
        self._decode: Callable = self.network.decode
        self._loss: Callable = self.likelihood.loss

    def quantizer_of(self, level: int) -> Quantizer:
        """The quantizer of a level."""
        return self.quantizers[level % len(self.quantizers)]

    @property
    def re_estimated_parameters(self) -> frozenset[str]:
        """The names of parameters that `re_estimate_codebooks` computes. A weight average leaves them out."""
        parts = ((name, module) for name, module in self.named_modules() if isinstance(module, Quantizer))
        computed = {f"{name}.{parameter}" for name, module in parts for parameter in module.re_estimated}
        return frozenset(name for name, _ in self.named_parameters() if name in computed)

    @property
    def has_likelihood(self) -> bool:
        """Whether the decoder was trained by its likelihood alone. With further terms no likelihood is fitted."""
        return "objective" not in self.config

    @property
    def stochastic(self) -> bool:
        """Whether a training step draws random numbers, for which `forward` takes seeds."""
        return self.network.stochastic or any(quantizer.stochastic for quantizer in self.quantizers)

    def compile(self, loss: bool = True) -> None:
        """Compiles encoder, decoder and loss for training steps. Quantizers and evaluation are not compiled.

        Args:
            loss: whether the likelihood's loss is compiled. The backward pass of what is compiled can run only once.
        """
        self._encode, self._decode = torch.compile(self.network.encode), torch.compile(self.network.decode)
        if loss:
            self._loss = torch.compile(self.likelihood.loss)

    def _z_of_levels(self, features: list[Tensor], quantized: list[Tensor], contexts: list[Any]) -> Iterator[Tensor]:
        """Yields z (B, h, w, D) of each level, coarsest first, and appends what it is conditioned on to `contexts`.

        Before the caller asks for the next z, it appends z_q (B, h, w, D) of the level to `quantized`.
        """
        context = None
        for level, feature in enumerate(features):
            if level:
                context = self.network.context(level - 1, planes(quantized[-1]), context)
                contexts.append(context)
            yield self.network.latent(level, feature, context).permute(0, 2, 3, 1)

    def quantize(self, images: Tensor, seeds: Tensor | None = None) -> list[QuantizerOutput]:
        """Encodes and quantizes images. Returns the output of each level's quantizer, coarsest first.

        Args:
            images: float (B, C, H, W) in [-1, 1].
            seeds: int64 (B,), random seeds, one per image. None uses torch's global generator.

        Raises:
            ValueError: the images have another shape than the model's.
        """
        if self.training:
            return self.quantize_for_decoder(images, seeds)[0]
        self._check(images)
        return self.quantize_features(self.network.encode(images), lambda level, z: z, seeds)[0]

    def quantize_for_decoder(
        self, images: Tensor, seeds: Tensor | None = None
    ) -> tuple[list[QuantizerOutput], list[Tensor]]:
        """What `quantize` returns, and what `decode_inputs` takes."""
        self._check(images)
        features = (self._encode if self.training else self.network.encode)(images)
        outputs, contexts = self.quantize_features(features, lambda level, z: z, seeds)
        if self.training:
            return self.network.trained_by(features, outputs, contexts, seeds)
        return outputs, self.network.decoder_inputs([planes(output.z_q) for output in outputs])

    def quantize_features(
        self, features: list[Tensor], move: Move, seeds: Tensor | None = None
    ) -> tuple[list[QuantizerOutput], list[Any]]:
        """Quantizes what `network.encode` returned, after `move(level, z)` has changed z of each level.

        Finer levels are conditioned on the moved coarser ones. Returns the output of each level's quantizer, and what
        each level but the coarsest is conditioned on (`Network.context`).
        """
        outputs, quantized, contexts = [], [], []
        for level, z in enumerate(self._z_of_levels(features, quantized, contexts)):
            outputs.append(self.quantizer_of(level)(move(level, z), derived(seeds, level)))
            quantized.append(outputs[-1].z_q)
        return outputs, contexts

    def _check(self, images: Tensor) -> None:
        if tuple(images.shape[1:]) != self.layout.image_shape:
            raise ValueError(f"expected images {self.layout.image_shape}, got {tuple(images.shape[1:])}")

    def forward(self, images: Tensor, seeds: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the training loss.

        Args:
            images: float (B, C, H, W) in [-1, 1], or uint8 pixels (B, C, H, W).
            seeds: int64 (B,), random seeds, one per image. None uses torch's global generator.

        Returns:
            the loss, a scalar; and its parts by name. It is `distortion`, the likelihood's loss, plus `quantizer_loss`,
            the sum over levels.

        Raises:
            ValueError: the images have another shape than the model's.
        """
        images = to_float(images) if images.dtype == torch.uint8 else images
        outputs, inputs = self.quantize_for_decoder(images, seeds)
        parameters = self.decode_inputs(inputs)
        distortion, quantizer_loss = self.distortion(parameters, images), summed_loss(outputs)
        return distortion + quantizer_loss, {"distortion": distortion, "quantizer_loss": quantizer_loss}

    def decode_inputs(self, inputs: list[Tensor]) -> Tensor:
        """Turns `network.decoder_inputs` into the likelihood's parameters, as a training step does."""
        return self._decode(inputs) if self.training else self.network.decode(inputs)

    def distortion(self, parameters: Tensor, images: Tensor) -> Tensor:
        """The likelihood's training loss, a scalar in float32, of parameters (B, outputs, H, W) and float images."""
        loss = self._loss if self.training else self.likelihood.loss
        with torch.autocast(images.device.type, enabled=False):
            return loss(parameters, images, self.config["data_variance"])

    def encode(self, images: Tensor) -> list[Tensor]:
        """Turns float images (B, C, H, W) in [-1, 1] into code grids, int64 (B, h, w, depth), coarsest level first."""
        return [output.indices for output in self.quantize(images)]

    def draw(self, images: Tensor, seeds: Tensor) -> list[Tensor]:
        """Turns images into code grids drawn at random. Quantizers that cannot draw take the best codes.

        Each level is conditioned on the codes drawn for coarser levels, because the decoder receives these codes too.

        Args:
            images: float (B, C, H, W) in [-1, 1].
            seeds: int64 (B,), random seeds, one per image.

        Returns:
            int64 (B, h, w, depth) for each level, coarsest first.
        """
        self._check(images)
        grids, quantized = [], []
        for level, z in enumerate(self._z_of_levels(self.network.encode(images), quantized, [])):
            quantizer = self.quantizer_of(level)
            grids.append(quantizer.draw(z, derived(seeds, level)) if quantizer.can_draw else quantizer(z).indices)
            quantized.append(quantizer.lookup(grids[-1]))
        return grids

    def decode_parameters(self, codes: list[Tensor], levels: list[int] | None = None) -> Tensor:
        """Turns code grids into the parameters of the likelihood.

        Args:
            codes: int64 (B, h, w, depth) for each level, coarsest first.
            levels: the levels to decode. What stands for the others is the network's matter (`Network.left_out`): as a
                rule their mean embedding. None decodes all.

        Returns:
            float32 (B, outputs, H, W), where outputs is what the likelihood asks for.

        Raises:
            ValueError: the grids do not fit the layout, or a level does not exist.
        """
        self.layout.check(codes)
        if levels is not None and not set(levels) <= set(range(len(codes))):
            raise ValueError(f"expected levels from 0 to {len(codes) - 1}, got {levels}")
        quantized = [planes(self.quantizer_of(level).lookup(grid)) for level, grid in enumerate(codes)]
        if levels is not None:
            quantized = [z if level in levels else self.network.left_out(z) for level, z in enumerate(quantized)]
        return self.network.decode(self.network.decoder_inputs(quantized)).float()

    def decode(self, codes: list[Tensor], levels: list[int] | None = None) -> Tensor:
        """Turns code grids into images: the likelihood's mean, float32 (B, C, H, W) in [-1, 1].

        See `decode_parameters` for the arguments and what is raised.
        """
        return self.likelihood.mean(self.decode_parameters(codes, levels))

    def update(self, step: int, seed: int) -> dict[str, Tensor]:
        """Moves the codebooks after an optimizer step. Call it once per step, on every process.

        Args:
            step: the number of the optimizer step, from 0.
            seed: the random seed of the training.

        Returns:
            scalars by name: the mean of each figure over the quantizers, and with several quantizers also each one's,
            its name followed by `_level0` and so on.
        """
        found = [q.update(step, seed_of("level", seed, level)) for level, q in enumerate(self.quantizers)]
        means = {name: torch.stack([figures[name] for figures in found]).mean() for name in found[0]}
        named = {f"{name}_level_{i}": value for i, f in enumerate(found) for name, value in f.items()}
        return means | named if len(found) > 1 else means

    def discard(self) -> None:
        """Forgets what the quantizers gathered, after a step that was skipped."""
        for quantizer in self.quantizers:
            quantizer.discard()

    @property
    def levels_share_a_quantizer(self) -> bool:
        """Whether all levels share one quantizer. False if there is one level only."""
        return len(self.quantizers) < len(self.layout.levels)

    def vectors(self, levels: range, images: Tensor) -> Tensor:
        """z, float32 (M, D), of some consecutive levels, level by level; coarser levels are quantized.

        Args:
            levels: numbers of levels, of which 0 is the coarsest.
            images: float (B, C, H, W) in [-1, 1].
        """
        found, quantized = [], []
        for level, z in enumerate(self._z_of_levels(self.network.encode(images), quantized, [])):
            if level in levels:
                found.append(z.flatten(0, 2).float())
            if level + 1 == levels.stop:
                break
            quantized.append(self.quantizer_of(level)(z).z_q)
        return torch.cat(found)


def load_vqvae(folder: Path) -> tuple[VQVAE, Manifest]:
    """Loads a published VQ-VAE from the files of its folder, such as models/vqvae.

    Returns:
        the model in evaluation mode on the CPU, and the manifest of the folder.

    Raises:
        UserError: the folder is missing or damaged, or does not hold a VQ-VAE that this version can build.
    """
    return load_module(folder, "vqvae", vqvae_from_file)


def vqvae_from_file(config: dict[str, Any]) -> VQVAE:
    """The VQ-VAE of a configuration from a file. Raises ValueError for keys that none has."""
    refuse_others(config, ("image_shape", "data_variance", "preparation", "objective", "scales", *PARTS), "config.json")
    for part in PARTS:
        refuse_others(config[part], ("name", config[part]["name"], "shared_by_levels"), part)
    return VQVAE(config)
