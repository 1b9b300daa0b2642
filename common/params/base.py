"""The two shapes of a parameter section: plain values, and a choice by name."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A frozen section without defaults: params.yaml is the only place for a value."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    refuses: ClassVar[dict[str, str]] = {}  # keys that others of its kind have and it cannot, and why

    def values(self) -> dict[str, Any]:
        """The section as JSON values."""
        return self.model_dump(mode="json")


class Choice(Section):
    """A section that picks one of its options by `name`; the others keep their values beside it."""

    @property
    def chosen(self) -> Any:
        """The parameters of the option named by `name`."""
        return getattr(self, self.name)  # type: ignore[attr-defined]

    def chosen_values(self) -> dict[str, Any]:
        """Name and parameters of the chosen option alone, as JSON values: what identifies the part."""
        return {"name": self.name, self.name: self.chosen.values()}  # type: ignore[attr-defined]


class Nested(Choice):
    """A choice inside another section, in which only the chosen option's section need be there."""

    @model_validator(mode="after")
    def chosen_is_there(self) -> Nested:
        if self.chosen is None:
            raise ValueError(f"name is {self.name}, but there is no section `{self.name}` beside it; add it")
        return self

    @model_serializer
    def chosen_alone(self) -> dict[str, Any]:
        return self.chosen_values()
