"""python -m tessera start: the reasons beside the values in the file that it writes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from made_up_surveys import CPU, GPU, survey

from stage0_images.survey import Survey
from tessera.cli.preset import editor
from tessera.cli.start import rules
from tessera.cli.start.machine import Machine
from tessera.cli.start.plan import Plan
from tessera.cli.start.report import write
from tessera.cli.start.rules import Choice
from tessera.cli.start.search import parameters
from tessera.cli.start.timing import Times

OLD = dataclasses.replace(CPU, slow_bf16="bf16 is slow", compiler=False)
SHARED = dataclasses.replace(GPU, processes=1000, judge="efficientnet_lite0")
SLOW, FAST = (Times(*(scale * value for value in (0.1, 0.1, 0.1, 1e-3, 1e-3, 1e-3, 1e-2)), 10**6) for scale in (1, 0.1))
FAINT = {"transparent": 1.0, "vanish": {"white": 1.0, "black": 0.9, "grey": 0.0}}  # on grey, which has the longest line


@pytest.fixture(autouse=True)
def in_an_empty_folder(in_tmp: Path) -> None:
    pass


def chosen(found: Survey, machine: Machine, side: int | None, minutes: float = 15, times: Times = SLOW) -> Choice:
    """All that `start` chooses, with the narrowest network."""
    pixels, reason = next(iter(rules.sides(found, side, machine).items()))
    known = rules.fractions({"train": found.images["train"]}).joined(rules.of_side(found, pixels, reason, machine))
    *_, narrowest = rules.widths(pixels, narrow=True)
    known = known.joined(narrowest)
    return known.joined(Plan(found, parameters(known), times, minutes, 1e-5, machine.compiler).choice)


def reasons_in(file: Path) -> dict[str, str]:
    """The comment beside each value of a parameter file, by dotted path; none for values that have none."""
    text = file.read_text(encoding="utf-8")
    lines, found = text.splitlines(), {}

    def look(node: dict, prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, dict):
                look(value, f"{prefix}{key}.")
            else:
                found[prefix + key] = lines[node.lc.key(key)[0]].partition(" # ")[2]

    look(editor().load(text), "")
    return {path: reason for path, reason in found.items() if reason}


@pytest.mark.parametrize("machine", [CPU, GPU, OLD, SHARED], ids=["cpu", "gpu", "old", "shared"])
@pytest.mark.parametrize(
    ("train", "side", "minutes", "changes"),
    [
        (10, 8, 1, {"sides": (8,), "aspects": (0.5, 1.0)}),
        (900, 252, 15, {"classes": None, **FAINT}),
        (19_999, None, 15, {"sides": (300,), **FAINT}),
        (123_456_789, 12, 10_000, {"grey": True}),
        (123_456_789, None, 10_000, {"classes": None}),
    ],
)
def test_every_reason_fits_beside_its_value(machine, train, side, minutes, changes) -> None:
    choice = chosen(survey(train, **changes), machine, side, minutes)
    write(Path("params.yaml"), choice)
    found = reasons_in(Path("params.yaml"))
    assert {path: found.get(path) for path in choice.reasons} == choice.reasons
