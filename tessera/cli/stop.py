"""End a running training at its next validation and publish its best weights: python -m tessera stop STAGE.

The stage is then done, as if `steps` had been reached. Its log, metrics.json and the model's manifest.json say how many
steps were taken, and which values of `steps` and `schedule_steps` train the same again.
"""

from __future__ import annotations

import argparse

from tessera.errors import UserError
from tessera.training.running import all_states, parts_of, request_end, running


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tessera stop", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", metavar="STAGE", help="train_vqvae, refine_decoder, train_prior or train_classifier")
    stage = parser.parse_args(argv).stage
    folders = [folder for folder in running(stage) if parts_of(folder) is None]
    if not folders:
        others = [path.name for path in sorted(all_states().glob("*")) if running(path.name)]
        there = f"what is running is {', '.join(others)}" if others else "none is running in this folder"
        raise UserError(f"no training of the stage {stage!r} is running; {there}")
    for folder in folders:
        request_end(folder)
    print(f"{stage}: ends at its next validation, and publishes its best weights")
    return 0
