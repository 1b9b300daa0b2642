"""Measures how fast codes are sampled, by several methods, and how fast this machine could be.

    python benchmarks/sampling.py [ROW ...] [--batch 1 16 64] [--grid 8 16 32] [--repeats 3] [--json FILE]

A row is a prior and a precision. Weights and codes are random, there are no classes, and codebooks have 512 codes. A
chain has no row, because it takes as long as its links; `uniform` has none, because it takes as long as `counts`.

ours: `sampling.generate` for a whole batch of grids, from the first random number to the last code. `same tokens` is
    the share of tokens that full recomputation chooses too, with the same random numbers. It is below 1 in bf16, where
    rounding decides between codes of equal probability.
recompute: the whole grid is computed again for each token. A few tokens are timed and multiplied, because every token
    costs the same.
rows: for each token, all rows so far are computed again, as rosinality's sampler does, with our model. It is timed at
    --places rows from the first to the last, and interpolated linearly between them.
generate: the `generate` of `transformers` on the same weights, with tables of its own for tokens and logits, with a
    growing and with a static cache. A row in bf16 has it in fp32 too. `logits apart` is the largest difference between
    the logits of our decoder and those of the library's whole sequence, in standard deviations of the logits.
bounds: two lower bounds of the time. The first is the FLOPs of the forward passes without attention, at this machine's
    rate of large matrix products. The second is the bytes of the weights, as often as they are used, at its rate of
    reading memory. What a processor's cache holds may be read faster.

`recompute` and `rows` use the faster of two memory layouts, and are timed once at each place. Everything else is timed
--repeats times in turn; the median and the quartiles are reported. A case that the file --results holds is not measured
again, unless the code has changed since. The script ends with a table of all cases.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from repository import REPOSITORY
from runs import add_row, code_of, read_rows
from sampling_bounds import bounds, machine
from timing import in_turn

from sampling.choose import choose
from sampling.generate import Streams, generate
from sampling.settings import Settings
from stage2_prior.priors.base import Prior
from stage2_prior.priors.build import build_prior
from stage2_prior.priors.grid import GridPrior
from stage2_prior.priors.transformer import Transformer
from tessera.codes.layout import CodeLayout, Level
from tessera.launch.devices import set_threads

CODES = 512
SNAIL = {"kernel_size": 5, "layers": 4, "residuals": 4, "heads": 8, "conditioning_blocks": 0, "dropout": 0.1}
LLM = {"layers": 8, "width": 256, "heads": 8, "dropout": 0.0, "extra": {}}
PRIORS: dict[str, tuple[str, dict[str, Any], int]] = {  # name, params, depth
    "counts": ("counts", {}, 1),
    "pixelcnn": ("pixelcnn", {"layers": 15, "width": 128, "channels": 1.0, "kernel_size": 5, "dropout": 0.1}, 1),
    "pixelsnail": ("pixelsnail", SNAIL | {"width": 256, "channels": 1.0, "hidden": 1.0}, 1),  # rosinality's size
    "gpt2": ("transformer", LLM | {"architecture": "gpt2"}, 1),
    "llama": ("transformer", LLM | {"architecture": "llama"}, 1),
    "rq_transformer": (
        "rq_transformer",
        LLM_SIZE := {k: v for k, v in LLM.items() if k != "extra"} | {"depth_layers": 2},
        4,
    ),
    "any_order": (
        "any_order",
        {k: v for k, v in LLM_SIZE.items() if k != "depth_layers"} | {"annealing": None},
        1,
    ),
    "masked": ("masked", {k: v for k, v in LLM_SIZE.items() if k != "depth_layers"} | {"bound_draws": 1}, 1),
}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
ROWS = [f"{name}, {precision}" for name in PRIORS for precision in PRECISIONS]


def make(name: str, precision: str, grid: int) -> Prior:
    family, params, depth = PRIORS[name]
    layout = CodeLayout((3, 4 * grid, 4 * grid), (Level(grid, grid, depth, CODES),))
    torch.manual_seed(0)
    prior = build_prior({"name": family, "params": params, "layout": layout.to_json(), "num_classes": 0}).eval()
    return prior.lowered(PRECISIONS[precision]) if precision != "fp32" else prior.requires_grad_(False)


@torch.inference_mode()
def same_tokens(prior: Prior, tokens: torch.Tensor, streams: Streams) -> float:
    """The share of the sampled tokens that full recomputation chooses too, with the same random numbers."""
    logits, uniforms = prior.logits(tokens, None), streams.uniforms(prior.layout.num_tokens)
    filters = Settings.plain().filters(0)
    chosen = [choose(logits[:, i], uniforms[:, i], **filters) for i in range(tokens.shape[1])]
    return (torch.stack(chosen, 1) == tokens).double().mean().item()


def faster_layout(seconds: Callable[[Prior], float], prior: Prior) -> float:
    """The lower of two times: with the weights as they are, and with convolutions in the channels-last layout."""
    if not isinstance(prior, GridPrior):
        return seconds(prior)
    return min(seconds(prior), seconds(copy.deepcopy(prior).to(memory_format=torch.channels_last)))


def once(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


@torch.inference_mode()
def recompute(prior: Prior, batch: int, places: int) -> float:
    """Seconds for a batch of grids by full recomputation: the median time of a few tokens, times all tokens."""
    tokens = torch.randint(CODES, (batch, prior.layout.num_tokens))
    seconds = [once(lambda: prior.logits(tokens, None)[:, 0].argmax(-1)) for _ in range(places)]
    return float(np.median(seconds)) * prior.layout.num_tokens


def last_logits(prior: GridPrior, codes: torch.Tensor) -> torch.Tensor:
    """Logits (B, V) of the first code of the last position, computed from all codes so far, (B, rows, w, depth)."""
    rows, labels = codes.shape[1], torch.full((len(codes),), prior.num_classes)
    place, label = prior.surroundings[0]([])[:, :, :rows], prior.labels[0](labels)
    grid = prior.grids[0].features(prior.embeddings[0](codes).sum(3).movedim(-1, 1), place, label)
    return prior.grids[0].readout(grid[:, :, -1, -1], 0)


@torch.inference_mode()
def rows_so_far(prior: GridPrior, batch: int, places: int) -> float:
    """Seconds for a batch of grids if the rows so far are computed again for each token."""
    level = prior.layout.levels[0]
    measured = sorted({round(r) for r in np.linspace(1, level.height, places)})
    seconds = []
    for rows in measured:
        codes = torch.randint(CODES, (batch, rows, level.width, level.depth))
        last_logits(prior, codes)
        seconds.append(once(lambda codes=codes: last_logits(prior, codes).argmax(-1)))
    each = np.interp(range(1, level.height + 1), measured, seconds)
    return float(each.sum()) * level.width * level.depth


def library(prior: Transformer, batch: int) -> tuple[dict[str, Callable[[], object]], float]:
    """The library's `generate` on the prior's own weights with each kind of cache, and `logits apart`.

    The latter is the largest difference between our logits, decoded token by token, and the library's for the whole
    sequence, in standard deviations of the logits.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    count = prior.layout.num_tokens
    values = {k: v for k, v in prior.params["configuration"].items() if k != "model_type"}
    values |= {"vocab_size": CODES, "bos_token_id": 0, "eos_token_id": None, "pad_token_id": 0}
    positions = [name for name in ("n_positions", "max_position_embeddings") if name in values]
    values |= dict.fromkeys(positions, count + 1)
    config = AutoConfig.for_model(prior.params["architecture"], **values)
    model = AutoModelForCausalLM.from_config(config, dtype=next(prior.backbone.parameters()).dtype).eval()
    theirs = model.base_model.state_dict()
    for name, weights in prior.backbone.state_dict().items():
        if "wte" not in name and "embed_tokens" not in name:
            theirs[name][: len(weights)].copy_(weights)  # its table of positions has one row more
    with torch.inference_mode():
        rows = min(2, batch)
        tokens = torch.randint(CODES, (rows, count))
        labels = prior.fill_labels(None, tokens[:, 0])
        whole = model.base_model(inputs_embeds=prior._inputs(tokens, labels)).last_hidden_state
        expected = prior.ends.read(whole).float()
        state = prior.begin(labels, tokens[:, :0])
        steps = [prior.advance(state, i, tokens[:, i - 1] if i else None) for i in range(count)]
        apart = ((torch.stack(steps, 1).float() - expected).abs().max() / expected.std()).item()
    start = torch.zeros(batch, 1, dtype=torch.int64)
    common = {
        "attention_mask": torch.ones_like(start),
        "do_sample": True,
        "min_new_tokens": count,
        "max_new_tokens": count,
    }
    common |= {"top_k": 0, "top_p": 1.0, "disable_compile": True}
    kinds = ("dynamic", "static")
    return {kind: lambda kind=kind: model.generate(start, cache_implementation=kind, **common) for kind in kinds}, apart


