"""Which trackers show a training, and what they are sent: curves, pictures, figures and parameters.

No tracker can stop a training: one that fails gets nothing more, and a line says so. No result depends on trackers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tessera import paths
from tessera.console import say, waiting
from tessera.errors import UserError
from tessera.training.tracking import Row

# The trackers' code is named, not imported: it is no part of a stage's code, so an edit of it trains nothing again.
RUNS = "tessera.training.trackers"
LETTERS = 12  # of the training's fingerprint in the name of its run; as many as nobody confuses


def require_trackers(names: Iterable[str]) -> None:
    """Checks that every tracker of `runtime.trackers` is installed. Its name is also that of the package to import.

    Raises:
        UserError: a tracker is not installed. The first such one is named.
    """
    for name in names:
        found = find_spec(name)
        if found is None or found.origin is None:  # W&B writes into a folder wandb, which is no package
            raise UserError(
                f'runtime.trackers: {name} is not installed; `pip install -e ".[{name}]"` brings it, or take it off '
                "the list"
            )


class Trackers:
    """The runs of one training in all its trackers. They are open while this object is entered.

    A process that begins sends all rows and pictures so far, and then each new one. `tessera.training.trackers` says
    why no row is there twice after an interruption.
    """

    def __init__(self, names: Iterable[str], stage: str, fingerprint: str, parameters: dict[str, Any]) -> None:
        """Opens nothing.

        Args:
            names: `runtime.trackers`; none in a process that writes no results.
            fingerprint: the training's, whose first letters name its runs.
            parameters: the training's parameters as JSON values.
        """
        self.names, self.stage, self.name = tuple(names), stage, fingerprint[:LETTERS]
        self.parameters = parameters
        self.images = paths.RESULTS / stage / "images"
        self.runs: dict[str, Any] = {}
        self.sent: dict[str, int] = {}
        self.shown: set[Path] = set()

    def __enter__(self) -> Trackers:
        with waiting("start of the trackers"):
            for name in self.names:
                self._attempt(name, lambda name=name: self._open(name))
        return self

    def __exit__(self, *exception: object) -> None:
        for name in list(self.runs):
            self._attempt(name, self.runs[name].finish)
        self.runs.clear()

    def _open(self, name: str) -> None:
        kind = import_module(RUNS).RUNS[name]
        self.runs[name] = kind(paths.TRACKERS / name, self.stage, self.name, flat(self.parameters))

    def follow(self, curves: dict[str, list[Row]]) -> None:
        """Send what is new: rows, and pictures in results/STAGE/images.

        Args:
            curves: the curves so far, by name. A figure is called NAME/COLUMN.
        """
        if not self.runs:
            return
        # Weights & Biases drops what is of an earlier step than the last.
        new = sorted([*self._pictures(), *self._rows(curves)], key=lambda each: each[0])
        with waiting("trackers", report=False):
            for name, run in list(self.runs.items()):
                self._attempt(name, lambda run=run: send(run, new))

    def _pictures(self) -> Iterator[tuple[int, Path]]:
        """Step and file of each picture that was not there before."""
        for path in sorted(set(self.images.glob("step-*.png")) - self.shown):
            self.shown.add(path)
            if (number := path.stem.removeprefix("step-")).isdecimal():
                yield int(number), path

    def _rows(self, curves: dict[str, list[Row]]) -> Iterator[tuple[int, Row]]:
        """Step and figures of each row that was not there before."""
        for curve, rows in curves.items():
            for row in rows[self.sent.get(curve, 0) :]:
                yield int(row["step"]), {f"{curve}/{name}": value for name, value in row.items() if name != "step"}
            self.sent[curve] = len(rows)

    def end(self, curves: dict[str, list[Row]], metrics: dict[str, float], step: int) -> None:
        """Send the rest of the curves, and the training's figures, each called metrics/NAME.

        Args:
            step: how many steps the training has taken.
        """
        self.follow(curves)
        values = {f"metrics/{name}": value for name, value in metrics.items()}
        for name in list(self.runs):
            self._attempt(name, lambda run=self.runs[name]: run.log(values, step))

    def _attempt(self, name: str, work: Callable[[], Any]) -> None:
        """Do something with a tracker. After an error the tracker gets nothing more."""
        try:
            work()
        except Exception as error:
            self.runs.pop(name, None)
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            say(f"note: nothing more goes to {name} in this run, and the training goes on ({reason})")


def send(run: Any, new: Iterable[tuple[int, Path | Row]]) -> None:
    """Send pictures and rows, each with its step, to a tracker's run."""
    for step, what in new:
        if isinstance(what, Path):
            run.show(what, step)
        else:
            run.log(what, step)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Nested JSON values as one level with dotted names. Null, lists and empty objects become JSON text."""
    found: dict[str, bool | int | float | str] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return found
