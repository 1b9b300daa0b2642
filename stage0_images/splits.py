"""Finds the training, validation and test split among the names that a source gives its splits."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tessera.errors import UserError

# The words for each split, in upper or lower case: those of `datasets.data_files.SPLIT_KEYWORDS`.
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
BETWEEN_WORDS = re.compile(r"[-._ 0-9]+")  # as in `datasets`


def is_split(name: str) -> bool:
    """Whether a name is one of the words for a split, with nothing around it."""
    return any(name.lower() in words for words in SPLIT_WORDS.values())


def split_of(name: str) -> str | None:
    """The split that a name stands for: train, validation or test.

    A prefix or a suffix may stand beside the word, as in "training_set" or "my-test". None: the name has no such word,
    or words for two splits.
    """
    words = set(BETWEEN_WORDS.split(name.lower()))
    found = [split for split, known in SPLIT_WORDS.items() if words.intersection(known)]
    return found[0] if len(found) == 1 else None


def choose_splits(names: Iterable[str], source: str) -> dict[str, str]:
    """Finds the standard splits among the splits of a source.

    A name that is just the word for a split is preferred to one with a prefix or a suffix. Of several such words for
    one split the first in `SPLIT_WORDS` is taken.

    Args:
        names: the source's own names of its splits.
        source: the value of data.source, for the message.

    Returns:
        the source's own names, by the standard names train, validation and test. Splits that it lacks are left out.

    Raises:
        UserError: there is no training split, or two names for one split are equally good.
    """
    names, chosen = sorted(names), {}
    for split, words in SPLIT_WORDS.items():
        plain = {name.lower(): name for name in names if name.lower() in words}
        found = [plain[word] for word in words if word in plain][:1] or [n for n in names if split_of(n) == split]
        if len(found) > 1:
            raise UserError(
                f"data.source: {source!r} has several splits for {split} ({', '.join(found)}); call the one to use "
                f"{split}, or, if they are classes, put them below a folder {split}"
            )
        chosen |= {split: found[0]} if found else {}
    if "train" not in chosen:
        raise UserError(
            f"data.source: {source!r} has no training split, only {', '.join(names) or 'none'}; expected one called "
            "train"
        )
    return chosen
