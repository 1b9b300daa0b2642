"""What a person sees on standard error while a stage works: progress bars, lines, and the name of what takes long."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

LONG = 2.0  # seconds; what takes longer says what it is
PACE = 30.0  # seconds between two lines where standard error is no terminal

ON_TERMINAL = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
AS_LINES = "{desc}: {n:.0f}/{total} {unit}s, {elapsed} taken, {remaining} left{postfix}"


def speaks() -> bool:
    """Whether this process is the one of a run that a person hears: the first process of all."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str) -> None:
    """Print a line above all progress bars, if this is the first process."""
    if speaks():
        write = tqdm.write if sys.stderr.isatty() else print
        write(line, file=sys.stderr)


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else tqdm.format_interval(seconds)


class Bar(tqdm):
    """A progress bar. Where standard error is no terminal, it prints a line every `PACE` seconds instead."""

    def __init__(self, total: float, desc: str, unit: str, initial: int = 0) -> None:
        """See `tqdm`. `unit` is one thing that is counted, such as "step"."""
        self.terminal, self.printed = sys.stderr.isatty(), time.monotonic()
        pace = {} if self.terminal else {"mininterval": PACE, "delay": PACE}
        form = ON_TERMINAL if self.terminal else AS_LINES
        super().__init__(
            total=total,
            desc=desc,
            unit=unit,
            initial=initial,
            disable=not speaks(),
            leave=False,
            miniters=1,
            bar_format=form,
            dynamic_ncols=True,
            file=sys.stderr,
            **pace,
        )

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if self.terminal:
            return super().display(msg, pos)
        # Setting the figures beside a bar draws it anew, so the pace is kept here too.
        if self.n < self.total and time.monotonic() - self.printed >= PACE:
            print(self, file=sys.stderr, flush=True)
            self.printed = time.monotonic()
        return False


@contextmanager
def waiting(what: str, report: bool = True) -> Iterator[None]:
    """Say what is being done if the block takes longer than `LONG` seconds, and how long it has been going on.

    Args:
        what: a noun, such as "compilation".
        report: whether a line says at the end how long it took, if that was longer than `LONG`.
    """
    began, done = time.monotonic(), threading.Event()
    if not speaks():
        yield
        return
    thread = threading.Thread(target=_watch, args=(what, began, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    seconds = time.monotonic() - began
    if report and seconds > LONG:
        say(f"{what}: {_duration(seconds)}")


def _watch(what: str, began: float, done: threading.Event) -> None:
    """Show `what` with a clock until `done` is set: on a terminal as a line that is replaced each second."""
    if done.wait(LONG):
        return
    if not sys.stderr.isatty():
        say(f"{what} ...")
        while not done.wait(PACE):
            say(f"{what} ... {_duration(time.monotonic() - began)}")
        return
    clock: Any = tqdm(desc=what, bar_format="{desc} ... {elapsed}", leave=False, file=sys.stderr)
    clock.start_t -= time.monotonic() - began
    with clock:
        while not done.wait(1.0):
            clock.refresh()
