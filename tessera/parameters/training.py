"""Parameters that every training run has."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from tessera.parameters.sections import Count, Decay, Fraction, NonNegative, Positive, PositiveFloat, Section


class TrainingParams(Section):
    """Optimisation: AdamW, linear warm-up then the schedule; `batch_size` is global, over all processes."""

    seed: Count
    steps: Positive
    batch_size: Positive
    learning_rate: PositiveFloat
    schedule: Literal["cosine", "exponential"]
    beta1: Decay
    beta2: Decay
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
            raise ValueError("schedule exponential never reaches 0; give a final_learning_rate_fraction above 0")
        return self


class RuntimeParams(Section):
    """What changes no result; no stage depends on it.

    processes: how many an entry point starts on its machine; None: one for each GPU, or one on a machine without.
    threads: of each process; None: as `tessera.launch.threads.number_of_threads` says.
    """

    processes: Positive | None
    threads: Positive | None
    log_every: Positive
    save_every: Positive
    batch_size: Positive
