"""The autoregressive decoding loop: one token after another, cached, every image with random numbers of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from common.randomness import seed_of
from sampling.choose import choose, guide


def image_uniforms(seed: int, indices: Iterable[int], count: int) -> torch.Tensor:
    """float64 (B, count) in [0, 1): image i's own stream, so that it comes out the same in any batch.

    Args:
        indices: the images' places in the run, (B,).
        count: tokens an image.
    """
    streams = [np.random.Generator(np.random.Philox(seed_of("sample", seed, int(i)))) for i in indices]
    return torch.from_numpy(np.stack([stream.random(count) for stream in streams]))


@torch.inference_mode()
def generate(
    prior: Any,
    labels: torch.Tensor | None,
    uniforms: torch.Tensor,
    *,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    guidance_scale: float,
    given: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sample tokens from an autoregressive prior.

    Guidance runs the null label beside the label in one batch of 2B rows; at exactly 1, and for a prior without
    classes, it is skipped.

    Args:
        prior: offers `num_classes`, `start(labels, context=None)` and `step(state, tokens)`.
        labels: int64 (B,), or None for the null label.
        uniforms: float64 (B, N) in [0, 1).
        given: int64 (B, N); tokens that are forced, -1 where the prior is free. None: all are free.

    Returns:
        int64 (B, N), on the device of `uniforms`.

    Raises:
        ValueError: the prior gave logits that are not numbers.
    """
    batch, count = uniforms.shape
    null = torch.full((batch,), prior.num_classes, device=uniforms.device)
    labels = null if labels is None else labels
    guided = prior.num_classes > 0 and guidance_scale != 1
    state = prior.start(torch.cat([labels, null]) if guided else labels)
    tokens, previous = torch.empty(batch, count, dtype=torch.int64, device=uniforms.device), None
    healthy = torch.ones((), dtype=torch.bool, device=uniforms.device)
    for place in range(count):
        logits = prior.step(state, previous)
        if guided:
            logits = guide(*logits.chunk(2), guidance_scale)
        healthy &= logits.amax(-1).isfinite().all()
        token = choose(logits, uniforms[:, place], temperature, top_k, top_p, min_p)
        if given is not None:
            token = torch.where(given[:, place] >= 0, given[:, place], token)
        tokens[:, place] = token
        previous = torch.cat([token, token]) if guided else token
    if not healthy:  # looked at once, at the end: a look at every token would wait for the device
        raise ValueError("the prior gave logits that are NaN or infinite; it is not fit to sample from")
    return tokens
