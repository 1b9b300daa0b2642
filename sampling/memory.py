"""Finds out how many images can be drawn at once with the memory that is free."""

from __future__ import annotations

import os

import torch
from torch import nn

from stage2_prior.priors.base import Prior
from tessera.footprint import LIVE_OUTPUTS, LargestOutput
from tessera.launch.memory import free_bytes

MOST = 1024  # images at once; larger batches are no faster
PART = 0.5  # of the free memory that is used; the rest is for what is not counted here, and for other programs
BYTES_PER_LOGIT = 6 * 8  # choosing a token keeps six float64 tensors: guided, sorted and accumulated logits, and others


@torch.inference_mode()
def image_bytes(vqvae: nn.Module, prior: Prior, device: torch.device) -> int:
    """Bytes of memory that each further image of a batch takes, with guidance where the prior has classes."""
    tokens = torch.zeros(1, prior.layout.num_tokens, dtype=torch.int64, device=device)
    with LargestOutput(vqvae) as largest:
        vqvae.decode(prior.layout.unflatten(tokens))
    rows = 2 if prior.num_classes else 1  # guidance decodes the null label too
    return max(rows * prior.decoding_bytes(device, BYTES_PER_LOGIT), LIVE_OUTPUTS * largest.bytes)


def batch_size(one_image: int, prior: nn.Module, device: torch.device) -> int:
    """Number of images to draw at once, from 1 to `MOST`: as many as half of the free memory holds.

    Args:
        one_image: bytes that one image takes, see `image_bytes`. Processes on this machine that share its memory
            divide it among them.
        prior: the prior that draws the codes, on `device`.
    """
    # On a CPU, decoding keeps two copies of the prior's weights: joined or transposed, and laid out for fast products.
    copied = 2 * sum(p.nbytes for p in prior.parameters()) if device.type == "cpu" else 0
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device.type == "cpu" else 1
    return max(1, min(MOST, int((PART * free_bytes(device) / sharing - copied) / one_image)))
