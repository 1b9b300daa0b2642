"""The quantizer alone against vector_quantize_pytorch's: times, results, memory. Run by stage1_speed.py."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from runs import STAGE1, parameters
from timing import forget_peak, in_turn, resident, show
from torch import nn

from stage1_vqvae.quantizers.build import build_quantizers
from stage1_vqvae.quantizers.search import nearest

VECTORS = 16_384
SIZES = ((512, 64), (8_192, 64), (16_384, 8))
VQ = STAGE1 + "quantizer.vq."
EMA = {VQ + "codebook_update": "ema", VQ + "ema_decay": 0.99, VQ + "commitment_cost": 0.25, VQ + "start": "normal"}
EMA |= {STAGE1 + "quantizer.name": "vq", VQ + "gradient_estimator": "straight_through", VQ + "revival_threshold": 0.0}


def our_quantizer(size: int, dim: int) -> nn.Module:
    params = parameters(EMA | {VQ + "codebook_size": size, VQ + "codebook_dim": dim})
    return build_quantizers(params.stage1_vqvae.quantizer.values(), 1)[0].train()


def their_quantizer(size: int, dim: int) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what its import has to say is not about us
        from vector_quantize_pytorch import VectorQuantize
    settings = {"decay": 0.99, "eps": 1e-5, "commitment_weight": 0.25, "kmeans_init": False, "rotation_trick": False}
    return VectorQuantize(dim, size, threshold_ema_dead_code=0, learnable_codebook=False, **settings).train()


def our_step(quantizer: nn.Module, z: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Forward, backward, EMA; returns indices and z_q."""
    z.grad = None
    output = quantizer(z)
    torch.autograd.backward([output.z_q, output.loss], [gradient, None])
    quantizer.update(0, 0)
    return output.indices.squeeze(-1), output.z_q.detach()


def their_step(quantizer: nn.Module, z: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    z.grad = None
    z_q, indices, loss = quantizer(z)
    torch.autograd.backward([z_q, loss.sum()], [gradient, None])
    return indices, z_q.detach()


SIDES = {"ours": (our_quantizer, our_step), "vector_quantize_pytorch": (their_quantizer, their_step)}


def vectors(count: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """z (B, 64, D), 64 vectors an image, and a gradient for it."""
    torch.manual_seed(0)
    return torch.randn(count // 64, 64, dim, requires_grad=True), torch.randn(count // 64, 64, dim)


def differences(size: int, dim: int) -> dict[str, float]:
    """How far the results of one step of both are apart, from equal states."""
    z, gradient = vectors(VECTORS, dim)
    ours, theirs = our_quantizer(size, dim), their_quantizer(size, dim)
    with torch.no_grad():
        theirs._codebook.embed.copy_(ours.codebook[None])
        theirs._codebook.embed_avg.copy_(ours.ema_sum[None])
        theirs._codebook.cluster_size.copy_(ours.ema_count[None])
    before = ours.codebook.clone()
    (index_a, z_q_a), (index_b, z_q_b) = our_step(ours, z, gradient), their_step(theirs, z, gradient)
    # A vector half way between two codes goes to either by rounding, and with it a share of their means.
    apart = index_a != index_b
    distances = [(z.detach() - q)[apart].double().norm(dim=-1) for q in (z_q_a, z_q_b)]
    untouched = torch.ones(size, dtype=torch.bool)
    untouched[torch.cat([index_a[apart], index_b[apart]])] = False
    return {
        "other_indices": int(apart.sum()),
        "their_distances": max([0.0, *(distances[0] - distances[1]).abs().tolist()]),
        "z_q": (z_q_a - z_q_b)[~apart].abs().max().item(),
        "codebook": (ours.codebook - theirs._codebook.embed[0])[untouched].abs().max().item(),
        "codebook_moved": (ours.codebook - before).abs().max().item(),
    }


def product(rows: torch.Tensor, codebook: torch.Tensor) -> Callable[[], None]:
    """The bare (M, D) x (D, K), in blocks that reuse one piece of memory: the bound of a search by products."""
    transposed, block = codebook.t().contiguous(), max(64, 2**22 // len(codebook))
    out = torch.empty(block, len(codebook))

    def run() -> None:
        for part in rows.split(block):
            torch.mm(part, transposed, out=out[: len(part)])

    return run


def peak_rise(side: str, size: int, dim: int, threads: int) -> float:
    """MB that a step adds to the peak of resident memory, in a process that has done a small one before."""
    torch.set_num_threads(threads)
    build, step = SIDES[side]
    step(build(32, dim), *vectors(128, dim))
    quantizer, (z, gradient) = build(size, dim), vectors(VECTORS, dim)
    before = resident()
    forget_peak()
    step(quantizer, z, gradient)
    return resident(peak=True) - before


def measure_quantizer(repeats: int) -> list[dict[str, Any]]:
    found = []
    for size, dim in SIZES:
        z, gradient = vectors(VECTORS, dim)
        modules = {side: build(size, dim) for side, (build, _) in SIDES.items()}
        rows, codebook = z.detach().view(-1, dim), torch.randn(size, dim)
        actions: dict[str, Callable] = {s: partial(SIDES[s][1], m, z, gradient) for s, m in modules.items()}
        actions |= {"our search alone": partial(nearest, rows, codebook), "bare product": product(rows, codebook)}
        times = in_turn(actions, repeats)
        memory = {}
        for side in SIDES:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                memory[side] = process.submit(peak_rise, side, size, dim, torch.get_num_threads()).result()
        apart, (ours, theirs) = differences(size, dim), (times[side]["median"] for side in SIDES)
        print(f"\nquantizer, {VECTORS} vectors, K {size}, D {dim}: {theirs / ours:.1f} times faster")
        show(times)
        search = times["our search alone"]["median"] / times["bare product"]["median"]
        print(f"  search {search:.1f} times the product; peak memory {memory['ours']:.1f} MB against ", end="")
        print(f"{memory['vector_quantize_pytorch']:.1f}; differences {apart}", flush=True)
        row = {"codebook_size": size, "dim": dim, "ratio": theirs / ours, "search_to_product": search}
        found.append(row | {"times": times, "peak_mb": memory, "differences": apart})
    return found
