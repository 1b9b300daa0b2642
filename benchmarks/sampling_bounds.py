"""How fast sampling could be on this machine: a prior's arithmetic, the bytes of its weights, and the rates of both."""

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
    """FLOP/s of large matrix products, the faster of torch's own and those of decoding; bytes/s of reading memory."""
    a = torch.randn(2048, 2048, dtype=dtype)
    weights = torch.randn(64 * 2**20)  # 256 MB: no cache holds it
    packed = Product(a, None, len(a))
    times = in_turn({"plain": lambda: a @ a, "packed": lambda: packed(a), "read": weights.sum}, repeats=7)
    fastest = min(times[name]["low"] for name in ("plain", "packed"))
    return {"flops": 2 * 2048**3 / fastest, "bytes": weights.nbytes / times["read"]["low"]}


ONCE_A_ROW = (".above.", ".condition.", ".vertical_")  # of the weights of convolutional priors
ONCE = ("embedding", "token", "place", "label", "wte", "wpe")  # or tables, of which a row is read


@torch.inference_mode()
def bounds(prior: Prior, batch: int, rates: dict[str, float]) -> dict[str, float]:
    """Seconds below which products and convolutions, and reading the weights from memory, cannot come."""
    work = work_of(prior, batch)
    return {"arithmetic": work["flops"] / rates["flops"], "weights": work["bytes"] / rates["bytes"]}


def work_of(prior: Prior, batch: int) -> dict[str, float]:
    """FLOPs of products and convolutions of sampling a batch, and bytes of weights as often as they are used."""
    tokens = torch.zeros(batch, prior.layout.num_tokens, dtype=torch.int64)
    passes = Settings().decoding_steps if isinstance(prior, Masked) else 1
    with FlopCounterMode(display=False) as counter:  # which knows torch's own operators, not those of `Product`
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
        else:  # of a transformer down a position's codes each token uses all, of other parts each position
            times = positions * (level.depth if name.startswith("down.") else 1)
        used += p.nbytes * times
    counts = counter.get_flop_counts().get("Global", {})
    products = sum(count for operation, count in counts.items() if "attention" not in str(operation))
    return {"flops": products * passes, "bytes": used}
