"""How the time is divided among the stages, and what each of them will take."""

from __future__ import annotations

from dataclasses import dataclass, field

from evaluation.distribution import TRAINING
from stage0_images.survey import Survey
from tessera.cli.start.disk import passes, run_bytes
from tessera.cli.start.rules import FEW, STAGE1, STAGE2, Choice, usual_batch
from tessera.cli.start.timing import Times
from tessera.parameters import Params

CLASSIFIER = "classifier"
USED = 0.85  # of the time that the user gives; the rest is for what the plan does not know
START = 7.0  # seconds that a stage takes to start, libraries and all
OFF = 4.5  # seconds that a stage takes that is switched off
FIGURES = 10.0  # seconds that `evaluate` takes besides, for its own libraries and pictures
MEASURING = 0.2  # of the time: the most that drawing and measuring may take
SHARES = {STAGE1: 0.44, STAGE2: 0.44, CLASSIFIER: 0.12}  # of the time that trainings have
STAGES = {STAGE1: "train_vqvae", STAGE2: "train_prior", CLASSIFIER: "train_classifier"}
VALIDATIONS, LEAST_VALIDATIONS = 8, 2  # of each training
VALIDATING = 0.2  # of a training's time: the most that its validations may take, unless they are the fewest
MOST_STEPS = {STAGE1: 4000, STAGE2: 3000, CLASSIFIER: 4000}  # of many images; half of it for few
LEAST_STEPS = {STAGE1: 300, STAGE2: 200, CLASSIFIER: 200}
COMPILED = 1.1  # time of a step of stage 1 in a long compiled training, over that of a few eager ones; in one trial
COMPILATION = 40.0  # seconds that compiling stage 1 takes
WORTH_COMPILING = 180.0  # seconds; a shorter training of stage 1 is not compiled
MEASURED, SAMPLED = 2000, 1000  # images that `evaluate` measures, and that `sample` draws of each kind, at most
LEAST_MEASURED, LEAST_SAMPLED = 200, 10  # images; images of each class
PICTURES = 64  # images that `reconstruct` draws


