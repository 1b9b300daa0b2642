"""What the report reads: the published folders of a run and the results of its stages, and nothing else."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera import paths
from tessera.cli.compare.comparison import Comparison
from tessera.cli.compare.revisions import WORKSPACE, Run, read_run, used
from tessera.cli.preset import DEFAULT, PRESETS
from tessera.documents import read_bytes
from tessera.errors import UserError
from tessera.parameters import Params, read_yaml

if TYPE_CHECKING:
    import torch

    from tessera.codes.store import Codes
    from tessera.images.prepared import ImageSplit, PreparedImages

ANEW = "`dvc repro` makes it anew where DVC tracks it, or restore it from Git"
TABLE_BYTES = 2**30  # the largest CSV file that is read: train.csv may have a million rows
COUNTED = 10_000  # training images whose codes are counted for maps, at most

Curve = dict[str, list[float]]  # the columns of a CSV file by name; nan where a row has no value


def count(number: int, one: str, several: str = "") -> str:
    """A number and its noun, such as "1,401 training images". The plural `several` is `one` with an s by default."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def columns(data: bytes, name: str, required: str) -> Curve:
    """The columns of a CSV file of numbers by name, each as long as the file has rows; {} if it has none.

    Args:
        name: of the file, for the message.
        required: a column that it must have.

    Raises:
        UserError: the file is damaged.
    """
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8")))
        rows, names = list(reader), reader.fieldnames or ()
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{name}: no table of numbers ({error}); {ANEW}") from error
    if rows and required not in names:
        raise UserError(f"{name}: has no column {required!r}; {ANEW}")
    return {column: [_number(row[column]) for row in rows] for column in names} if rows else {}


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def read_columns(file: Path, required: str) -> Curve:
    """The columns of a CSV file, or none if there is no such file. See `columns`."""
    return columns(read_bytes(file, TABLE_BYTES, ANEW), str(file), required) if file.is_file() else {}


@dataclass(frozen=True)
class Difference:
    """A parameter that the run uses and that differs from the default one. "-": the default run does not use it."""

    path: str
    value: str
    default: str


class Published:
    """A run in this folder.

    Attributes:
        params: the parameters that are in force.
        run: its figures and parameters, as `python -m tessera compare` reads them.
    """

    def __init__(self, params: Params, file: Path = paths.PARAMS) -> None:
        """Open the folders.

        Args:
            file: the file that the parameters are from.

        Raises:
            UserError: one is missing, damaged, or was not made from the others; or nothing was evaluated.
        """
        from evaluation.lineage import check_lineage
        from tessera.artifacts.manifests import read_manifest
        from tessera.codes.store import open_codes
        from tessera.images.prepared import open_prepared
        from tessera.images.samples import open_samples

        check_lineage(decoder=params.sampling.decoder)
        self.params, self.run = params, read_run(WORKSPACE, file)
        if "evaluate" not in self.run.stages:
            raise UserError("results/evaluate/metrics.json: missing; run `python -m evaluation.evaluate`")
        for name in ("images", "codebook", "bits_per_dim"):
            if not isinstance(self.evaluated.get(name), dict):
                raise UserError(f"results/evaluate/metrics.json: has no {name}; run `python -m evaluation.evaluate`")
        if self.evaluated.get("models") != read_manifest(paths.SAMPLES, "samples", contents=False).parents:
            raise UserError(
                "results/evaluate/metrics.json: not of the models of the samples; run `python -m evaluation.evaluate`"
            )
        self.prepared: PreparedImages = open_prepared(paths.PREPARED)
        self.codes: Codes = open_codes(paths.CODES)
        self.samples: dict[str, ImageSplit] = open_samples(paths.SAMPLES)

    def figure(self, name: str) -> Any:
        """A figure by STAGE:PATH, or None."""
        return self.run.figures.get(name)

    def metrics(self, stage: str) -> dict[str, Any]:
        """All of a stage's metrics.json; empty if it has none."""
        from tessera.documents import read_json

        file = paths.RESULTS / stage / "metrics.json"
        found = read_json(file, finite=False) if file.is_file() else {}
        if not isinstance(found, dict):
            raise UserError(f"{file}: not as `{stage}` writes it; {ANEW}")
        return found

    @cached_property
    def evaluated(self) -> dict[str, Any]:
        return self.metrics("evaluate")

    @property
    def unavailable(self) -> dict[str, str]:
        """The figures that could not be measured, and why."""
        found = self.evaluated.get("unavailable", {})
        chosen = self.params.evaluation.features.name
        return found | ({"distribution": "evaluation.features.name is none"} if chosen == "none" else {})

    def curve(self, stage: str, name: str) -> Curve:
        """A curve of a training: "train" or "validation"; also other files of numbers."""
        return read_columns(paths.RESULTS / stage / f"{name}.csv", "step")

    @cached_property
    def differences(self) -> list[Difference] | None:
        """Parameters that the run uses and that differ from the default ones; None where these are not here."""
        from tessera.cli.compare.tables import shown_parameter

        file = PRESETS / f"{DEFAULT}.yaml"
        if not file.is_file():
            return None
        parameters, _, _ = used(read_yaml(file), str(file))
        compared = Comparison([self.run, Run("default", "", parameters, {}, set())])
        return [
            Difference(path, *(shown_parameter(run, path) for run in compared.runs))
            for path in compared.parameters
            if path in self.run.parameters.values
        ]

    @cached_property
    def training_tokens(self) -> torch.Tensor:
        """Tokens (n, N) of training images as they are: all, or a fixed choice of `COUNTED`."""
        from evaluation.choices import fixed_choice

        split = self.codes["train"]
        return split.rows(fixed_choice(len(split), COUNTED))

    def labels_of(self, kind: str) -> Any:
        """The labels of all samples of a kind ("default" or "unguided"), int64 (n,); None if they have none."""
        return self.samples[kind].label_tensor(slice(None))