def code() -> str:
    """A hash of the code that is measured."""
    own = [REPOSITORY / "sampling" / f"{name}.py" for name in ("choose", "generate", "settings")]
    own += [REPOSITORY / "benchmarks" / f"{name}.py" for name in ("sampling", "sampling_bounds")]
    return code_of(*own, *(REPOSITORY / "stage2_prior" / "priors").rglob("*.py"))


def measure(row: str, batch: int, grid: int, options: argparse.Namespace) -> dict[str, Any]:
    name, precision = row.split(", ")
    prior = make(name, precision, grid)
    streams, settings = Streams(0, tuple(range(batch)), torch.device("cpu")), Settings.plain()
    actions = {"ours": lambda: generate(prior, None, streams, settings)}
    apart = {}
    if isinstance(prior, Transformer):
        for dtype in dict.fromkeys([precision, "fp32"]):
            peer, apart[dtype] = library(prior if dtype == precision else make(name, dtype, grid), batch)
            actions |= {f"generate, {kind}, {dtype}": action for kind, action in peer.items()}
    found: dict[str, Any] = {
        "row": row,
        "batch": batch,
        "grid": grid,
        "parameters": sum(p.numel() for p in prior.parameters()),
        "code": code(),
        "torch": torch.__version__,
        "repeats": options.repeats,
    }
    with torch.inference_mode():
        found["times"], rates = in_turn(actions, options.repeats, warmup=1), machine(PRECISIONS[precision])
    if apart:
        found["logits_apart"] = apart[precision]
    slow = {}
    if name != "masked":
        slow["recompute"] = faster_layout(lambda p: recompute(p, batch, options.places), prior)
        found["same_tokens"] = same_tokens(prior, actions["ours"](), streams)
    if isinstance(prior, GridPrior):
        slow["rows"] = faster_layout(lambda p: rows_so_far(p, batch, options.places), prior)
    found["slow"], found["bounds"] = slow, bounds(prior, batch, rates)
    ours = found["times"]["ours"]["median"]
    others = {other: t["median"] for other, t in found["times"].items() if other != "ours"} | slow
    found["ratios"] = {other: seconds / ours for other, seconds in others.items()}
    spread = found["times"]["ours"]
    print(
        f"{row}, batch {batch}, {grid}x{grid}: {ours:.3f} s ({spread['low']:.3f} to {spread['high']:.3f}), "
        f"{batch / ours:.2f} images/s, {batch * prior.layout.num_tokens / ours:.0f} tokens/s; "
        + "  ".join(
            f"{other}{' (estimated)' * (other in slow)} {seconds:.2f} s, {seconds / ours:.1f}x"
            for other, seconds in others.items()
        )
        + "; bounds "
        + "  ".join(f"{bound} {seconds:.3f} s" for bound, seconds in found["bounds"].items())
        + (f"; same tokens {found['same_tokens']:.2%}" if "same_tokens" in found else "")
        + (f"; logits apart {found['logits_apart']:.1e}" if "logits_apart" in found else ""),
        flush=True,
    )
    return found