@dataclass
class Plan:
    """What the time allows.

    Args:
        survey: the images.
        params: all values of params.yaml but those that the plan decides.
        times: what was measured.
        minutes: for the whole pipeline.
        reading: seconds that reading one image takes.
        compiler: whether torch.compile finds a compiler.

    Attributes:
        choice: numbers of steps and of images, and what depends on them.
        seconds: what each stage will take, in the order in which stages run.
        steps: of each training, by its section.
    """

    survey: Survey
    params: Params
    times: Times
    minutes: float
    reading: float
    compiler: bool
    choice: Choice = field(default_factory=Choice, init=False)
    seconds: dict[str, float] = field(default_factory=dict, init=False)
    steps: dict[str, int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        images, times, repeats = self.survey.images, self.times, passes(self.params)
        encoded = images["train"] * repeats + images["validation"] + images["test"]
        self.seconds = {
            "fingerprint": START,
            "prepare": START + self.reading * sum(images.values()),
            "train_vqvae": START,
            "refine_decoder": OFF,
            "reconstruct": START + PICTURES * times.reconstruction,
            "extract_codes": START + encoded * times.encoding,
            "train_prior": START,
            "train_classifier": START,
            "sample": START,
            "evaluate": START + FIGURES + times.comparing + min(images["train"], TRAINING) * times.judging,
            "report": START,
        }
        budget = USED * 60 * self.minutes
        self._measure(MEASURING * budget)
        self._train(max(MEASURING * budget, budget - sum(self.seconds.values())))

    @property
    def expected_minutes(self) -> float:
        """What the whole will take."""
        return sum(self.seconds.values()) / 60

    @property
    def useful_minutes(self) -> float:
        """The time with which every training has all the steps that help."""
        trained = {STAGES[name]: self._most(name) / count for name, count in self.steps.items()}
        seconds = sum(seconds * max(1.0, trained.get(stage, 1.0)) for stage, seconds in self.seconds.items())
        return seconds / 60 / USED

    @property
    def refining_minutes(self) -> float | None:
        """What `refine_decoder`, which is off, would take more; None if it cannot be trained here, or is refused."""
        training = self.params.refine_decoder.training
        if self.times.refining is None or not self._may_refine():
            return None
        validations = -(-training.steps // training.validate_every)
        seen = validations * self.survey.images["validation"] * self.times.reconstruction
        return (training.steps * self.times.refining + seen + START - OFF) / 60

    def _may_refine(self) -> bool:
        """Whether the parameters stay valid with a refined decoder: images may be too small, or the judge a loss."""
        section = self.params.refine_decoder.model_copy(update={"name": "objective"})
        drawn = self.params.sampling.model_copy(update={"decoder": "refined"})
        try:
            self.params.model_copy(update={"refine_decoder": section, "sampling": drawn}).sections_fit_together()
        except ValueError:
            return False
        return True

    @property
    def disk(self) -> int:
        """About how many bytes the run leaves: see `run_bytes`."""
        images, samples = self.survey.images, self.choice.values["sampling.images"]
        return sum(run_bytes(self.params, images, samples, self.times.weights).values())

    def _measure(self, room: float) -> None:
        """Choose how many images are drawn and measured: fewer than usual, if that would take longer than `room`."""
        test = self.survey.images["test"]
        judging = self.times.judging
        drawn, seen = 2 * self.times.sample, 2 * (self.times.reconstruction + self.times.nats + judging)
        sampled, measured = SAMPLED, min(MEASURED, test)
        part = min(1.0, room / (sampled * (drawn + 2 * judging) + measured * seen))
        if part < 1:
            least = LEAST_SAMPLED * max(1, len(self.survey.classes or ()))
            sampled = min(SAMPLED, max(least, rounded(sampled * part)))
            measured = min(test, max(LEAST_MEASURED, rounded(measured * part)))
        self.seconds["sample"] += sampled * drawn
        self.seconds["evaluate"] += measured * seen + 2 * sampled * judging
        reason = "what the time allows"
        self.choice.set("sampling.images", sampled, reason if part < 1 else "")
        all_of_them = measured == test
        reason = "" if all_of_them else reason if part < 1 else "enough for the figures"
        self.choice.set("evaluation.images", None if all_of_them else measured, reason)

    def _train(self, room: float) -> None:
        """Divides an amount of time among the trainings and gives each its number of steps.

        A training that cannot use its whole share leaves the rest to the next. The one with the largest share is last.

        Args:
            room: seconds.
        """
        step = {STAGE1: self.times.vqvae_step, STAGE2: self.times.prior_step, CLASSIFIER: self.times.classifier_step}
        left = {name: share for name, share in SHARES.items() if step[name]}
        for name in sorted(left, key=lambda name: SHARES[name]):
            taken = self._give(name, step[name], room * left[name] / sum(left.values()))
            self.seconds[STAGES[name]] += taken
            room -= taken
            del left[name]

    def _give(self, name: str, step: float, room: float) -> float:
        """Give one training the steps for which there is room; returns the seconds that it will take.

        Args:
            step: seconds that one takes.
            room: seconds.
        """
        validation, most = self._validation(name), self._most(name)
        whole = min(room, most * step / (1 - VALIDATING))
        affordable = int(VALIDATING * whole / validation) if validation else VALIDATIONS
        validations = min(VALIDATIONS, max(LEAST_VALIDATIONS, affordable))
        extra = validations * validation
        if name == STAGE1:
            bf16 = self.params.stage1_vqvae.training.precision == "bf16"
            lasts = max(LEAST_STEPS[name] * step, min(room, most * step))
            compiles = self.compiler and bf16 and lasts > WORTH_COMPILING
            reason = "worth it in a long training" if compiles else "" if self.compiler else "there is no compiler"
            reason = reason or ("not worth it in a short training" if bf16 else "compiling was measured with bf16 only")
            self.choice.set(f"{name}.training.compile", compiles, reason)
            if compiles:
                step, extra = COMPILED * step, extra + COMPILATION
        count = max(LEAST_STEPS[name], min(most, int((room - extra) / step)))
        every = rounded(count / validations)
        self.steps[name] = every * validations
        reason = "the fewest that make sense" if count == LEAST_STEPS[name] else "what the time allows"
        reason = "more would hardly help" if count == most else reason
        self.choice.set(f"{name}.training.steps", self.steps[name], reason)
        self.choice.set(f"{name}.training.validate_every", every)
        self.choice.set(f"{name}.training.warmup_steps", min(100, self.steps[name] // 10))
        patience = self.params.stage2_prior.chosen.training.patience
        if name == STAGE2 and patience and validations <= patience + 1:  # the first one always improves
            self.choice.set(f"{name}.training.patience", None, "there are too few validations to end early")
        return self.steps[name] * step + extra

    def _most(self, name: str) -> int:
        """The steps of a training after which more would hardly help. Smaller batches of the prior count as less."""
        train = self.survey.images["train"]
        most = MOST_STEPS[name] // (1 if train >= FEW else 2)
        usual, own = usual_batch(train)[0], self.params.stage2_prior.chosen.training.batch_size
        return most * usual // own if name == STAGE2 and own < usual else most

    def _validation(self, name: str) -> float:
        """Seconds of one validation."""
        images, times = self.survey.images, self.times
        if name == STAGE1:  # the likelihood is fitted on training images first
            fitted = getattr(self.params.stage1_vqvae.likelihood.chosen, "fit_images", 0)
            return times.reconstruction * (images["validation"] + min(fitted, images["train"]))
        if name == STAGE2:
            return times.nats * images["validation"]
        batch = self.params.classifier.training.batch_size
        return times.classifier_step / 3 * images["validation"] / batch  # a forward pass is a third of a step


def rounded(value: float) -> int:
    """Down to two digits, which are enough for a plan; at least 1."""
    value = max(1, int(value))
    digits = 10 ** max(0, len(str(value)) - 2)
    return value - value % digits
