"""python -m tessera start: the reasons beside the values in the file that it writes."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from made_up_surveys import CPU, GPU, survey

from stage0_images.survey import Survey
from tessera.cli.preset import editor
from tessera.cli.start import report, rules
from tessera.cli.start.machine import Machine
from tessera.cli.start.plan import Plan
from tessera.cli.start.report import write
from tessera.cli.start.rules import Choice
from tessera.cli.start.search import parameters
from tessera.cli.start.timing import Times
from tessera.launch import load

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


TRAININGS = ("stage1_vqvae.training", "stage2_prior.training", "classifier.training")
ASKED_FOR = {
    "resolution": ["data.height", "data.width"],
    "grid": ["stage1_vqvae.network.conv.strides"],
    "codebook": ["stage1_vqvae.quantizer.codebook_size"],
    "widths": ["stage1_vqvae.network.conv.channels", "stage2_prior.width"],
    "extra passes": ["extract_codes.shift"],
    "dropout": ["stage2_prior.dropout"],
    "guidance": ["sampling.guidance_scale"],
    **{key: [f"{name}.{key}" for name in TRAININGS] for key in ("steps", "batch_size", "precision", "compile")},
}


@pytest.mark.parametrize("times", [SLOW, FAST], ids=["slow", "fast"])
@pytest.mark.parametrize("machine", [CPU, OLD], ids=["bf16", "fp32"])
@pytest.mark.parametrize(("train", "grey"), [(240, True), (3000, False), (57_000, True)])
def test_the_file_says_why_of_every_value_that_matters(repository: Path, train, grey, machine, times) -> None:
    write(Path("params.yaml"), chosen(survey(train, grey=grey), machine, 28, times=times))
    found, before = reasons_in(Path("params.yaml")), reasons_in(repository / "presets" / "digits.yaml")
    for what, places in ASKED_FOR.items():
        for path in places:
            reason = found.get(path, "")
            assert " " in reason and reason != before.get(path), f"{what}: {path} has no reason"
            assert not re.fullmatch(r"[\d,x]+ [a-z ]+", reason), f"{path}: {reason} is a number, and no reason"


@pytest.mark.parametrize(
    ("machine", "step", "reason"),
    [
        (CPU, 1.0, "worth it in a long training"),
        (CPU, 0.01, "not worth it in a short training"),
        (OLD, 1.0, "there is no compiler"),
        (dataclasses.replace(OLD, compiler=True), 1.0, "compiling was measured with bf16 only"),
    ],
)
def test_the_reason_for_compiling_stage_1_is_the_true_one(machine: Machine, step: float, reason: str) -> None:
    choice = chosen(survey(), machine, 64, times=dataclasses.replace(SLOW, vqvae_step=step))
    assert choice.reasons["stage1_vqvae.training.compile"] == reason


@pytest.mark.parametrize(
    ("step", "reason"),
    [(1e-4, "more would hardly help"), (0.3, "what the time allows"), (60.0, "the fewest that make sense")],
)
def test_the_reason_for_the_steps_is_the_true_one(step: float, reason: str) -> None:
    choice = chosen(survey(), CPU, 64, times=dataclasses.replace(SLOW, vqvae_step=step))
    assert choice.reasons["stage1_vqvae.training.steps"] == reason


@pytest.mark.parametrize(
    ("side", "machine", "why"),
    [
        (8, CPU, "4x4 codes an image: the least downsampling"),
        (64, CPU, "8x8 codes an image: a finer grid"),
        (64, GPU, "16x16 codes an image: a finer grid"),
        (252, CPU, "63x63 codes an image: no larger downsampling divides 252 pixels"),
    ],
)
def test_the_reason_for_the_grid_is_the_true_one(side: int, machine: Machine, why: str) -> None:
    reason = rules.codes(survey(), side, machine).reasons["stage1_vqvae.network.conv.strides"]
    assert reason.startswith(why)


@pytest.mark.parametrize(
    ("train", "grey", "side", "size", "fewer"),
    [
        (240, True, 64, 64, ""),
        (3000, True, 64, 64, "grey"),
        (3000, False, 64, 128, ""),
        (57_000, False, 8, 256, "small"),
    ],
)
def test_fewer_codes_have_their_reason(train: int, grey: bool, side: int, size: int, fewer: str) -> None:
    choice, path = rules.codes(survey(train, grey=grey), side, CPU), "stage1_vqvae.quantizer.codebook_size"
    assert choice.values[path] == size
    assert choice.reasons[path].endswith(f"{train:,}" + (f"; {fewer} images need fewer" if fewer else ""))


@pytest.mark.parametrize("machine", [CPU, SHARED], ids=["cpu", "shared"])
def test_a_classifier_that_is_not_trained_has_one_reason(machine: Machine) -> None:
    reasons = chosen(survey(classes=None), machine, 64, times=dataclasses.replace(SLOW, classifier_step=0.0)).reasons
    about = {path: reason for path, reason in reasons.items() if path.startswith("classifier.")}
    assert about == {"classifier.name": "there are no labels"}
    assert any(path.startswith("classifier.training.") for path in chosen(survey(), machine, 64).reasons)


@pytest.mark.parametrize(
    ("train", "shift"),
    [
        (19_999, "9 passes: below 20,000 images the prior needs shifted copies"),
        (20_000, "from 20,000 images on, the prior needs no shifted copies"),
    ],
)
def test_the_reasons_for_the_prior_are_true(train: int, shift: str) -> None:
    reasons = rules.prior(survey(train)).reasons
    assert reasons["extract_codes.shift"] == shift
    assert reasons["stage2_prior.dropout"] == "fewer images need more dropout, or the prior learns them by heart"


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


@pytest.mark.parametrize(
    ("busy", "processes", "told"), [(2.9, 1, False), (3.2, 1, True), (0.9, 2, False), (1.2, 2, True)]
)
def test_other_programs_are_told_of_where_the_stages_want_their_cores(
    monkeypatch: pytest.MonkeyPatch, busy: float, processes: int, told: bool
) -> None:
    for module in (report, load):
        monkeypatch.setattr(module, "available_cores", lambda: 4)
    monkeypatch.setattr(report, "cores_of_others_now", lambda: busy)
    line = f"          other programs keep {busy} of 4 cores busy now: times are longer than on an idle machine"
    assert report._others(dataclasses.replace(CPU, processes=processes)) == [line] * told
