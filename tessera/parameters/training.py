"""Parameters that every training run has."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from tessera.parameters.sections import Count, Decay, Fraction, NonNegative, Positive, PositiveFloat, Section

MOST_WORKERS = 1024  # processes of a machine, and threads of a process; libraries end the process above some number


class TrainingParams(Section):
    """How a model is trained: by AdamW, with a learning rate that rises linearly and then follows the schedule.

    betas: AdamW's beta1 and beta2.
    batch_size: images in a step, over all processes together.
    schedule_steps: number of steps until the learning rate reaches its end, where it stays; None: `steps`.
    """

    seed: Count
    steps: Positive
    batch_size: Positive
    learning_rate: PositiveFloat
    schedule: Literal["cosine", "exponential"]
    schedule_steps: Positive | None
    betas: tuple[Decay, Decay]
    weight_decay: NonNegative
    warmup_steps: Count
    final_learning_rate_fraction: Fraction
    gradient_clip: PositiveFloat | None
    weight_ema_decay: Decay
    precision: Literal["fp32", "bf16"]
    channels_last: bool
    compile: bool
    validate_every: Positive
    patience: Positive | None

    @model_validator(mode="after")
    def exponential_has_an_end(self) -> TrainingParams:
        if self.schedule == "exponential" and not self.final_learning_rate_fraction:
            raise ValueError("schedule exponential never reaches 0; set final_learning_rate_fraction above 0")
        return self

    def after(self, steps: int) -> dict[str, int]:
        """The values of `steps` and `schedule_steps` that train again what these parameters trained in some steps."""
        return {"steps": steps, "schedule_steps": self.schedule_steps or self.steps}


class RuntimeParams(Section):
    """How a run uses its machine. No stage depends on these values.

    processes: number of processes that an entry point starts; None: one for each GPU, or one without a GPU.
    threads: number of threads of each process; None: see `tessera.launch.threads.number_of_threads`.
    log_every: steps between two rows of train.csv. Each row is of its step alone.
    save_every: steps between two saved states.
    save_minutes: a state is also saved when this many minutes have passed since the last one; None: by steps only.
    keep_states: number of saved states of a training that stay.
    micro_batch: images of a training batch that are handled at once in each process; None: all of its share.
    batch_size: images that are handled at once where nothing is trained.
    pictures: the largest share of a training's time that its pictures may take; 0: there are none.
    trackers: programs that show curves, which get those of each training; none twice.
    """

    processes: Annotated[int, Field(ge=1, le=MOST_WORKERS)] | None
    threads: Annotated[int, Field(ge=1, le=MOST_WORKERS)] | None
    log_every: Positive
    save_every: Positive
    save_minutes: PositiveFloat | None
    keep_states: Annotated[int, Field(ge=2)]  # the newest may be damaged
    micro_batch: Positive | None
    batch_size: Positive
    pictures: Fraction
    trackers: tuple[Literal["tensorboard", "trackio", "wandb"], ...]

    @field_validator("trackers")
    @classmethod
    def each_tracker_once(cls, trackers: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(trackers)) < len(trackers):
            raise ValueError("a tracker is there twice; name each once")
        return trackers
