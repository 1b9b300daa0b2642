"""Text from outside is shown in one line that steers no terminal, and is otherwise as it is."""

from __future__ import annotations

import pytest

from tessera.errors import UserError, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cat_1.png", "cat_1.png"),
        ("Käse 猫 👩‍👩‍👧 a\u00a0b", "Käse 猫 👩‍👩‍👧 a\u00a0b"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("\x9b31m\x7f", r"\x9b31m\x7f"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),
        ("a\u2028b\u2029c", r"a\u2028b\u2029c"),
        ("half \ud800", r"half \ud800"),
        ("", ""),
    ],
)
def test_what_steers_a_terminal_is_escaped(text, shown):
    assert printable(text) == shown
    assert str(UserError(f"{text}: no")) == f"{shown}: no"
