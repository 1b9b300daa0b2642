"""What stays on a terminal, and the page that shows it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return __import__("terminal")


@pytest.mark.parametrize(
    ("written", "stays"),
    [
        ("one\r\ntwo\r\n", ["one", "two"]),
        ("a bar  10%\ra bar 100%\r          \rdone\r\n", ["done"]),
        ("long line\rshort\x1b[K\r\n", ["short"]),
        ("outer\r\n inner\x1b[A\r     \r\n      \r\x1b[Athe end\r\n", ["the end"]),  # two bars, the inner one below
        ("\x1b[32mgreen\x1b[0m\r\n", ["green"]),
        ("0123456789012\r\nnext\r\n", ["0123456789", "012", "next"]),
        ("above\r\nbelow\r\nbelow\x1b[2A\r\x1b[Jnew", ["new"]),
        ("müßig ─ 中\r\n", ["müßig ─ 中"]),
        ("\ta\r\nb\tc\r\n", ["        a", "b       c"]),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 1000])
def test_what_stays_is_what_nothing_was_written_over(
    terminal: ModuleType, written: str, stays: list[str], size: int
) -> None:
    data = written.encode()
    pieces = [(float(start), data[start : start + size]) for start in range(0, len(data), size)]
    assert [line[9:] for line in terminal.lines(pieces, 10)] == stays


def test_a_line_has_the_second_of_its_last_change(terminal: ModuleType) -> None:
    pieces = [(1.0, b"one\r\nbar 1"), (7.25, b"\rbar 2\r\n"), (9.0, b"")]
    assert terminal.lines(pieces, 80) == ["    1.0  one", "    7.2  bar 2"]


def test_a_command_is_run_in_a_terminal_of_its_own_and_its_silence_is_told(terminal: ModuleType) -> None:
    code = "import sys, time; print(sys.stdout.isatty()); time.sleep(0.3); print('second')"
    pieces, status = terminal.run([sys.executable, "-u", "-c", code], 80)
    assert status == 0 and [line[9:] for line in terminal.lines(pieces, 80)] == ["True", "second"]
    seconds, _, after = next(found for found in terminal.silences(pieces) if found[2].strip() == "True")
    assert seconds >= 0.25 and after


def test_a_section_of_a_page_is_replaced_and_the_others_stay(terminal: ModuleType) -> None:
    page = "# Page\n\nWords.\n"
    first = terminal.put_into(page, "One", "It took a second.", ["a", "b"])
    assert first == "# Page\n\nWords.\n\n## One\n\nIt took a second.\n\n```text\na\nb\n```\n"
    both = terminal.put_into(first, "Two", "It took two.", ["c"])
    again = terminal.put_into(both, "One", "It took three.", ["d"])
    assert again == both.replace("a second", "three").replace("a\nb", "d")
    assert terminal.put_into(again, "Two", "It took two.", ["c"]) == again
