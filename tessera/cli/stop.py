"""End a running training at its next validation and publish its best weights: python -m tessera stop [STAGE].

Without a STAGE, the one training that is running ends. The stage is then done, as if `steps` had been reached. Its log,
metrics.json and the model's manifest.json say how many steps were taken, and which values of `steps` and
`schedule_steps` train the same again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tessera.errors import UserError
from tessera.training.running import all_states, parts_of, request_end, running


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tessera stop", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "stage", metavar="STAGE", nargs="?", help="train_vqvae, refine_decoder, train_prior or train_classifier"
    )
    stage = parser.parse_args(argv).stage
    found = {path.name: _trainings(path.name) for path in sorted(all_states().glob("*"))}
    there = [name for name, folders in found.items() if folders]
    if stage is None and len(there) > 1:
        raise UserError(f"{len(there)} trainings are running: {', '.join(there)}; name one of them")
    stage = stage or "".join(there)
    if stage not in there:
        which = f" of the stage {stage!r}" if stage else ""
        others = f"; what is running is {', '.join(there)}" if there else " in this folder"
        raise UserError(f"no training{which} is running{others}")
    for folder in found[stage]:
        request_end(folder)
    print(f"{stage}: ends at its next validation, and publishes its best weights")
    return 0


def _trainings(stage: str) -> list[Path]:
    """The folders of states of a stage's trainings that are running."""
    return [folder for folder in running(stage) if parts_of(folder) is None]
