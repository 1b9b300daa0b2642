"""The shapes of a parameter section: plain values, a choice of one option by its name, and terms of a sum."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator, model_serializer

from tessera.errors import UserError
from tessera.parameters.parts import options, parameters_of

LARGEST = 2**31 - 1  # of the numbers below; what counts anything here is smaller, and many libraries take no more
Positive = Annotated[int, Field(ge=1, le=LARGEST)]
Count = Annotated[int, Field(ge=0, le=LARGEST)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]


class Misfit(ValueError):
    """Values of a section that do not fit together: where it is, below the section that is asked, and why."""

    def __init__(self, reason: str, *path: str) -> None:
        super().__init__(": ".join([".".join(path)] * bool(path) + [reason]))
        self.reason, self.path = reason, path


class Section(BaseModel):
    """A frozen section without defaults: params.yaml is the only place for a value.

    Attributes:
        published: whether published models are built from the options that are chosen here. If so, the options are code
            of every stage that loads such a model. Otherwise they are code of the stages that use the section.
        takes: for a field that is a section, the section of params.yaml and the field there from which it takes the
            values that it does not give.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    published: ClassVar[bool] = True
    takes: ClassVar[dict[str, tuple[str, str]]] = {}
    refuses: ClassVar[dict[str, str]] = {}  # keys that other sections of the kind have and this one cannot; why

    def values(self) -> dict[str, Any]:
        """The section as a tree of JSON values. Of a choice it holds `name` and the chosen option only."""
        return self.model_dump(mode="json")

    def used_with(self, params: Any) -> dict[str, Any]:
        """The values, as JSON values, that a stage uses together with the options which `params` chooses elsewhere."""
        return self.values()

    def options_used(self) -> Iterable[tuple[str, str]]:
        """The package and the name of each option that is chosen in this section, without those of `parts_used`."""
        return ()

    def parts_used(self) -> Iterable[Any]:
        """The values and sections in this section that count."""
        return (part for _, part in self)

    def fits_together(self) -> None:
        """Refuse values that do not fit together. Of the options of a choice only the chosen one is asked.

        Raises:
            Misfit: with the reason.
        """


class Choice(Section):
    """A section that picks one of its options by `name`. Each option has a section of its own beside it.

    A subclass declares the values that options share. An option that has a field of the same name takes the shared
    value, unless its own section overrides it (`tessera.parameters.inherit`).
    """

    package: ClassVar[str]  # where the options' files are
    refused: ClassVar[dict[str, str]] = {}  # options that cannot be chosen here; why
    nested: ClassVar[bool] = False  # whether values come from the choice around it too (see `nested_choice`)
    optional: ClassVar[bool] = False  # whether options' sections may be left out; fields of options may be None then

    name: str

    @field_validator("name", mode="before")
    @classmethod
    def may_be_here(cls, name: Any) -> Any:
        if isinstance(name, str) and name in cls.refused:
            raise ValueError(f"{name} cannot be here: {cls.refused[name]}")
        return name

    @property
    def chosen(self) -> Any:
        """The parameters of the option named by `name`."""
        return getattr(self, self.name)

    @model_serializer
    def chosen_alone(self) -> dict[str, Any]:
        """`{"name": NAME, NAME: parameters}`: the chosen option without the others, which change nothing."""
        return {"name": self.name, self.name: self.chosen}

    def options_used(self) -> Iterable[tuple[str, str]]:
        return ((self.package, self.name),)

    def parts_used(self) -> Iterable[Any]:
        return (self.chosen,)

    def fits_together(self) -> None:
        try:
            self.chosen.fits_together()
        except Misfit as error:
            raise Misfit(error.reason, self.name, *error.path) from None

    @classmethod
    def option_names(cls) -> list[str]:
        """The names of the options that may be chosen here."""
        return [name for name in options(cls.package) if name not in cls.refused]

    @classmethod
    def shared_names(cls) -> set[str]:
        """The names of the values that options share."""
        return set(cls.model_fields) - {"name", *options(cls.package)}


def choice(base: type[Choice], **classes: type[Section]) -> type[Any]:
    """The choice with a field for every option of its package.

    Args:
        base: declares the package and the shared values.
        classes: the parameters' class of an option, where it is not the one in the option's file.
    """
    names = base.option_names()
    if taken := [name for name in names if hasattr(Choice, name) or name in base.model_fields]:
        file = options(base.package)[taken[0]]
        raise UserError(f"{file}: an option cannot be called `{taken[0]}`, which is a name of the section; rename it")
    fields: dict[str, Any] = {name: (classes.get(name) or parameters_of(base.package, name), ...) for name in names}
    return create_model(base.__name__, __base__=base, __module__=base.__module__, name=(Literal[*names], ...), **fields)


class Terms(Section):
    """The terms of a sum. Each is an option with a section of its own and a `weight`; a weight of 0 switches it off.

    A term that is off counts nowhere, as an option that is not chosen does.
    """

    package: ClassVar[str]  # where the options' files are

    @property
    def on(self) -> dict[str, Any]:
        """The parameters of the terms that are on, by name in alphabetical order."""
        return {name: part for name, part in self if part.weight > 0}

    @model_serializer
    def those_on(self) -> dict[str, Any]:
        """What the sum comes to."""
        return self.on

    def options_used(self) -> Iterable[tuple[str, str]]:
        return ((self.package, name) for name in self.on)

    def parts_used(self) -> Iterable[Any]:
        return self.on.values()

    def fits_together(self) -> None:
        for name, part in self.on.items():
            try:
                part.fits_together()
            except Misfit as error:
                raise Misfit(error.reason, name, *error.path) from None


def terms(base: type[Terms]) -> type[Any]:
    """The sum with a field for every option of its package."""
    fields: dict[str, Any] = {name: (parameters_of(base.package, name), ...) for name in options(base.package)}
    return create_model(base.__name__, __base__=base, __module__=base.__module__, **fields)


def nested_choice(package: str, refused: dict[str, str]) -> type[Any]:
    """A choice inside an option of the same package, such as the quantizer inside a residual quantizer.

    Only the chosen option is kept, and its section may be left out. A value comes from the nearest place that has it:
    the option's section here, the shared values here, the option's section in the choice around, the shared values
    there.
    """

    base = type("Nested", (Choice,), {"__module__": __name__, "__annotations__": {}})
    base.package, base.refused, base.nested = package, refused, True
    names = base.option_names()
    fields: dict[str, Any] = {name: (parameters_of(package, name) | None, None) for name in names}
    return create_model("Nested", __base__=base, name=(Literal[*names], ...), **fields)
