"""How fast `next_scale` draws scales, beside llama over the same scales and over the finest grid alone.

    python benchmarks/scale_speed.py [--sides 1 2 3 4 5 6 8 10 13 16] [--batch 16] [--repeats 7] [--precision fp32]
        [--priors llama masked any_order] [--device cpu] [--threads N] [--json FILE]

Weights are random, there are no classes, and each scale has 512 codes of its own. A row is a prior over a layout: the
scales, or the last scale as a plain grid, which next_scale is not made for. All are drawn in turn in one process by
`sampling.generate`, from the first random number to the last code. A row has the median and the quartiles of its
seconds, and of the ratio to next_scale's seconds in the same turn, so that what else runs on the machine counts little.
`masked` draws in its default number of passes, which the row holds, and `any_order` one token after another.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import repository  # noqa: F401
import torch
from runs import processor
from timing import quartiles, turns

from sampling.generate import Streams, generate
from sampling.settings import Settings
from stage2_prior.priors.base import Prior
from stage2_prior.priors.build import build_prior
from tessera.codes.layout import CodeLayout, Level
from tessera.launch.devices import set_threads
from tessera.launch.threads import number_of_threads

CODES = 512
SIDES = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16]  # VAR's, for 256x256 images
SIZE = {"layers": 8, "width": 256, "heads": 8, "dropout": 0.0}
PRIORS: dict[str, tuple[str, dict[str, Any]]] = {  # by label: the option's name, and its parameters
    "next_scale": ("next_scale", SIZE),
    "llama": ("transformer", SIZE | {"architecture": "llama", "extra": {}}),
    "masked": ("masked", SIZE | {"bound_draws": 1}),
    "any_order": ("any_order", SIZE | {"annealing": None}),
}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
FIRST = ("next_scale", "scales")


def make(label: str, sides: list[int], options: argparse.Namespace) -> Prior:
    """A prior with random weights over the scales of these sides."""
    name, params = PRIORS[label]
    pixels = 4 * options.sides[-1]
    layout = CodeLayout((3, pixels, pixels), tuple(Level(side, side, 1, CODES) for side in sides))
    torch.manual_seed(0)
    prior = build_prior({"name": name, "params": params, "layout": layout.to_json(), "num_classes": 0}).eval()
    prior = prior.requires_grad_(False).to(options.device)
    return prior if options.precision == "fp32" else prior.lowered(PRECISIONS[options.precision])


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each prior and layout, next_scale over the scales first."""
    layouts = {"scales": options.sides, "grid": options.sides[-1:]}
    others = [(label, kind) for label in options.priors for kind in layouts]
    priors = {case: make(case[0], layouts[case[1]], options) for case in (FIRST, *others)}
    streams = Streams(0, tuple(range(options.batch)), torch.device(options.device))
    actions = {
        case: lambda prior=prior: generate(prior, None, streams, Settings.plain()).cpu()  # waits for the device
        for case, prior in priors.items()
    }
    seconds = turns(actions, options.repeats)
    return [
        {
            "prior": case[0],
            "layout": case[1],
            "sides": layouts[case[1]],
            "tokens": prior.layout.num_tokens,
            "parameters": sum(p.numel() for p in prior.parameters()),
            "batch": options.batch,
            "precision": options.precision,
            "repeats": options.repeats,
            "seconds": quartiles(seconds[case]),
            "ratio": quartiles([own / first for own, first in zip(seconds[case], seconds[FIRST], strict=True)]),
            "machine": processor(options.device),
            "threads": number_of_threads(options.threads),
        }
        for case, prior in priors.items()
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in markdown."""
    lines = ["| prior | drawn | parameters | seconds | images/s | times as long as next_scale |", "| --- " * 6 + "|"]
    for row in rows:
        spread, ratio = row["seconds"], row["ratio"]
        cells = [row["prior"], f"{row['layout']}, {row['tokens']} tokens", f"{row['parameters'] / 1e6:.2f} M"]
        cells.append(f"{spread['median']:.3f} ({spread['low']:.3f} to {spread['high']:.3f})")
        cells.append(f"{row['batch'] / spread['median']:.1f}")
        cells.append(f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES, help="of the scales (default: %(default)s)")
    others = tuple(label for label in PRIORS if label != FIRST[0])
    parser.add_argument(
        "--priors", nargs="+", choices=others, default=["llama"], metavar="NAME", help=", ".join(others)
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="default: every core")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    set_threads(options.threads)
    rows = measure(options)
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
