"""Compares params.yaml with the parameters that the stage `fingerprint` recorded for the last run. No torch."""

from __future__ import annotations

from pathlib import Path

from tessera import paths
from tessera.artifacts.edited import first_difference
from tessera.documents import read_json
from tessera.errors import UserError
from tessera.parameters import Params


def edited_stages(params: Params, run: Path = Path()) -> dict[str, str | None]:
    """Of each stage with a record, what was edited in params.yaml since; None where nothing was.

    Args:
        params: the parameters as they are now.
        run: the folder of the run.

    Returns:
        The dotted path of the first value that differs, by the stage's name. A stage whose record is of another version
        of this program, and cannot be compared, is left out.

    Raises:
        UserError: a record is damaged.
    """
    found: dict[str, str | None] = {}
    for file in sorted((run / paths.FINGERPRINTS).glob("*.json")):
        record = read_json(file)
        recorded = record.get("parameters") if isinstance(record, dict) else None
        if not isinstance(recorded, dict):
            raise UserError(f"{file}: not as `fingerprint` writes it; run `dvc repro -f -s fingerprint`, then again")
        try:
            now = {path: params.used(path) for path in recorded}
        except AttributeError:  # a section of another version
            continue
        found[file.stem] = None
        if edited := [path for path in recorded if now[path] != recorded[path]]:
            inner = first_difference(recorded[edited[0]], now[edited[0]], edited[0])
            found[file.stem] = inner[0] if inner else edited[0]
    return found
