"""Labels as people give them (names of classes, numbers, "each", none), as numbers of classes."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch

from stage2_prior.priors.base import Prior
from tessera.errors import UserError

Label = int | str  # a class by its number or by its name
Labels = Sequence[Label] | torch.Tensor | Label | None  # see `Classes.numbers`

LISTED = 20  # names that one message lists
NONE = "none"  # on the command line: no class in particular


@dataclass(frozen=True)
class Classes:
    """The classes that a prior knows.

    Attributes:
        count: number of classes. It is also the null label's number.
        names: (count,), or None if the prior does not say them.
        trained: the numbers of the classes that its training images show, ascending. Only they are sampled.
    """

    count: int
    names: tuple[str, ...] | None
    trained: tuple[int, ...]

    @classmethod
    def of(cls, prior: Prior) -> Classes:
        """The classes of a prior. One that does not say how many images it saw of each has seen all classes."""
        images = prior.class_images or (1,) * prior.num_classes
        return cls(prior.num_classes, prior.class_names, tuple(i for i, number in enumerate(images) if number))

    def name(self, number: int) -> str:
        """The name of a class or of the null label, for messages and pictures."""
        if number == self.count:
            return NONE
        return self.names[number] if self.names else str(number)

    def numbers(self, labels: Labels, count: int, start: int = 0, repeat: bool = False) -> torch.Tensor | None:
        """Labels as numbers of classes.

        Args:
            labels: a label for each image; or one label, for all images; "each" for the trained classes in turn, image
                i having the class i mod their number (and none where the prior was trained without labels); None for
                the null label. A label is a class's name as text, or its number; or `self.count`, the null label.
            count: number of images; start: number of the first one in the run, from 0, which only "each" uses.
            repeat: whether fewer labels than images are taken in turn. Their number must divide `count`.

        Returns:
            int64 (count,), or None for the null label.

        Raises:
            UserError: labels for a prior without classes, a wrong number of them, or a class that does not exist.
        """
        if labels is None:
            return None
        if isinstance(labels, str) and labels == "each":
            if not self.count:
                return None
            return torch.tensor([self.trained[(start + i) % len(self.trained)] for i in range(count)])
        if not self.count:
            raise UserError("labels: this prior was trained without labels; leave them out")
        one = isinstance(labels, str | Integral) and not isinstance(labels, bool)
        found = self._array([labels] if one else labels, count)
        turns = count // max(1, len(found))
        if len(found) != count and not ((one or repeat) and turns * len(found) == count):
            few = f", or fewer, by whose number {count} can be divided; they are then taken in turn" if repeat else ""
            raise UserError(
                f"labels: expected {count} whole numbers or names of classes, one an image{few}, got {len(found)}"
            )
        wrong = found[(found < 0) | (found > self.count)]
        if len(wrong):
            raise UserError(
                f"labels: class {int(wrong[0])} does not exist; choose from 0 to {self.count - 1}, or {self.count} "
                "for no class in particular"
            )
        return torch.from_numpy(np.tile(found, turns))

    def _array(self, labels: Any, count: int) -> np.ndarray:
        """Labels as int64 (m,), not yet compared with the classes."""
        wanted = f"labels: expected {count} whole numbers or names of classes, one an image"
        try:
            found = labels.cpu().numpy() if isinstance(labels, torch.Tensor) else labels
            if isinstance(found, np.ndarray) and found.dtype.kind in "UO":
                found = found.tolist()
            if isinstance(found, list | tuple):
                found = [self.number(label) if isinstance(label, str) else label for label in found]
            found = np.asarray(found)
            if found.dtype.kind not in "iu" or found.ndim != 1:
                raise UserError(f"{wanted}, got {type(labels).__name__} of shape {found.shape} and {found.dtype}")
            if found.dtype.kind == "u" and len(found) and found.max() > np.iinfo(np.int64).max:
                raise UserError(f"labels: class {found.max()} does not exist; choose from 0 to {self.count - 1}")
            return found.astype(np.int64)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{wanted}, got {type(labels).__name__}: {' '.join(str(error).split())}") from error

    def number(self, name: str, where: str = "labels") -> int:
        """The number of the class with this name. Capitals do not matter, unless several names differ in them alone.

        Args:
            where: the argument or option that named the class, for messages.

        Raises:
            UserError: no class has the name. The message has the nearest name, if one is near, and the first names.
        """
        if self.names is None:
            raise UserError(
                f"{where}: {name!r} is a name, but this prior does not say its classes' names; give a number from "
                f"0 to {self.count - 1}, or train it again with this version"
            )
        known = [_composed(one) for one in self.names]
        if _composed(name) in known:
            return known.index(_composed(name))
        alike = [number for number, one in enumerate(known) if one.casefold() == _composed(name).casefold()]
        if len(alike) == 1:
            return alike[0]
        plain, text = {_composed(one).casefold(): one for one in self.names}, _composed(name).casefold()
        with_word = [one for one in plain if text in one.split()]
        close = with_word or difflib.get_close_matches(text, plain, n=1, cutoff=0.4)
        nearest = f"; did you mean {plain[close[0]]!r}?" if close else ";"
        listed = ", ".join(map(repr, self.names[:LISTED]))
        more = f" and {len(self.names) - LISTED} more" if len(self.names) > LISTED else ""
        raise UserError(f"{where}: no class is called {name!r}{nearest} there are {listed}{more}")

    def word(self, text: str, where: str = "--class") -> tuple[int, str | None]:
        """A label given on the command line: a class's name; else a class's number; else "none", the null label.

        Returns:
            The number, and a note for the user where the text is the name of one class and the number of another.

        Raises:
            UserError: there are no classes, or none has this name or number.
        """
        if not self.count:
            raise UserError(f"{where}: this prior was trained without labels; leave the option out")
        number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
        number = number if number is not None and number < self.count else None
        if self.names and _composed(text) in map(_composed, self.names):
            named = self.number(text, where)
            if number in (None, named):
                return named, None
            return named, f"{where} {text}: the class of this name (number {named}), not class number {number}"
        if number is not None:
            return number, None
        return (self.count if text == NONE else self.number(text, where)), None

    def require_trained(self, labels: torch.Tensor | None) -> None:
        """Refuses to sample a class that no training image shows: the prior knows nothing of it.

        Args:
            labels: int64 (B,), or None for the null label.

        Raises:
            UserError: with the class's name and number.
        """
        if labels is None or len(self.trained) == self.count:
            return
        for number in labels.unique().tolist():
            if number != self.count and number not in self.trained:
                raise UserError(
                    f"labels: no training image shows class {number} ({self.name(number)!r}), so the prior has learned "
                    "nothing of it; choose another class"
                )


def _composed(name: str) -> str:
    """A name in which each accented letter is one character. File systems and keyboards write it in different ways."""
    return unicodedata.normalize("NFC", name)
