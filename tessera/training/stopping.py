"""Signals that ask a training to stop."""

from __future__ import annotations

import signal
import time
from typing import NoReturn

from tessera.console import say
from tessera.distributed import world
from tessera.launch.parents import wait_for_launcher

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAME = 1.0  # seconds within which a second Ctrl-C is the same request


class StopRequest:
    """Notes SIGINT, SIGTERM and SIGHUP while it is entered, so that the loop can save its state before it stops.

    A signal that the process ignores stays ignored: `nohup` ignores SIGHUP, and a shell ignores SIGINT for its
    background jobs. A second Ctrl-C, more than a second after the first request, has the effect that it had before,
    without waiting for the loop.

    All other signals after the first are the same request. A terminal and a launcher may both send one to the same
    process, Linux sends the signal for a parent's death once for each of its threads, and a process sees them only
    between two operations, of which one may take seconds.
    """

    def __enter__(self) -> StopRequest:
        self.signal: int | None = None
        self._requested = 0.0
        # None stands for a handler that was not set by Python, which Python could not set again.
        found = {number: signal.getsignal(number) for number in SIGNALS}
        self._previous = {number: old for number, old in found.items() if old not in (signal.SIG_IGN, None)}
        for number in self._previous:
            signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: object) -> None:
        if self.signal is None:
            self.signal, self._requested = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() > self._requested + SAME:
            signal.signal(number, self._previous[number])
            signal.raise_signal(number)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def asked(self, also: bool = False) -> int:
        """What this process asks for, as a number. The largest number of all processes is what they agree on.

        Args:
            also: whether this process asks for something else, on which the processes must agree too.
        """
        return 2 * (self.signal or 0) + also

    def agreed(self, largest: int, also: bool = False) -> tuple[int | None, bool]:
        """What the processes agree on at the end of a step.

        Args:
            largest: the largest of what the processes asked for when they exchanged it, within the step or after its
                validation. A signal that came later counts in the next step. A process that is alone needs no exchange,
                and sees it at once.
            also: see `asked`.

        Returns:
            The signal that any process has received, or None; and whether any process asked for something else, where
            there is no signal.
        """
        if world()[1] == 1:
            largest = self.asked(also)
        return largest // 2 or None, largest == 1


def leave(number: int, text: str) -> NoReturn:
    """Say that a signal stopped this training, as the last line, and end the process.

    Args:
        text: what the same command does next.

    Raises:
        SystemExit: always, with 128 and the signal's number.
    """
    if number == signal.SIGINT:
        wait_for_launcher()
    say(f"stopped by {signal.Signals(number).name}; {text}")
    raise SystemExit(128 + number)
