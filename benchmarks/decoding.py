"""Measures what one token costs: products with fixed weights, and the attention of one query, ours and torch's own.

    python benchmarks/decoding.py [--repeats 11] [--json FILE]

Products: `F.linear` and `Product`, for the four products of a transformer layer of width 256. Attention:
`scaled_dot_product_attention` and `KVCache.ask`, for 8 heads of width 32, after so many positions. Both run eight
layers one after another, so that weights are read from where decoding would read them. Times are microseconds per
layer, as medians and quartiles; the methods are timed in turn.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import repository  # noqa: F401
import torch
import torch.nn.functional as F
from timing import in_turn

from stage2_prior.priors.decoding.cache import KVCache
from stage2_prior.priors.decoding.products import Product
from tessera.launch.devices import set_threads

LAYERS, WIDTH, HEADS = 8, 256, 8
SHAPES = ((3 * WIDTH, WIDTH), (WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH))
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def products(rows: int, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    weights = [torch.randn(shape).to(dtype) for _ in range(LAYERS) for shape in SHAPES]
    biases = [torch.randn(len(weight)).to(dtype) for weight in weights]
    inputs = {size: torch.randn(rows, size).to(dtype) for _, size in SHAPES}
    ours = [(Product(weight, bias, rows), weight.shape[1]) for weight, bias in zip(weights, biases, strict=True)]
    # As decoding does: a single row without its dimension, where a product takes that.
    ours = [(p, inputs[size][0] if rows == 1 and p.layout == "plain" else inputs[size]) for p, size in ours]
    return {
        "ours": lambda: [product(x) for product, x in ours],
        "torch": lambda: [F.linear(inputs[w.shape[1]], w, b) for w, b in zip(weights, biases, strict=True)],
    }


def attention(batch: int, dtype: torch.dtype, positions: int) -> dict[str, Callable[[], object]]:
    shape = (batch, HEADS, 2 * positions, WIDTH // HEADS)
    q = torch.randn(batch, HEADS, 1, WIDTH // HEADS).to(dtype)
    kept = [torch.randn(2, *shape).to(dtype) for _ in range(LAYERS)]
    cache = KVCache(LAYERS, shape, q)
    cache.open(positions)
    for layer, (keys, values) in enumerate(kept):
        cache.put(layer, keys[:, :, :positions], values[:, :, :positions])
    return {
        "ours": lambda: [cache.ask(layer, q) for layer in range(LAYERS)],
        "torch": lambda: [
            F.scaled_dot_product_attention(q, keys[:, :, :positions], values[:, :, :positions]) for keys, values in kept
        ],
    }


@torch.inference_mode()
def measure(repeats: int) -> list[dict[str, Any]]:
    found = []
    for precision, dtype in PRECISIONS.items():
        cases = {f"products, {rows} rows": products(rows, dtype) for rows in (1, 2, 16, 64)}
        for batch in (1, 16, 64):
            cases |= {f"attention, batch {batch}, {n} positions": attention(batch, dtype, n) for n in (33, 100, 200)}
        for name, actions in cases.items():
            times = in_turn(actions, repeats)
            micros = {k: {q: 1e6 * s / LAYERS for q, s in t.items()} for k, t in times.items()}
            ratio = micros["torch"]["median"] / micros["ours"]["median"]
            found.append({"case": name, "precision": precision, "microseconds": micros, "ratio": ratio})
            text = ", ".join(f"{k} {t['median']:.0f} ({t['low']:.0f} to {t['high']:.0f})" for k, t in micros.items())
            print(f"{precision}, {name}: {text}; {ratio:.1f} times faster", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--threads", type=int, help="default: every core")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    set_threads(options.threads)
    found = measure(options.repeats)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