COLUMNS = ["seconds", "images/s", "tokens/s", "bound: arithmetic", "bound: weights", "recomputed", "rows so far"]
COLUMNS += ["generate", "same tokens"]


def table(results: list[dict[str, Any]]) -> str:
    """A table in markdown with a row for each case.

    Other methods are given as multiples of our time; `generate` in fp32, with the faster of its caches.
    """
    names = ["row", "grid", "batch", *COLUMNS]
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]

    def times(name: str, ratios: dict[str, float]) -> str:
        found = [r for key, r in ratios.items() if key == name or (key.startswith(name) and key.endswith("fp32"))]
        return f"{min(found):.{2 if min(found) < 10 else 0}f}x" if found else ""

    for r in results:
        ours, limits = r["times"]["ours"]["median"], r["bounds"]
        tokens = r["grid"] ** 2 * PRIORS[r["row"].split(", ")[0]][2]
        cells = [r["row"], f"{r['grid']}x{r['grid']}", r["batch"], f"{ours:.3g}", f"{r['batch'] / ours:.3g}"]
        cells += [f"{r['batch'] * tokens / ours:,.0f}", f"{limits['arithmetic']:.2g} s", f"{limits['weights']:.2g} s"]
        cells += [times(name, r["ratios"]) for name in ("recompute", "rows", "generate")]
        cells.append(f"{r['same_tokens']:.1%}" if "same_tokens" in r else "")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of: {'; '.join(ROWS)} (default: all)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--grid", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--places", type=int, default=3, help="where slow ways are timed (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="default: every core")
    parser.add_argument("--results", type=Path, help="JSON lines: a case is added as it is measured")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    set_threads(options.threads)
    cases = [(row, b, g) for row in options.rows or ROWS for g in options.grid for b in options.batch]
    results = [r for r in read_rows(options.results) if r.get("code") == code()] if options.results else []
    done = {(r["row"], r["batch"], r["grid"]) for r in results}
    for case in cases:
        if case not in done:
            results.append(measure(*case, options))
            if options.results:
                add_row(options.results, results[-1])
    print(f"\n{table(results)}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
