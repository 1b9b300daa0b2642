"""python -m tessera start: the plan of steps and images that fits into the minutes, and what is told of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from made_up_surveys import CPU, QUICK, choice, survey

from stage0_images.survey import Survey
from tessera.cli.fingerprint import stages
from tessera.cli.start import rules, timing
from tessera.cli.start.plan import (
    FIGURES,
    LEAST_STEPS,
    LEAST_VALIDATIONS,
    MEASURED,
    MOST_STEPS,
    OFF,
    SAMPLED,
    STAGES,
    START,
    USED,
    VALIDATING,
    VALIDATIONS,
    Plan,
    rounded,
)
from tessera.cli.start.report import report
from tessera.cli.start.search import parameters, with_steps_of_prior
from tessera.cli.start.timing import Times
from tessera.errors import UserError
from tessera.parameters import Params
from tessera.training.progress import Progress
from tessera.training.steps import Stepper
from tessera.training.task import Batch


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
        assert steps % every == 0 and LEAST_VALIDATIONS <= steps // every <= VALIDATIONS
        assert plan.choice.values[f"{name}.training.steps"] == steps
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


def test_the_page_on_sizes_has_the_bounds_of_the_steps(repository: Path) -> None:
    page = " ".join((repository / "docs" / "guide" / "sizes.md").read_text().split())
    stage1, stage2, classifier = (f"{count:,}" for count in MOST_STEPS.values())
    assert f"at most {stage1}, {stage2} and {classifier} steps, or half as many below {rules.FEW:,} images" in page
    stage1, stage2, classifier = (f"{count:,}" for count in LEAST_STEPS.values())
    assert f"fewer than {stage1} steps (stage 1), {stage2} (prior) and {classifier} (classifier)" in page


@pytest.mark.parametrize(("train", "passes", "code"), [(2000, 9, 1), (30_000, 1, 2)])
def test_the_disk_that_is_told_is_the_sum_of_all_that_a_run_leaves(train: int, passes: int, code: int) -> None:
    found = survey(train)
    plan = plan_of(found)
    images, pixels = train + 2 * (train // 10), 3 * 64 * 64
    prepared, models, samples = images * pixels, 4 * 10**6, 2 * SAMPLED * pixels
    codes = (images + (passes - 1) * train) * 8 * 8 * code
    states = 2 * (4 * 4 * 10**6)  # two, each with the weights, the best, and two moments
    assert plan.disk == 2 * (prepared + codes + models + samples) + states, "DVC's cache has a second copy"
    text = report("folder", found, CPU, plan.params, plan, 60, Path("params.yaml"))
    assert f"\ndisk      about {plan.disk // 2**20:,} MB, caches and saved states included\n" in text


def plan_of(found: Survey) -> Plan:
    return Plan(found, parameters(choice(found)), QUICK, 60, 1e-3, False)


def test_several_processes_share_batches_and_images(monkeypatch: pytest.MonkeyPatch) -> None:
    found = survey(train=2000)
    known = choice(found)
    known = known.joined(rules.shared(known, 3))
    assert {path: value for path, value in known.values.items() if path.endswith("batch_size")} == {
        "stage1_vqvae.training.batch_size": 129,
        "stage2_prior.training.batch_size": 129,
        "classifier.training.batch_size": 33,
    }
    rows, take = [], Stepper.take

    def taken(self: Stepper, step: int, batch: Batch, progress: Progress) -> int:
        rows.append(len(next(iter(batch.values()))))
        return take(self, step, batch, progress)

    monkeypatch.setattr(Stepper, "take", taken)
    monkeypatch.setattr(timing, "_seconds", lambda work: (work(), 6.0)[1])
    params = parameters(known.joined(next(rules.widths(16, narrow=True))))
    times = timing.measure(params, 2, processes=3)
    assert rows[:3] == [43, 43, 11]  # rows of the three trainings, the classifier last
    assert times.vqvae_step == 6 and times.encoding == pytest.approx(6 / timing.FORWARD_IMAGES / 3)
    plan = Plan(found, params, QUICK, 60, 1e-3, False)
    told = report("folder", found, dataclasses.replace(CPU, processes=3), params, plan, 60, Path("params.yaml"))
    assert "3 processes share the work" in told


@pytest.mark.parametrize(("seconds", "validations"), [(0.1, 8), (15.0, 7), (60.0, 2)])
def test_validations_take_a_fifth_of_a_training_at_most_unless_they_are_the_fewest(
    seconds: float, validations: int
) -> None:
    found = survey(train=57_000)
    times = dataclasses.replace(QUICK, prior_step=0.5, nats=seconds / found.images["validation"])
    plan = Plan(found, parameters(choice(found)), times, 15, 1e-6, False)
    every = plan.choice.values["stage2_prior.training.validate_every"]
    assert plan.steps["stage2_prior"] == validations * every
    took = plan.seconds["train_prior"] - START
    assert took == pytest.approx(plan.steps["stage2_prior"] * 0.5 + validations * seconds)
    assert validations * seconds <= VALIDATING * took * 1.05 or validations == LEAST_VALIDATIONS
    known = choice(found).joined(plan.choice)
    assert known.values["stage2_prior.training.patience"] == (5 if validations > 6 else None)
    assert ("too few validations" in known.reasons["stage2_prior.training.patience"]) == (validations <= 6)


def test_validations_of_a_training_that_needs_little_of_the_time_are_few_too() -> None:
    found = survey(train=57_000)  # the most steps take 30 seconds, and there is an hour
    times = dataclasses.replace(QUICK, nats=3 / found.images["validation"])
    plan = Plan(found, parameters(choice(found)), times, 60, 1e-6, False)
    every = plan.choice.values["stage2_prior.training.validate_every"]
    assert plan.steps["stage2_prior"] // every == 2 and plan.steps["stage2_prior"] == MOST_STEPS["stage2_prior"]


@pytest.mark.parametrize(
    ("train", "step", "batch"),
    [(57_000, 0.2, 128), (57_000, 1.0, 64), (57_000, 2.0, 32), (900, 20.0, 32), (90, 20.0, 16)],
)
def test_where_the_time_allows_few_steps_the_prior_has_smaller_batches(train: int, step: float, batch: int) -> None:
    """A step takes `step` seconds with batches of 128, and a part of that with smaller ones."""
    found = survey(train)
    known = choice(found)

    def seconds(params: Params) -> float:
        return step * params.stage2_prior.chosen.training.batch_size / 128

    times = dataclasses.replace(QUICK, prior_step=seconds(parameters(known)))
    first = Plan(found, parameters(known), times, 15, 1e-6, False)
    chosen, plan = with_steps_of_prior(known, first, CPU, seconds)
    assert chosen.values["stage2_prior.training.batch_size"] == batch
    assert parameters(chosen).stage2_prior.chosen.training.steps == plan.steps["stage2_prior"]
    assert plan.expected_minutes <= first.expected_minutes * 1.01
    if batch < 128 and step < 20:
        assert plan.steps["stage2_prior"] >= 0.95 * first.steps["stage2_prior"] * 128 / batch
        assert "so that the time allows more steps" in chosen.reasons["stage2_prior.training.batch_size"]
        # The minutes that would help are those of as many images.
        assert plan.useful_minutes == pytest.approx(first.useful_minutes, rel=0.05)


def test_a_smaller_batch_that_is_hardly_faster_is_not_taken() -> None:
    found = survey(57_000)
    known = choice(found)
    plan = Plan(found, parameters(known), dataclasses.replace(QUICK, prior_step=2.0), 15, 1e-6, False)
    chosen, same = with_steps_of_prior(known, plan, CPU, lambda params: 1.5)
    assert chosen.values["stage2_prior.training.batch_size"] == 128 and same is plan


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


@pytest.mark.parametrize(("seconds", "count"), [((2.0, 1.0, 3.0), 3), ((0.1, 0.2, 0.4) * 3, 9), ((9.0,) * 3, 3)])
def test_a_step_takes_the_median_of_a_few_after_the_first(
    monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, ...], count: int
) -> None:
    clock, coming = [0.0], iter((50.0, *seconds))

    def work() -> None:
        clock[0] += next(coming)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    assert timing._seconds(work) == pytest.approx(sorted(seconds)[count // 2])
    assert list(coming) == []
