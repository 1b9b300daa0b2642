"""The likelihood account of images: what their pixels cost given their codes, and what the codes cost."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from common.codes import CodeLayout
from common.images import to_float
from stage1_vqvae.model import VQVAE
from stage2_prior.priors.base import Prior


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
    for rows in torch.arange(len(images)).split(batch_size):
        pixels = images[rows].to(device)
        codes = vqvae.encode(to_float(pixels))
        add("distortion", vqvae.likelihood.nll(vqvae.decode_parameters(codes), pixels))
        tokens = prior.layout.flatten(codes)
        if weights is not None:
            add("rate_by_level", summed_rates(prior, tokens, weights))
            continue
        nats, variance = prior.estimate(tokens, None if labels is None else labels[rows])
        add("rate_by_level", by_level(prior.layout, nats.double()))
        if not prior.exact:
            add("rate_standard_error", variance.sqrt())
    unit = prior.layout.dimensions * math.log(2)
    result = {name: torch.cat(parts).cpu() / unit for name, parts in found.items()}
    result["rate"] = result["rate_by_level"].sum(1)
    return result | {"total": result["distortion"] + result["rate"]}


def by_level(layout: CodeLayout, nats: Tensor) -> Tensor:
    """Sums over each level's tokens: (B, N) -> (B, levels)."""
    return torch.stack([nats[:, part].sum(1) for part in layout.slices()], 1)


def summed_rates(prior: Prior, tokens: Tensor, weights: Tensor) -> Tensor:
    """Nats of each level given the coarser ones, (B, levels) float64, under p(z) = Σ p(y) p(z | y)."""
    label = torch.zeros_like(tokens[:, 0])
    each = [by_level(prior.layout, prior.nll(tokens, label + y).double()) for y in range(prior.num_classes)]
    up_to = -torch.logsumexp(weights.log()[:, None] - torch.stack(each, 1).cumsum(-1), 1)  # levels 0 to l
    return up_to.diff(prepend=torch.zeros_like(up_to[:, :1]))
