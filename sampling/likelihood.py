"""The likelihood account of images: the bits of their pixels given their codes, and the bits of the codes."""

from __future__ import annotations

import torch
from torch import Tensor

from stage1_vqvae.model import VQVAE
from stage2_prior.priors.base import Prior
from tessera.codes.layout import CodeLayout
from tessera.images.pixels import to_float


@torch.no_grad()
def bits_per_dim(
    vqvae: VQVAE, prior: Prior, images: Tensor, labels: Tensor | None, weights: Tensor | None, batch_size: int
) -> dict[str, Tensor]:
    """Distortion and rate of images in bits per dimension (`TwoStagePipeline.log_likelihood`, which checks arguments).

    Args:
        images: uint8 (B, C, H, W).
        labels: int64 (B,) on the models' device, or None for the null label.
        weights: None, or probabilities of the classes, float64 (num_classes,): labels are then summed out.
        batch_size: number of images at a time.
    """
    found: dict[str, list[Tensor]] = {}

    def add(name: str, values: Tensor) -> None:
        found.setdefault(name, []).append(values.double())

    device = next(vqvae.parameters()).device
    for rows in torch.arange(len(images)).split(prior.measured_at_once(batch_size)):
        pixels = images[rows].to(device)
        codes = vqvae.encode(to_float(pixels))
        add("distortion", vqvae.likelihood.nll(vqvae.decode_parameters(codes), pixels))
        tokens = prior.layout.flatten(codes)
        if weights is not None:
            rates, variance = summed_rates(prior, tokens, weights)
        else:
            nats, variance = prior.estimate(tokens, None if labels is None else labels[rows])
            rates = by_level(prior.layout, nats.double())
        add("rate_by_level", rates)
        if not prior.exact:
            add("rate_standard_error", variance.sqrt())
    result = {name: prior.layout.bits_per_dim(torch.cat(parts).cpu()) for name, parts in found.items()}
    result["rate"] = result["rate_by_level"].sum(1)
    return result | {"total": result["distortion"] + result["rate"]}


def by_level(layout: CodeLayout, nats: Tensor) -> Tensor:
    """The sum over the tokens of each level: nats (B, N) to (B, levels)."""
    return torch.stack([nats[:, part].sum(1) for part in layout.slices()], 1)


def summed_rates(prior: Prior, tokens: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The rate under p(z) = Σ p(y) p(z | y).

    For any distribution q over the classes, -log p(z) <= Σ q(y) (B(y) + log q(y) - log p(y)), where B(y) bounds
    -log p(z | y). With q(y) = p(y | z) and an exact B both sides are equal. A prior that is not exact takes q from one
    estimate of its bounds and B from another, independent one. With a single estimate the sum would be too low, since q
    prefers the classes whose estimates happen to be low.

    Args:
        tokens: int64 (B, N).
        weights: p(y), float64 (num_classes,).

    Returns:
        Nats of each level given the coarser ones, float64 (B, levels); and the variance of their sum, (B,), which is 0
        for an exact prior.
    """

    def each(again: int) -> tuple[Tensor, Tensor]:
        found = [prior.estimate(tokens, torch.full_like(tokens[:, 0], y), again) for y in range(prior.num_classes)]
        nats = torch.stack([by_level(prior.layout, nats.double()) for nats, _ in found], 1)
        # Nats of the levels 0 to l, and the variance of the sum over all levels.
        return nats.cumsum(-1), torch.stack([variance for _, variance in found], 1)

    bounds, variance = each(0)
    log_p = weights.log()[:, None]
    log_q = (log_p - (bounds if prior.exact else each(1)[0])).log_softmax(1)
    q = log_q.exp()
    up_to = torch.where(q > 0, q * (bounds + log_q - log_p), 0.0).sum(1)
    # The estimates of all classes use the same masks, so their errors may add up.
    error = (q[..., -1] * variance.sqrt()).sum(1)
    return up_to.diff(prepend=torch.zeros_like(up_to[:, :1])), error.square()
