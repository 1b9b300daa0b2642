"""List, delete or publish the saved states of trainings: python -m tessera states

    python -m tessera states
    python -m tessera states --delete train_prior/3f9a train_vqvae/07c1
    python -m tessera states --delete train_prior/3f9a/step-000000500
    python -m tessera states --delete-older-than 30
    python -m tessera states --publish train_vqvae/07c1 FOLDER

A line stands for one training: its stage and its fingerprint, of which the first letters that only it has are enough.
A third part names one of its states, and the others stay.
An extraction or a sampling that was interrupted has a line too, with the number of its parts.
Without its states a training that is not finished starts anew, and one that is finished trains again if it is asked
for once more. The states of a running training are never deleted.

--publish writes the result of a finished training to FOLDER, with the code and the parameters that made it, whatever
they are now: FOLDER/models and FOLDER/results. The stage itself publishes a result in its own place only if its code
and parameters are still the same.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera import paths
from tessera.errors import UserError
from tessera.locks import Busy, Holder, acquire
from tessera.training.running import (
    FINISHED,
    LOCK,
    STEP,
    all_runs,
    all_states,
    holder_of,
    parts_of,
    share_holder,
    used_by,
)

SIZES = ("B", "kB", "MB", "GB", "TB")
AGES = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


@dataclass(frozen=True)
class Run:
    """A training that has saved states, in its folder in .state."""

    folder: Path

    @property
    def name(self) -> str:
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def states(self) -> list[Path]:
        """Its states and results, the one of the latest step last."""
        found = [*self.folder.glob(f"{STEP}*"), *self.folder.glob(f"{FINISHED}*")]
        return sorted(found, key=lambda path: (path.name.split("-")[1], _written(path)))

    @property
    def status(self) -> str:
        if holder_of(self.folder):
            return "running"
        return "finished" if any(path.name.startswith(FINISHED) for path in self.states) else "stopped"

    @property
    def progress(self) -> str:
        """The number of steps that the newest state has taken, or of parts in place."""
        if (parts := parts_of(self.folder)) is not None:
            return f"{parts:,} parts"
        return f"step {int(self.states[-1].name.split('-')[1]):,}" if self.states else "nothing saved yet"

    @property
    def bytes(self) -> int:
        return used_by(self.folder).bytes

    @property
    def seconds(self) -> float:
        """How long ago the newest file was written; 0 if the clock was set back since."""
        return max(0.0, time.time() - _written(self.folder))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tessera states", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--delete", nargs="+", metavar="STAGE/FINGERPRINT[/STATE]", help="delete these states")
    what.add_argument("--delete-older-than", type=float, metavar="DAYS", help="delete states that are older")
    what.add_argument("--publish", nargs=2, metavar=("STAGE/FINGERPRINT", "FOLDER"), help="write a result to a folder")
    arguments = parser.parse_args(argv)
    runs = [Run(folder) for folder in all_runs()]
    if arguments.delete:
        delete({place: run for run, place in (_chosen(name, runs) for name in arguments.delete)})
    elif arguments.delete_older_than is not None:
        days = arguments.delete_older_than
        if not (math.isfinite(days) and days >= 0):
            raise UserError(f"--delete-older-than: {days}, expected a number of days, 0 or more")
        delete({run.folder: run for run in runs if run.seconds > days * 86400 and run.status != "running"})
    elif arguments.publish:
        name, folder = arguments.publish
        publish(name, runs, Path(folder))
    else:
        show(runs)
    return 0


def show(runs: list[Run]) -> None:
    """Print a line for each run, the newest first."""
    rows = [
        (run.name[: run.name.index("/") + 13], run.status, run.progress, _size(run.bytes), _age(run.seconds))
        for run in sorted(runs, key=lambda run: run.seconds)
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)] if rows else []
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    print(f"{len(runs)} training{'s' * (len(runs) != 1)}, {_size(sum(run.bytes for run in runs))} in {all_states()}")


def delete(places: dict[Path, Run]) -> None:
    """Delete folders.

    Args:
        places: the run of each folder: the run's own, with all its states, or that of one state.

    Raises:
        Busy: one of the runs is running. The folders before it are deleted then.
    """
    freed = 0
    # A state goes with its run.
    places = {place: run for place, run in places.items() if place == run.folder or run.folder not in places}
    for place, run in places.items():
        _refuse_running(run, holder_of(run.folder))
        size = used_by(place).bytes
        # Whoever starts this run now is refused, or finds nothing. A job of an array may have started a moment before.
        with acquire(run.folder / LOCK, f"is running {run.name}"):
            _refuse_running(run, share_holder(run.folder))
            shutil.rmtree(place)
        freed += size
        print(f"{run.name}{'' if place == run.folder else f'/{place.name}'}: deleted")
    print(f"{len(places)} deleted, {_size(freed)} freed")


def _refuse_running(run: Run, holder: Holder | None) -> None:
    if holder:
        training = parts_of(run.folder) is None
        end = f"`python -m tessera stop {run.folder.parent.name}` ends it" if training else "wait for it, or stop it"
        raise Busy(f"{run.name}: is running ({holder.process}); {end}{holder.advice}")


def publish(name: str, runs: list[Run], folder: Path) -> None:
    """Write the result of a finished training to a folder, as its stage would have published it.

    Args:
        name: STAGE/FINGERPRINT, or STAGE/FINGERPRINT/RESULT where edited code has left several results.

    Raises:
        UserError: there is no such result, or it is damaged; the folder exists, or a stage publishes there.
    """
    from safetensors import SafetensorError

    from tessera.artifacts.models import save_model
    from tessera.training.checkpoint import read_state
    from tessera.training.progress import Progress
    from tessera.training.tracking import write_results

    run, state = _result(name, runs)
    if any(Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(path)) for path in paths.WRITTEN):
        raise UserError(f"{folder}: a stage writes there, so DVC could take this result for that of other code")
    if folder.exists():
        raise UserError(f"{folder}: exists; name a new folder")
    try:
        tensors, values = read_state(state)
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{state}: damaged: {error}") from error
    artifact: dict[str, Any] = values["artifact"]
    weights = {key.partition(".")[2]: tensor for key, tensor in tensors.items()}
    if artifact.get("part"):  # the rest was needed for the training alone
        prefix = f"{artifact['part']}."
        weights = {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
    model = folder / paths.MODELS / artifact["kind"]
    save_model(model, artifact["kind"], artifact["config"], weights, artifact["parents"], values["training"])
    results = folder / paths.RESULTS / run.folder.parent.name
    curves = {name: values["progress"][name] for name in Progress().curves()}
    write_results(results, curves, {"validation": values["metrics"]})
    print(f"{model}, {results}: the result of {state}")


def _named(name: str, runs: list[Run]) -> Run:
    """The run of a name, STAGE/FINGERPRINT, of which the first letters are enough.

    Raises:
        UserError: no run or several runs have this name.
    """
    found = [run for run in runs if "/" in name and run.name.startswith(name.rstrip("/"))]
    if len(found) != 1:
        several = f"{len(found)} trainings have a name that begins so" if found else "no training has this name"
        raise UserError(f"{name}: {several}; `python -m tessera states` lists them as STAGE/FINGERPRINT")
    return found[0]


def _split(name: str, runs: list[Run]) -> tuple[Run, str]:
    """The run of a name, and the name's third part: a state of the run, or an empty text. Raises: see `_named`."""
    stage, fingerprint, wanted = [*name.split("/", 2), "", ""][:3]
    return _named(f"{stage}/{fingerprint}" if fingerprint else name, runs), wanted.rstrip("/")


