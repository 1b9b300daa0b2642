"""A VQ-VAE and the further terms of its objective: what a training with a perceptual or adversarial term computes.

Source: Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis", section 3.1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stage1_vqvae.model import VQVAE
from stage1_vqvae.objectives.base import Term
from stage1_vqvae.objectives.build import build_terms
from stage1_vqvae.objectives.frozen import Frozen
from stage1_vqvae.quantizers.output import summed_loss
from tessera.distributed import sum_over_processes, world
from tessera.images.pixels import to_float

GENERATOR = "generator"  # the name of the loss that trains the VQ-VAE, or its decoder
DELTA, LARGEST = 1e-4, 1e4  # of the adaptive weight, as the published code has them


class Objective(nn.Module):
    """A VQ-VAE and the terms that are added to its loss.

    Attributes:
        vqvae: the model that is published.
        terms: the terms that are on, by name.
    """

    def __init__(self, vqvae: VQVAE, config: dict[str, Any]) -> None:
        """config: {NAME: {its parameters}} of each term that is on."""
        super().__init__()
        self.vqvae = vqvae
        self.terms: nn.ModuleDict = build_terms(config, vqvae.layout.image_shape[0])

    @property
    def weights(self) -> dict[str, str]:
        """SHA-256 of each frozen network's weights, by the network's place: inputs of a training, beside the images."""
        return {place: part.network.weights for place, part in self.named_modules() if isinstance(part, Frozen)}

    @property
    def opponents(self) -> dict[str, Term]:
        """The terms with parameters of their own, by the name of their loss."""
        return {term.opponent: term for term in self.terms.values() if term.opponent}

    def compile(self) -> None:
        """Compiles the VQ-VAE for training steps.

        With an adaptive weight a step takes the gradient of the distortion twice: for the weight, down to the last
        layer, and for the training. So last layer and distortion are not compiled then.
        """
        adaptive = any(term.adaptive for term in self.terms.values())
        if adaptive:
            last = self.vqvae.network.last_layer
            last.forward = torch.compiler.disable(last.forward)
        self.vqvae.compile(loss=not adaptive)

    def forward(self, loss: str, **batch: Any) -> Any:
        """Computes a loss by its name: see `generator` and `Term.own_loss`. `images` may be uint8 pixels here."""
        batch["images"] = to_float(batch["images"]) if batch["images"].dtype == torch.uint8 else batch["images"]
        if loss == GENERATOR:
            return self.generator(**batch)
        return self.opponents[loss].own_loss(**batch)

    def generator(
        self,
        images: Tensor,
        ramps: dict[str, float],
        seeds: Tensor | None = None,
        quantized: list[Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Computes the loss of the VQ-VAE, or of its decoder alone.

        Args:
            images: float (B, C, H, W) in [-1, 1].
            ramps: the part of each term's weight that counts in this step. Terms with 0 are not computed.
            seeds: int64 (B,), random seeds for quantizers that draw codes.
            quantized: z_q (B, D, h, w) of each level, for a decoder that is trained alone; None: images are encoded.

        Returns:
            the loss, a scalar; its parts by name; and the reconstructions (B, C, H, W), without a gradient.
        """
        parts: dict[str, Tensor] = {}
        if quantized is None:
            outputs, inputs = self.vqvae.quantize_for_decoder(images, seeds)
            parts["quantizer_loss"] = summed_loss(outputs)
        else:
            inputs = self.vqvae.network.decoder_inputs(quantized)
        parameters = self.vqvae.decode_inputs(inputs)
        parts["distortion"] = self.vqvae.distortion(parameters, images)
        with torch.autocast(images.device.type, enabled=False):
            made = self.vqvae.likelihood.mean(parameters)
        values: dict[str, Tensor] = {}
        for name, term in self.terms.items():
            if ramps[name]:
                values[name], found = _at(made, term, images)
                parts |= {f"{name}{ending}": value for ending, value in found.items()}
        with torch.autocast(images.device.type, enabled=False):
            fixed = parts["distortion"]
            for name in values:
                if not self.terms[name].adaptive:
                    fixed = fixed + self.terms[name].weight * ramps[name] * values[name]
            adaptive = {name: value for name, value in values.items() if self.terms[name].adaptive}
            factors = adaptive_factors(fixed, list(adaptive.values()), self.vqvae.network.last_layer.weight)
            loss = fixed
            for (name, value), factor in zip(adaptive.items(), factors, strict=True):
                parts[f"{name}_adaptive_weight"] = factor
                loss = loss + self.terms[name].weight * ramps[name] * factor * value
            loss = loss + parts["quantizer_loss"] if "quantizer_loss" in parts else loss
        return loss, parts, made.detach()


class _Given(torch.autograd.Function):
    """A scalar whose gradient with respect to one tensor is known already."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return outer * gradient, None, None


def _at(made: Tensor, term: Term, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """A term of reconstructions, and what it is the sum of (`Term.losses`).

    Its gradient with respect to them is computed here, once: the adaptive weight and the backward pass both need it.
    What the term kept for it is freed at once.
    """
    leaf = made.detach().requires_grad_()
    with torch.enable_grad():
        found = term.losses(leaf, images)
        value = sum(found.values())
        (gradient,) = torch.autograd.grad(value, leaf)
    return _Given.apply(made, value.detach(), gradient), {name: part.detach() for name, part in found.items()}


def adaptive_factors(fixed: Tensor, terms: list[Tensor], weight: Tensor) -> list[Tensor]:
    """The factor of each adaptive term: the ratio of the gradient norms of `fixed` and of the term (equation 7).

    Gradients are averaged over all processes before their norms are taken, so that the factors are those of the whole
    batch, and the same on every process. They are computed beside DDP, which shares no gradient of `autograd.grad`.

    Args:
        fixed: the loss without adaptive terms, a scalar.
        terms: the adaptive terms, scalars.
        weight: of the decoder's last layer.
    """
    if not terms:
        return []
    gradients = torch.stack([torch.autograd.grad(each, weight, retain_graph=True)[0] for each in (fixed, *terms)])
    gradients = sum_over_processes(gradients) / world()[1]
    first, *others = gradients.flatten(1).norm(dim=1)
    return [(first / (norm + DELTA)).clamp(max=LARGEST) for norm in others]
