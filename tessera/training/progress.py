"""How far a training has come: its step, its curves, and the best step of each criterion."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from tessera.training.tracking import Row


@dataclass
class Choice:
    """The smallest value of a criterion so far.

    Attributes:
        best: the value.
        best_step: the number of steps that had been taken when it was reached.
        stale: how many validations there have been since.
    """

    best: float = math.inf
    best_step: int = 0
    stale: int = 0

    def note(self, value: float, step: int) -> bool:
        """Count a validation; returns whether it is the best so far."""
        if value < self.best:
            self.best, self.best_step, self.stale = value, step, 0
            return True
        self.stale += 1
        return False


@dataclass
class Progress:
    """How far a training has come. All of it is saved with the weights.

    Attributes:
        step: how many steps have been taken.
        finished: whether the training has ended and its best weights have been chosen.
        choices: by criterion.
        skipped: for each parameter group, how many updates in a row were skipped because the gradient was not finite.
        metrics: validation figures of the best weights.
        train: rows of train.csv.
        validation: rows of validation.csv.
    """

    step: int = 0
    finished: bool = False
    choices: dict[str, Choice] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    train: list[Row] = field(default_factory=list)
    validation: list[Row] = field(default_factory=list)

    @classmethod
    def of(cls, criteria: Iterable[str], groups: Iterable[str]) -> Progress:
        """The progress of a training that has not begun, for the names of its criteria and parameter groups."""
        return cls(choices={name: Choice() for name in criteria}, skipped=dict.fromkeys(groups, 0))

    def to_json(self) -> dict[str, Any]:
        """JSON values from which `read` rebuilds it."""
        return asdict(self)

    def curves(self) -> dict[str, list[Row]]:
        """The rows so far of train.csv and validation.csv, under "train" and "validation"."""
        return {"train": self.train, "validation": self.validation}

    def read(self, values: dict[str, Any]) -> Progress | None:
        """The progress that `to_json` turned into these values, or None if they are not of this kind of training."""
        wanted = self.to_json()
        try:
            same = values.keys() == wanted.keys() and all(
                values[name].keys() == wanted[name].keys() for name in ("choices", "skipped")
            )
            choices = {name: Choice(**choice) for name, choice in values["choices"].items()} if same else {}
        except (AttributeError, KeyError, TypeError):
            return None
        return type(self)(**{**values, "choices": choices}) if same else None
