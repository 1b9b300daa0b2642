"""The likelihood account of images: what their pixels cost given their codes, and what the codes cost."""

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
    """`TwoStagePipeline.log_likelihood` of what has been checked.

    Args:
        images: uint8 (B, C, H, W); labels: int64 (B,) or None, on the models' device.
        weights: float64 (num_classes,), by which labels are summed out instead.
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
    """Sums over each level's tokens: (B, N) -> (B, levels)."""
    return torch.stack([nats[:, part].sum(1) for part in layout.slices()], 1)


def summed_rates(prior: Prior, tokens: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Nats of each level given the coarser ones, (B, levels) float64, under p(z) = Σ p(y) p(z | y), and their sum's
    variance, (B,).

    For any q, -log p(z) <= Σ q(y) (B(y) + log q(y) - log p(y)), where B(y) bounds -log p(z | y); with q(y) = p(y | z)
    and an exact B they are equal. A prior that is not exact has q by one estimate of its bounds and B by another that
    is independent, since the sum over estimates that q was fitted to would fall below its aim.
    """

    def each(again: int) -> tuple[Tensor, Tensor]:
        found = [prior.estimate(tokens, torch.full_like(tokens[:, 0], y), again) for y in range(prior.num_classes)]
        nats = torch.stack([by_level(prior.layout, nats.double()) for nats, _ in found], 1)
        return nats.cumsum(-1), torch.stack([variance for _, variance in found], 1)  # of levels 0 to l, and of all

    bounds, variance = each(0)
    log_p = weights.log()[:, None]
    log_q = (log_p - (bounds if prior.exact else each(1)[0])).log_softmax(1)
    q = log_q.exp()
    up_to = torch.where(q > 0, q * (bounds + log_q - log_p), 0.0).sum(1)
    # The classes' estimates share their masks, so that errors add at most.
    error = (q[..., -1] * variance.sqrt()).sum(1)
    return up_to.diff(prepend=torch.zeros_like(up_to[:, :1])), error.square()