def _chosen(name: str, runs: list[Run]) -> tuple[Run, Path]:
    """The run of a name, and the folder that the name stands for: the run's, or that of one of its states.

    Raises:
        UserError: no run or several runs have this name, or the run has no such state.
    """
    run, wanted = _split(name, runs)
    states = {path.name: path for path in run.states} | {"": run.folder}
    if wanted not in states:
        raise UserError(f"{name}: no such state; there are {', '.join(filter(None, states)) or 'none'}")
    return run, states[wanted]


def _result(name: str, runs: list[Run]) -> tuple[Run, Path]:
    """The run of a name, and its result: the one that the name's third part names, or else the newest."""
    run, wanted = _split(name, runs)
    found = [path for path in run.states if path.name.startswith(FINISHED) and wanted in ("", path.name)]
    if not found:
        raise UserError(f"{name}: has no {wanted or 'result'}, the training is {run.status}")
    return run, max(found, key=_written)


def _written(folder: Path) -> float:
    """When the newest file of a folder was written, in seconds since 1970. One that is being deleted counts as new."""
    written = used_by(folder).written
    return time.time() if written is None else written


def _size(count: float) -> str:
    """A number of bytes for a person."""
    power = min(len(SIZES) - 1, int(math.log(max(1, count), 1000)))
    return f"{count / 1000**power:.{1 if power else 0}f} {SIZES[power]}"


def _age(seconds: float) -> str:
    """A time that has passed, for a person."""
    for unit, name in AGES:
        count = int(seconds // unit)
        if count:
            return f"{count} {name}{'s' if count > 1 else ''} ago"
    return "now"
