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
COLUMNS = 80  # of a terminal that does not say how wide it is

ON_TERMINAL = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
AS_LINES = "{desc}: {n:.0f}/{total} {unit}s, {elapsed} taken, {remaining} left{postfix}"


_spoke = time.monotonic()  # when a line was last printed, or this module was loaded


def speaks() -> bool:
    """Whether this process prints for the whole run: the process of rank 0, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str) -> None:
    """Print a line above all progress bars, if this is the first process."""
    global _spoke
    if speaks():
        _spoke = time.monotonic()
        write = tqdm.write if sys.stderr.isatty() else print
        write(line, file=sys.stderr)


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else tqdm.format_interval(seconds)


class Bar(tqdm):
    """A progress bar. Where standard error is no terminal, it prints a line `PACE` seconds after the last line instead.

    The time left is estimated from the mean time of all work done so far, validations and other pauses included.
    """

    def __init__(self, total: float, desc: str, unit: str, initial: int = 0) -> None:
        """See `tqdm`. `unit` is one thing that is counted, such as "step"."""
        self.terminal = sys.stderr.isatty()
        often = {} if self.terminal else {"mininterval": 0.0}  # each update may print a line; `display` keeps the pace
        width = {"dynamic_ncols": bool(_columns()), "ncols": None if _columns() else COLUMNS} if self.terminal else {}
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
            file=sys.stderr,
            smoothing=0,
            **often,
            **width,
        )

    def forget_time(self) -> None:
        """Tell the time that is left from what comes now. What was so far, as a compilation, does not come again."""
        self.initial, self.start_t = self.n, self._time()

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if self.terminal:
            return super().display(msg, pos)
        # An update, or new figures beside the bar, would draw it several times a second.
        if self.n < self.total and time.monotonic() - _spoke >= PACE:
            say(str(self))
        return False


def _columns() -> int:
    """How wide the terminal is; 0 where it does not say."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        return 0


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
