"""What watching costs: the share of a training's time that its pictures, its curves and trackers take.

    python benchmarks/watching.py [DATASET] --folder SCRATCH [--preset NAME] [-S KEY=VALUE ...] [--json FILE]

Runs the product's stages up to the prior in SCRATCH, a new folder, with clocks around the methods that draw pictures
and that write curves. DATASET is a local folder of images; without it, the preset's own source is read. The share is of
the time from the first step to the last, with validations and compilation.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from types import ModuleType
from typing import Any

import stages
from repository import REPOSITORY
from runs import absolute, parameters, processor

from stage1_vqvae import train as train_vqvae
from stage2_prior import train as train_prior
from tessera.cli.preset import read_changes
from tessera.parameters import Params
from tessera.training.loop import Trainer
from tessera.training.pictures import Pictures

STAGES = {
    "prepare": stages.prepare,
    "train_vqvae": train_vqvae,
    "extract_codes": stages.extract,
    "train_prior": train_prior,
}
TRAININGS = ("train_vqvae", "train_prior")
WATCHING = {"pictures": (Pictures, "draw"), "curves": (Trainer, "_show")}  # what each clock is around
WHOLE = (Trainer, "_take_steps")


class Clock:
    """The seconds and calls of a method, while it is used as a context manager."""

    def __init__(self, owner: type, name: str) -> None:
        self.owner, self.name, self.inner = owner, name, getattr(owner, name)
        self.seconds, self.calls = 0.0, 0

    def __enter__(self) -> Clock:
        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return self.inner(*arguments, **options)
            finally:
                self.seconds, self.calls = self.seconds + time.perf_counter() - began, self.calls + 1

        setattr(self.owner, self.name, timed)
        return self

    def __exit__(self, *error: object) -> None:
        setattr(self.owner, self.name, self.inner)


def measure(stage: ModuleType, params: Params) -> dict[str, Any]:
    """Run a training; the seconds of all of it, and what watching took."""
    found: dict[str, Any] = {}
    with Clock(*WHOLE) as whole, Clock(*WATCHING["pictures"]) as pictures, Clock(*WATCHING["curves"]) as curves:
        stages.run(stage, params)
    found["seconds"] = whole.seconds
    for name, clock in (("pictures", pictures), ("curves", curves)):
        found[name] = {"seconds": clock.seconds, "calls": clock.calls, "share": clock.seconds / whole.seconds}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=absolute, nargs="?", help="a local folder of images")
    parser.add_argument("--folder", type=absolute, required=True, help="a new folder, where the stages run")
    parser.add_argument("--preset", default="digits")
    parser.add_argument("-S", dest="overrides", action="extend", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=absolute)
    options = parser.parse_args()
    changes = {} if options.dataset else {"data.watch": str(REPOSITORY / "data" / "embedded.txt")}
    params = parameters(changes | read_changes(options.overrides), options.preset, options.dataset)
    if options.folder.exists() and any(options.folder.iterdir()):
        raise SystemExit(f"--folder {options.folder}: not empty, and a training that is there would not be timed")
    options.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(options.folder)
    found: dict[str, Any] = {"processor": processor(), "changes": options.overrides, "preset": options.preset}
    for name, stage in STAGES.items():
        if name not in TRAININGS:
            stages.run(stage, params)
            continue
        found[name] = measure(stage, params)
        for part in WATCHING:
            spent = found[name][part]
            print(f"{name}: {part} {spent['share']:.2%} of {found[name]['seconds']:.0f} s, {spent['calls']} calls")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
