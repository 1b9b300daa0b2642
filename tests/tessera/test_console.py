"""What a person sees on standard error."""

from __future__ import annotations

import io
import re
import sys
import threading
import time

import pytest
from whole_runs import wait_for

from tessera import console
from tessera.console import Bar, say, starting, waiting


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def as_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Put a terminal in place of standard error. A fixture could not: pytest replaces it between setup and test."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    return sys.stderr


def screen_of(text: str) -> list[str]:
    """What stays on a terminal after text with carriage returns: each line that is not blank."""
    rows = []
    for line in text.split("\n"):
        row = ""
        for piece in line.split("\r"):
            row = piece + row[len(piece) :]
        rows.append(row.rstrip())
    return [row for row in rows if row]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the console reads, which only the test moves on. The last line was printed at 0."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(console, "_spoke", 0.0)
    monkeypatch.setattr(console, "PACE", 30)
    return now


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "LONG", 0.05)
    monkeypatch.setattr(console, "PACE", 0.05)


def test_a_bar_on_a_terminal_shows_its_figures_in_place_and_leaves_nothing(monkeypatch) -> None:
    terminal = as_terminal(monkeypatch)
    with Bar(10, "train_vqvae", "step", initial=4) as bar:
        bar.set_postfix_str("loss 0.5", refresh=False)
        time.sleep(0.11)  # tqdm draws ten times a second at most
        bar.update()
        shown = terminal.getvalue()
    assert "train_vqvae:  50%" in shown and "5/10" in shown and "loss 0.5" in shown
    assert "\n" not in shown, "one line that is drawn anew"
    assert terminal.getvalue().split("\r")[-2].strip() == ""


def test_without_a_terminal_a_bar_is_a_line_now_and_then(clock, capsys) -> None:
    with Bar(10, "codes", "image") as bar:
        bar.update(3)
        clock[0] += 10
        say("a line")
        clock[0] += 29
        bar.update(0)
        assert capsys.readouterr().err == "a line\n", "the pace is not over"
        clock[0] += 1
        bar.set_postfix_str("loss 0.5", refresh=False)
        bar.update(2)
        said = capsys.readouterr().err
        assert said.startswith("codes: 5/10 images, ") and said.endswith("left, loss 0.5\n") and said.count("\n") == 1
        clock[0] += 31
        bar.update(5)
    assert capsys.readouterr().err == "", "the end is told by whoever shows the result"


def test_without_a_terminal_many_short_bars_speak_at_the_pace_of_one(clock, capsys) -> None:
    for _ in range(6):
        with Bar(10, "codes", "image") as bar:
            clock[0] += 12
            bar.update()
    assert capsys.readouterr().err.count("codes: 1/10 images") == 2


def test_a_terminal_that_does_not_say_its_width_has_a_bar(monkeypatch) -> None:
    terminal = as_terminal(monkeypatch)
    with Bar(10, "codes", "image"):
        assert "codes:   0%|" in terminal.getvalue()


def test_the_time_that_is_left_does_not_count_a_compilation(monkeypatch, capsys) -> None:
    now = [100.0]
    with Bar(100, "train_vqvae", "step") as bar:
        monkeypatch.setattr(bar, "_time", lambda: now[0])
        bar.start_t = bar.last_print_t = now[0]
        now[0] += 60
        bar.update()
        bar.forget_time()
        for _ in range(9):
            now[0] += 1
            bar.update()
        assert "10/100 steps, 00:09 taken, 01:30 left" in str(bar)


def test_what_is_quick_says_nothing(capsys) -> None:
    with waiting("compilation"):
        pass
    assert capsys.readouterr().err == ""


def test_what_takes_long_is_named_while_it_goes_on_and_timed_at_its_end(clock, impatient, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with waiting("compilation"):
        clock[0] = 3.2
        after = threading.Event()
        while sys.stderr.getvalue().count("\n") < 2:
            after.wait(0.01)
    first, second, *_, last = sys.stderr.getvalue().splitlines()
    assert (first, second, last) == ("compilation ...", "compilation ... 3.2 s", "compilation: 3.2 s")


def test_on_a_terminal_what_takes_long_has_a_clock_that_goes_away(impatient, monkeypatch) -> None:
    terminal = as_terminal(monkeypatch)
    with waiting("validation", report=False):
        wait_for(lambda: re.search(r"validation \.\.\. 00:0[1-9]", terminal.getvalue()), "no clock")
    assert "\n" not in terminal.getvalue() and terminal.getvalue().split("\r")[-2].strip() == ""


def test_a_start_has_a_clock_on_a_terminal_until_the_first_line(impatient, monkeypatch) -> None:
    terminal = as_terminal(monkeypatch)
    with starting():
        wait_for(lambda: "start ... 00:0" in terminal.getvalue(), "no clock")
        say("a line")
        shown = terminal.getvalue()
        time.sleep(1.2)  # the clock was drawn each second
    assert terminal.getvalue() == shown
    assert screen_of(shown) == ["a line"]


def test_a_clock_is_cut_to_the_width_of_the_terminal_and_gives_its_place_all_the_same(impatient, monkeypatch) -> None:
    terminal = as_terminal(monkeypatch)
    monkeypatch.setattr(console, "_width", lambda: {"ncols": 20})
    with waiting("check of models/vqvae/and/more"):
        wait_for(lambda: "check of models/vqva" in terminal.getvalue(), "no clock")
        print("warning: of some library", file=terminal)
    assert "warning: of some library" in screen_of(terminal.getvalue())


def test_what_another_prints_takes_the_place_of_a_clock(impatient, monkeypatch) -> None:
    terminal = as_terminal(monkeypatch)
    with starting():
        wait_for(lambda: "start ... 00:0" in terminal.getvalue(), "no clock")
        print("models/prior: published", file=terminal)
    assert screen_of(terminal.getvalue()) == ["models/prior: published"]


@pytest.mark.parametrize("sign", [lambda: Bar(10, "codes", "image"), lambda: waiting("validation")])
def test_a_start_is_over_with_the_first_bar_or_other_clock(sign, impatient, monkeypatch) -> None:
    terminal = as_terminal(monkeypatch)
    with starting():
        wait_for(lambda: "start ... 00:0" in terminal.getvalue(), "no clock")
        with sign():
            wait_for(lambda: re.search("codes:|validation ", terminal.getvalue()), "no sign")
            time.sleep(1.2)
            after = re.split("codes:|validation ", terminal.getvalue(), maxsplit=1)[1]
    assert "start" not in after


def test_a_quick_start_and_a_start_without_a_terminal_say_nothing(impatient, capsys, monkeypatch) -> None:
    with starting():
        time.sleep(0.2)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(console, "LONG", 60)
    terminal = as_terminal(monkeypatch)
    with starting():
        pass
    assert terminal.getvalue() == ""


def test_an_error_in_what_takes_long_arrives(impatient) -> None:
    with pytest.raises(KeyError, match="inside"), waiting("compilation"):
        time.sleep(0.1)
        raise KeyError("inside")


def test_only_the_first_process_of_a_run_speaks(impatient, capsys, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "1")
    say("a line")
    with waiting("compilation"), Bar(10, "codes", "image") as bar:
        time.sleep(0.2)
        bar.update()
    assert capsys.readouterr().err == ""
