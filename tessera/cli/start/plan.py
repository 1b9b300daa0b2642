"""How the time is divided among the stages, and what each of them will take."""

from __future__ import annotations

from dataclasses import dataclass

from stage0_images.survey import Survey
from tessera.cli.start.rules import FEW, STAGE1, STAGE2, Choice
from tessera.cli.start.timing import Times
from tessera.parameters import Params

USED = 0.85  # of the time that the user gives; the rest is for what the plan does not know
START = 5.0  # seconds that a stage takes to start, libraries and all
STAGES = 9
SHARES = {STAGE1: 0.5, STAGE2: 0.38, "classifier": 0.12}  # of the time that trainings have
VALIDATIONS = 8  # of each training
MOST_STEPS = {STAGE1: 4000, STAGE2: 3000, "classifier": 1500}
LEAST_STEPS = {STAGE1: 300, STAGE2: 200, "classifier": 100}
COMPILED = 0.75  # a compiled step of stage 1 takes this part of the time (docs/benchmarks.md)
COMPILATION = 40.0  # seconds
KEPT_STATES, STATE_FLOATS = 2, 4  # saved states of a training; floats a weight: itself, the best, two moments
MEASURED, SAMPLED = 2000, 1000  # images that `evaluate` measures, and that `sample` draws of each kind, at most


@dataclass(frozen=True)
class Plan:
    """The last values of params.yaml, and the seconds that each stage will take.

    Attributes:
        choice: numbers of steps and what depends on them.
        seconds: by the stage's name, in the order in which stages run.
        steps: of each training, by its section.
        disk: bytes that the run leaves on disk.
    """

    choice: Choice
    seconds: dict[str, float]
    steps: dict[str, int]
    disk: int

    @property
    def minutes(self) -> float:
        return sum(self.seconds.values()) / 60


def make_plan(survey: Survey, params: Params, times: Times, minutes: float, prepare: float, compiler: bool) -> Plan:
    """Divide the time.

    Args:
        params: all values but those that the plan decides.
        prepare: seconds that reading one image takes.
        compiler: whether torch.compile works on this machine.
    """
    images, chosen = survey.images, Choice()
    passes = _passes(params)
    measured, sampled = min(MEASURED, images["test"]), SAMPLED
    seconds = {
        "fingerprint": START,
        "prepare": START + prepare * sum(images.values()),
        "train_vqvae": START,
        "reconstruct": START + 64 * times.reconstruction,
        "extract_codes": START + times.encoding * (images["train"] * passes + images["validation"] + images["test"]),
        "train_prior": START,
        "train_classifier": START,
        "sample": START,
        "evaluate": START,
    }
    budget = USED * 60 * minutes
    # Drawing and measuring get a fifth at most: fewer images, if need be.
    room = 0.2 * budget
    each = 2 * sampled * times.sample + measured * (2 * times.reconstruction + 2 * times.nats)
    part = min(1.0, room / each)
    classes = max(1, len(survey.classes or ()))
    sampled = max(10 * classes, _round(sampled * part)) if part < 1 else sampled
    measured_all = part == 1 and measured == images["test"]
    measured = max(min(200, images["test"]), _round(measured * part)) if part < 1 else measured
    chosen.set("sampling.images", sampled, "what the time allows" if part < 1 else "")
    chosen.set("evaluation.images", None if measured_all else measured, "" if measured_all else "what the time allows")
    seconds["sample"] += 2 * sampled * times.sample
    seconds["evaluate"] += measured * (2 * times.reconstruction + 2 * times.nats)
    left = max(0.2 * budget, budget - sum(seconds.values()))
    steps = _trainings(survey, params, times, left, compiler, chosen, seconds)
    return Plan(chosen, seconds, steps, disk_bytes(survey, params, times.weights))


def _trainings(
    survey: Survey,
    params: Params,
    times: Times,
    left: float,
    compiler: bool,
    chosen: Choice,
    seconds: dict[str, float],
) -> dict[str, int]:
    """Give each training its steps; adds to `chosen` and to `seconds`."""
    images, steps = survey.images, {}
    fit = min(_fit_images(params), images["train"])
    validation = {
        STAGE1: times.reconstruction * (images["validation"] + fit),
        STAGE2: times.nats * images["validation"],
        "classifier": times.classifier_step / 3 * images["validation"] / 64,
    }
    step = {STAGE1: times.vqvae_step, STAGE2: times.prior_step, "classifier": times.classifier_step}
    stage = {STAGE1: "train_vqvae", STAGE2: "train_prior", "classifier": "train_classifier"}
    shares = {name: share for name, share in SHARES.items() if step[name]}
    for name, share in sorted(shares.items(), key=lambda item: item[1]):  # what one does not need, the next ones have
        time = left * share / sum(value for other, value in shares.items() if other not in steps)
        compiles = name == STAGE1 and compiler and params.stage1_vqvae.training.precision == "bf16" and time > 180
        if name == STAGE1:
            reason = "saves a quarter of each step" if compiles else ""
            chosen.set(f"{STAGE1}.training.compile", compiles, reason)
        one = step[name] * (COMPILED if compiles else 1.0)
        extra = (COMPILATION if compiles else 0.0) + VALIDATIONS * validation[name]
        most = MOST_STEPS[name] if survey.images["train"] >= FEW else MOST_STEPS[name] // 2
        count = max(LEAST_STEPS[name], min(most, _round((time - extra) / one)))
        steps[name] = count
        taken = count * one + extra
        seconds[stage[name]] += taken
        left -= taken
        every = max(1, count // VALIDATIONS)
        reason = "as many as help" if count == most else "what the time allows"
        chosen.set(f"{name}.training.steps", count - count % every, reason)
        chosen.set(f"{name}.training.validate_every", every)
        chosen.set(f"{name}.training.warmup_steps", min(100, count // 10))
    return steps


def _passes(params: Params) -> int:
    shift = params.extract_codes.shift
    return ((2 * shift + 1) ** 2 if shift else 1) * (2 if params.extract_codes.horizontal_flip else 1)


def _fit_images(params: Params) -> int:
    return getattr(params.stage1_vqvae.likelihood.chosen, "fit_images", 0)


def _round(value: float) -> int:
    """Down to two digits, which are enough for a plan."""
    value = max(1, int(value))
    digits = 10 ** max(0, len(str(value)) - 2)
    return value - value % digits


def disk_bytes(survey: Survey, params: Params, weights: int) -> int:
    """About what a run leaves on disk: images, codes and models, DVC's copy of them, and saved states."""
    pixels = params.data.channels * params.data.height * params.data.width
    positions = pixels // params.data.channels // params.stage1_vqvae.network.chosen.factor**2
    code = 1 if params.stage1_vqvae.quantizer.chosen.sizes[0] <= 256 else 2  # bytes
    images = sum(survey.images.values()) * (pixels + _passes(params) * positions * code)
    states = KEPT_STATES * STATE_FLOATS * 4 * weights
    return 2 * (images + 4 * weights) + states
