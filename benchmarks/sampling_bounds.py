"""Lower bounds of the time of sampling on this machine, from a prior's arithmetic and the bytes of its weights."""

from __future__ import annotations

import repository  # noqa: F401
import torch
from timing import in_turn
from torch.utils.flop_counter import FlopCounterMode

from sampling.settings import Settings
from stage2_prior.priors.base import Prior
from stage2_prior.priors.decoding.products import Product
from stage2_prior.priors.masked import Masked


def machine(dtype: torch.dtype) -> dict[str, float]:
    """This machine's rates: FLOP/s of large matrix products (the faster of two ways), bytes/s of reading memory."""
    a = torch.randn(2048, 2048, dtype=dtype)
    weights = torch.randn(64 * 2**20)  # 256 MB: no cache holds it
    packed = Product(a, None, len(a))
    times = in_turn({"plain": lambda: a @ a, "packed": lambda: packed(a), "read": weights.sum}, repeats=7)
    fastest = min(times[name]["low"] for name in ("plain", "packed"))
    return {"flops": 2 * 2048**3 / fastest, "bytes": weights.nbytes / times["read"]["low"]}


ONCE_A_ROW = (".above.", ".condition.", ".vertical_")  # weights of convolutional priors that are used once a row
# Weights that are used once, and tables of which a row is read.
ONCE = ("embedding", "token", "place", "source", "label", "wte", "wpe")


@torch.inference_mode()
def bounds(prior: Prior, batch: int, rates: dict[str, float]) -> dict[str, float]:
    """The least seconds that products and convolutions take, and that reading the weights from memory takes."""
    work = work_of(prior, batch)
    return {"arithmetic": work["flops"] / rates["flops"], "weights": work["bytes"] / rates["bytes"]}


def work_of(prior: Prior, batch: int) -> dict[str, float]:
    """What sampling a batch takes: FLOPs of products and convolutions, and bytes of weights, counted at every use."""
    tokens = torch.zeros(batch, prior.layout.num_tokens, dtype=torch.int64)
    passes = Settings().decoding_steps if isinstance(prior, Masked) else 1
    with FlopCounterMode(display=False) as counter:  # it counts torch's own operators, not those of `Product`
        if isinstance(prior, Masked):
            prior.predict(tokens, torch.ones_like(tokens, dtype=torch.bool), None)
        else:
            prior.logits(tokens, None)
    level, used = prior.layout.levels[0], 0.0
    positions = level.height * level.width
    for name, p in prior.named_parameters():
        if any(part in name for part in ONCE):
            continue
        if isinstance(prior, Masked):
            times = passes
        elif any(part in f".{name}" for part in ONCE_A_ROW):
            times = level.height
        else:  # a depth transformer's weights are used for each token, all others for each position
            times = positions * (level.depth if name.startswith("down.") else 1)
        used += p.nbytes * times
    counts = counter.get_flop_counts().get("Global", {})
    products = sum(count for operation, count in counts.items() if "attention" not in str(operation))
    return {"flops": products * passes, "bytes": used}
