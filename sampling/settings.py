"""The settings of sampling: how codes are chosen from a prior's logits, level by level."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from sampling.parameters import MOST_GUIDANCE
from tessera.codes.layout import CodeLayout
from tessera.errors import UserError

Each = float | int | None  # the value of one level
FILTERS = ("temperature", "top_k", "top_p", "min_p")


@dataclass(frozen=True)
class Settings:
    """How codes are chosen. The first five settings take one value, or one for each level, coarsest first.

    The defaults are those of params.yaml as it ships. With `Settings.plain()`, images come from exactly the
    distribution that an autoregressive prior has learned.

    Attributes:
        temperature, top_k, top_p, min_p: see `sampling.choose.probabilities`. Codes of codebooks above a prior's
            `largest_softmax` are chosen in several parts. These settings then act on each part, and a `top_k` above the
            largest part filters nothing.
        guidance_scale: see `sampling.choose.guide`; 1 means no guidance.
        guidance_schedule: "constant", or "linear": the scale then rises from 1 at an image's first code to
            `guidance_scale` at its last.
        decoding_steps: number of forward passes in which a masked prior fills in the codes of an image, or of its level
            if it is the link of a chain. Where `order` is "parallel", an any-order prior takes so many for each depth
            of each level.
        choice_temperature: scale of the Gumbel noise that a masked prior adds to each code's confidence. It falls
            linearly to 0 over the forward passes.
        order: of the codes that an any-order prior draws: "layout", the order of the likelihood; "random", each level's
            positions shuffled, another order for each image; or "parallel", the same with many positions at a time,
            which do not depend on one another.
    """

    temperature: Each | list[Each] = 0.9
    top_k: Each | list[Each] = None
    top_p: Each | list[Each] = None
    min_p: Each | list[Each] = None
    guidance_scale: Each | list[Each] = 2.0
    guidance_schedule: str = "constant"
    decoding_steps: int = 8
    choice_temperature: float = 4.5
    order: str = "layout"

    @classmethod
    def plain(cls) -> Settings:
        """Temperature 1, no filter, and no guidance."""
        return cls(temperature=1.0, guidance_scale=1.0)

    @classmethod
    def checked(cls, layout: CodeLayout, values: dict[str, Any]) -> Settings:
        """Settings from values by name, checked against a layout. Names that are missing keep their defaults.

        Numbers of numpy count as numbers.

        Raises:
            UserError: a name is unknown, a value is out of range or of another type, `top_k` is above every level's
                codebook size, or there are not as many values as levels.
        """
        names = [f.name for f in fields(cls)]
        if unknown := sorted(set(values) - set(names)):
            raise UserError(f"{unknown[0]}: no such sampling setting; there are {', '.join(names)}")
        settings = cls(**{name: _plain(value) for name, value in values.items()})
        for name in (*FILTERS, "guidance_scale"):
            value = getattr(settings, name)
            several = value if isinstance(value, list | tuple) else [value]
            if len(several) not in (1, len(layout.levels)):
                raise UserError(
                    f"{name}: {len(several)} values for {len(layout.levels)} levels of codes; give one, or one "
                    "per level"
                )
            for level, one in enumerate(several):
                whole = len(several) != len(layout.levels)
                _check(name, one, layout.vocabulary if whole else layout.levels[level].codebook_size)
        for name, words in (("guidance_schedule", ("constant", "linear")), ("order", ("layout", "random", "parallel"))):
            if (value := getattr(settings, name)) not in words:
                raise UserError(f"{name}: expected {' or '.join(words)}, got {value!r}")
        for name, least in (("decoding_steps", 1), ("choice_temperature", 0)):
            value = getattr(settings, name)
            whole = isinstance(value, int) or name == "choice_temperature"
            if not _is_number(value) or not whole or not (math.isfinite(value) and value >= least):
                kind = "a whole number" if name == "decoding_steps" else "a number"
                raise UserError(f"{name}: expected {kind} of at least {least}, got {value!r}")
        return settings

    def filters(self, level: int) -> dict[str, Each]:
        """The arguments of `sampling.choose.choose` for a level."""
        return {name: self._at(name, level) for name in FILTERS}

    def scale(self, level: int, progress: float) -> float:
        """The guidance scale of a level, at a moment from 0 (the image's first code) to 1 (its last)."""
        scale = self._at("guidance_scale", level)
        return 1 + (scale - 1) * progress if self.guidance_schedule == "linear" else scale

    def guided(self, levels: Iterable[int]) -> bool:
        """Whether any of these levels has a guidance scale other than 1."""
        return any(self._at("guidance_scale", level) != 1 for level in levels)

    def unguided(self) -> Settings:
        """A copy of these settings with temperature 1, no filter and no guidance. All other settings are kept."""
        plain = Settings.plain()
        return Settings(**asdict(self) | {name: getattr(plain, name) for name in (*FILTERS, "guidance_scale")})

    def _at(self, name: str, level: int) -> Each:
        """The value of a setting for a level."""
        value = getattr(self, name)
        return value[level if len(value) > 1 else 0] if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    """Numbers of numpy, alone, in an array or in a list, as numbers of Python. Other values stay as they are."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check(name: str, value: object, vocabulary: int) -> None:
    """Refuses a value that a setting cannot have, by a UserError. `vocabulary`: the largest codebook it applies to."""
    optional = name in ("top_k", "top_p", "min_p")
    if value is None and optional:
        return
    if not _is_number(value):
        raise UserError(f"{name}: expected a number{', or None for no filter' if optional else ''}, got {value!r}")
    if name == "top_k" and not (isinstance(value, int) and 1 <= value <= vocabulary):
        raise UserError(
            f"top_k: expected a whole number from 1 to {vocabulary} (the largest codebook), or None for no filter, "
            f"got {value}"
        )
    if name == "top_p" and not 0 < value <= 1:
        raise UserError(f"top_p: expected a number above 0, at most 1, or None for no filter, got {value}")
    if name == "min_p" and not 0 <= value < 1:
        raise UserError(f"min_p: expected a number of at least 0, below 1, or None for no filter, got {value}")
    if name == "temperature" and not (math.isfinite(value) and value >= 0):
        raise UserError(f"temperature: expected a number of at least 0, got {value}")
    if name == "guidance_scale" and not 0 <= value <= MOST_GUIDANCE:
        raise UserError(f"guidance_scale: expected a number from 0 to {MOST_GUIDANCE}, got {value}")
