"""Signals during a training: noted, given back, and left alone where they are ignored."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from whole_runs import HANGS

from tessera.training import stopping
from tessera.training.stopping import SIGNALS, StopRequest

NOTHING = 0  # what all processes asked for in the step's exchange


@pytest.fixture(autouse=True)
def own_dispositions() -> Iterator[None]:
    """What each signal does is put back after the test."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_its_handler_given_back(number: signal.Signals) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopRequest() as stop:
        assert stop.agreed(NOTHING) == (None, False)
        os.kill(os.getpid(), number)
        assert stop.agreed(NOTHING) == (number, False)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_second_ctrl_c_ends_the_process_and_no_other_signal_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "SAME", -1.0)
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        for number in (signal.SIGTERM, signal.SIGHUP):  # of a launcher and of a terminal, seen after a step of seconds
            os.kill(os.getpid(), number)
            assert stop.agreed(NOTHING) == (signal.SIGTERM, False)
        os.kill(os.getpid(), signal.SIGINT)


def test_signals_within_a_second_are_one_request() -> None:
    with StopRequest() as stop:
        for number in [signal.SIGTERM, signal.SIGTERM, signal.SIGINT]:
            os.kill(os.getpid(), number)
        assert stop.agreed(NOTHING) == (signal.SIGTERM, False)


def test_something_else_is_agreed_on_where_there_is_no_signal() -> None:
    with StopRequest() as stop:
        assert stop.agreed(NOTHING, also=True) == (None, True)
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.agreed(NOTHING, also=True) == (signal.SIGHUP, False)


def test_several_processes_do_what_the_largest_number_of_all_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "world", lambda: (0, 2))
    with StopRequest() as stop, StopRequest() as other:  # the second one receives the signal
        os.kill(os.getpid(), signal.SIGTERM)
        answers = [stop.asked(), other.asked(), stop.asked(also=True)]
        assert [stop.agreed(max(answers)), other.agreed(max(answers))] == [(signal.SIGTERM, False)] * 2
        assert stop.agreed(max(answers[0], answers[2])) == (None, True)
        assert other.agreed(answers[0], also=True) == (None, False), "it came after the exchange"


@pytest.mark.parametrize("ignored", SIGNALS)
def test_an_ignored_signal_stays_ignored_and_the_others_are_noted(ignored: signal.Signals) -> None:
    signal.signal(ignored, signal.SIG_IGN)
    with StopRequest() as stop:
        assert signal.getsignal(ignored) == signal.SIG_IGN
        os.kill(os.getpid(), ignored)
        assert stop.agreed(NOTHING) == (None, False)
    for number in set(SIGNALS) - {ignored}:
        with StopRequest() as stop:
            os.kill(os.getpid(), number)
            assert stop.agreed(NOTHING) == (number, False)
    assert signal.getsignal(ignored) == signal.SIG_IGN


def test_a_process_that_was_started_in_the_background_ignores_what_its_shell_ignored() -> None:
    code = (
        "import os, signal\nfrom tessera.training.stopping import StopRequest\n"
        "with StopRequest() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    assert stop.signal is None\n    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    assert stop.signal == signal.SIGTERM\n"
    )
    command = ["sh", "-c", 'trap "" INT HUP; exec "$0" -c "$1"', sys.executable, code]
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, timeout=HANGS
    )
    assert done.returncode == 0, done.stderr
