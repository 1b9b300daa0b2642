"""What is compared between runs: the parameters that differ, the figures, and which value of a figure is best."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from evaluation.figures import (
    HEADLINES,
    HIGHER,
    JUDGE,
    SAMPLES,
    TEST,
    better,
    in_order,
    needs_as_many_samples,
    needs_the_same_codes,
    needs_the_same_judge,
    needs_the_same_test_images,
)
from tessera.cli.compare.revisions import Run

DISTORTION = "evaluate:bits_per_dim.distortion"
TAKEN = "validation.steps"  # the figure of a training that says how many steps it took
TRAINED = {
    "train_vqvae": "stage1_vqvae",
    "refine_decoder": "refine_decoder",
    "train_prior": "stage2_prior",
    "train_classifier": "classifier",
}
MISSING = object()  # stands for a value that a run does not have


class Comparison:
    """Runs side by side.

    Attributes:
        runs: in the order in which they were named.
        parameters: the paths of the parameters that differ. A run may not use one of them. What options differ in is no
            difference of its own: it follows from their names, unless the option's values were edited as well.
        figures: the names (STAGE:PATH) of the figures that are shown.
        notes: what the user must know to read the tables, a sentence each.
    """

    def __init__(self, runs: list[Run], every_figure: bool = False) -> None:
        self.runs = runs
        paths = dict.fromkeys(path for run in runs for path in run.parameters.values)
        self.parameters = [path for path in paths if self._differs(path)]
        known = dict.fromkeys(name for run in runs for name in run.figures)
        self.figures = [name for name in in_order(known) if every_figure or name in HEADLINES]
        self.notes = [note for run in runs for note in (*run.notes, *ended_early(run))]
        self.same_data = self._same_data()
        tested, drawn = ({str(run.figures[name]) for run in runs if name in run.figures} for name in (TEST, SAMPLES))
        self.same_test, self.as_many_samples = len(tested) <= 1, len(drawn) <= 1
        self.same_codes = self._same_codes()
        self.same_judge = len({run.figures[JUDGE] for run in runs if JUDGE in run.figures}) <= 1
        if self.figures and not self.same_data:
            self.notes.append(
                "the runs have different data (data/prepared, as DVC recorded it, or else the parameters), by which "
                "figures cannot be compared: no best is marked"
            )
        elif not self.same_codes and any(needs_the_same_codes(name) for name in self.figures):
            self.notes.append(
                "rates and nats per token have no best here: they compare only between runs of the same VQ-VAE"
            )
        if self.same_data and not self.same_test:
            self.notes.append(
                "figures of the test images have no best here: the runs were measured on different numbers of them "
                f"({', '.join(sorted(tested))}), by evaluation.images"
            )
        if any(map(needs_as_many_samples, self.figures)) and self.same_data and not self.as_many_samples:
            self.notes.append(
                "distances of samples but the KID have no best here: they depend on the number of samples, which "
                f"differs ({', '.join(sorted(drawn))}), by sampling.images"
            )
        if self.same_data and not self.same_judge:
            self.notes.append(
                "distances have no best here: they compare only between runs that the same network judged, with the "
                "same weights"
            )
        if close := [name for name in self.figures if self._overlap(name, *self._ranked(name))]:
            self.notes.append(
                f"no best is marked for {', '.join(close)}: the intervals of the best run and of another one overlap"
            )

    def _differs(self, path: str) -> bool:
        users = [run for run in self.runs if path in run.parameters.values]
        first = users[0].parameters.values[path]
        if any(not _alike(run.parameters.values[path], first) for run in users):
            return True
        others = [run.parameters.everything for run in self.runs if path not in run.parameters.values]
        places = {run.parameters.places[path] for run in users}
        return any(not _alike(everything.get(place, MISSING), first) for everything in others for place in places)

    def _same_data(self) -> bool:
        """Whether all runs have the same prepared images, by what DVC recorded of them, else by their parameters."""
        recorded = {run.data for run in self.runs}
        if "" not in recorded:
            return len(recorded) == 1
        return not any(path.startswith("data.") for path in self.parameters)

    def _same_codes(self) -> bool:
        """Whether all runs have the same VQ-VAE, as far as its parameters and the test split's distortion tell."""
        distortions = {run.figures[DISTORTION] for run in self.runs if DISTORTION in run.figures}
        if not self.same_test:  # distortions of other images tell nothing
            distortions = set()
        changed = [path for path in self.parameters if path.startswith("stage1_vqvae.")]
        return self.same_data and not changed and len(distortions) <= 1

    def best(self, figure: str) -> set[int]:
        """The indices in `runs` of those with the best value of a figure; none if all are equal or no run is better.

        No run is better if its interval overlaps that of a worse one.
        """
        found, others = self._ranked(figure)
        return set() if self._overlap(figure, found, others) else found

    def _ranked(self, figure: str) -> tuple[set[int], set[int]]:
        """The indices in `runs` of those with the best value of a figure, and of those with worse ones.

        Both are empty if the figure does not compare or is the same in all runs.
        """
        nothing: tuple[set[int], set[int]] = set(), set()
        direction = better(figure)
        if direction is None or not self.same_data or (needs_the_same_codes(figure) and not self.same_codes):
            return nothing
        if needs_the_same_judge(figure) and not self.same_judge:
            return nothing
        if needs_the_same_test_images(figure) and not self.same_test:
            return nothing
        if needs_as_many_samples(figure) and not self.as_many_samples:
            return nothing
        values = {place: run.figures[figure] for place, run in enumerate(self.runs) if number(run.figures.get(figure))}
        if len(set(values.values())) < 2:
            return nothing
        extreme = max(values.values()) if direction == HIGHER else min(values.values())
        found = {place for place, value in values.items() if value == extreme}
        return found, values.keys() - found

    def _overlap(self, figure: str, some: Iterable[int], others: Iterable[int]) -> bool:
        """Whether the interval of one of some runs overlaps that of one of the others; no, if there are no intervals.

        Args:
            some, others: indices in `runs`.
        """
        intervals = {place: interval(self.runs[place].figures.get(f"{figure}_interval")) for place in (*some, *others)}
        pairs = [(intervals[one], intervals[other]) for one in some for other in others]
        return any(one and other and one[0] <= other[1] and other[0] <= one[1] for one, other in pairs)

    def why_missing(self, figure: str, run: Run) -> str:
        """What stands in place of a figure that a run does not have."""
        stage, _, path = figure.partition(":")
        if stage not in run.stages:
            return "not run"
        reasons = {name.removeprefix(f"{stage}:unavailable.") for name in run.figures if ":unavailable" in name}
        parts = path.split(".")
        return "unavailable" if any(".".join(parts[: i + 1]) in reasons for i in range(len(parts))) else "-"


def ended_early(run: Run) -> Iterator[str]:
    """A note for each training that took fewer steps than the parameters say, by `stop` or for lack of patience."""
    for stage, section in TRAINED.items():
        planned, taken = run.parameters.values.get(f"{section}.training.steps"), run.figures.get(f"{stage}:{TAKEN}")
        if number(planned) and number(taken) and taken < planned:
            yield f"{run.label}: {stage} ended after {taken} of {planned} steps"


def _alike(one: Any, other: Any) -> bool:
    """Whether two values are the same; 1 is not true."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def number(value: Any) -> bool:
    """Whether a figure is a number that can be better than another: finite, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def interval(value: Any) -> list[float] | None:
    """The lower and the upper bound of an interval; None for what is no interval."""
    return value if isinstance(value, list) and len(value) == 2 and all(map(number, value)) else None
