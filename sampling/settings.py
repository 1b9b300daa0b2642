"""The settings of sampling: how logits become codes, level by level."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

from tessera.codes.layout import CodeLayout
from tessera.errors import UserError

Each = float | int | None  # a value for every level
FILTERS = ("temperature", "top_k", "top_p", "min_p")


@dataclass(frozen=True)
class Settings:
    """How codes are chosen. The first five take one value, or one per level, coarsest first.

    With the defaults images come from exactly the distribution that an autoregressive prior has learned.

    Attributes:
        temperature, top_k, top_p, min_p: see `sampling.choose.probabilities`; None switches a filter off. Codes above a
            prior's `largest_softmax` are chosen in parts, each by itself: so these work on the parts, and a `top_k`
            above the largest part filters nothing.
        guidance_scale: 1 for none (see `sampling.choose.guide`).
        guidance_schedule: "constant", or "linear": from 1 at the first of all codes to the scale at the last.
        decoding_steps: forward passes that a masked prior takes for one level's, or one image's, codes.
        choice_temperature: scale of the noise on which codes a masked prior keeps; after pass n times 1 - n/steps.
    """

    temperature: Each | list[Each] = 1.0
    top_k: Each | list[Each] = None
    top_p: Each | list[Each] = None
    min_p: Each | list[Each] = None
    guidance_scale: Each | list[Each] = 1.0
    guidance_schedule: str = "constant"
    decoding_steps: int = 8
    choice_temperature: float = 4.5

    @classmethod
    def checked(cls, layout: CodeLayout, values: dict[str, Any]) -> Settings:
        """Settings by name for codes of a layout; those left out keep their defaults.

        Raises:
            UserError: an unknown name, a value out of range or of another type, `top_k` over every level's codebook, or
                not as many values as levels.
        """
        names = [f.name for f in fields(cls)]
        if unknown := sorted(set(values) - set(names)):
            raise UserError(f"{unknown[0]}: no such sampling setting; there are {', '.join(names)}")
        settings = cls(**values)
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
        if settings.guidance_schedule not in ("constant", "linear"):
            raise UserError(f"guidance_schedule: expected constant or linear, got {settings.guidance_schedule!r}")
        for name, least in (("decoding_steps", 1), ("choice_temperature", 0)):
            value = getattr(settings, name)
            whole = isinstance(value, int) or name == "choice_temperature"
            if not _is_number(value) or not whole or not (math.isfinite(value) and value >= least):
                kind = "a whole number" if name == "decoding_steps" else "a number"
                raise UserError(f"{name}: expected {kind} of at least {least}, got {value!r}")
        return settings

    def filters(self, level: int) -> dict[str, Each]:
        """`choose`'s arguments for a level."""
        return {name: self._at(name, level) for name in FILTERS}

    def scale(self, level: int, progress: float) -> float:
        """The guidance scale for a level, at a moment from 0 (the first code) to 1 (the last)."""
        scale = self._at("guidance_scale", level)
        return 1 + (scale - 1) * progress if self.guidance_schedule == "linear" else scale

    def guided(self, levels: Iterable[int]) -> bool:
        """Whether any of these levels has guidance."""
        return any(self._at("guidance_scale", level) != 1 for level in levels)

    def unguided(self) -> Settings:
        """The same decoding, at temperature 1 without guidance or filters."""
        plain = Settings()
        return Settings(**asdict(self) | {name: getattr(plain, name) for name in (*FILTERS, "guidance_scale")})

    def _at(self, name: str, level: int) -> Each:
        value = getattr(self, name)
        return value[level if len(value) > 1 else 0] if isinstance(value, list | tuple) else value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check(name: str, value: object, vocabulary: int) -> None:
    """One value of a setting; raises UserError."""
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
    if name in ("temperature", "guidance_scale") and not (math.isfinite(value) and value >= 0):
        raise UserError(f"{name}: expected a number of at least 0, got {value}")
