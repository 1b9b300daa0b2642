"""What a person sees on standard error while a stage works: progress bars, lines, and the name of what takes long."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

LONG = 2.0  # seconds; what takes longer says what it is
PACE = 30.0  # seconds between two lines where standard error is no terminal
COLUMNS, ROWS = 80, 24  # of a terminal that does not say how large it is

ON_TERMINAL = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
AS_LINES = "{desc}: {n:.0f}/{total} {unit}s, {elapsed} taken, {remaining} left{postfix}"


_spoke = time.monotonic()  # when a line was last printed, or this module was loaded
_start: _Clock | None = None  # the one that `starting` shows


def speaks() -> bool:
    """Whether this process prints for the whole run: the process of rank 0, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str) -> None:
    """Print a line above all progress bars, if this is the first process."""
    global _spoke
    if speaks():
        _spoke = time.monotonic()
        _started()
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
        _started()
        self.terminal = sys.stderr.isatty()
        often = {} if self.terminal else {"mininterval": 0.0}  # each update may print a line; `display` keeps the pace
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
            **(_width() if self.terminal else {}),
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


def _width() -> dict[str, Any]:
    """tqdm's arguments for a line as wide as the terminal. tqdm shows nothing on one that says it has no rows."""
    columns = _columns()
    return {"dynamic_ncols": True} if columns else {"ncols": COLUMNS, "nrows": ROWS}


class _ClockLine(tqdm):
    """A line that leaves the cursor at its beginning, so that a longer line that others print takes its place."""

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        """See `tqdm.status_printer`."""
        write = tqdm.status_printer(file)

        def draw(text: str) -> None:
            write(text)
            file.write("\r")
            file.flush()

        return draw


class _Clock(threading.Thread):
    """Says what is being done and for how long, from `LONG` seconds after its beginning until `end`.

    On a terminal it is a line that is replaced each second, and elsewhere a line each `PACE` seconds.
    """

    def __init__(self, what: str) -> None:
        super().__init__(daemon=True)
        self._what, self._began, self._done = what, time.monotonic(), threading.Event()
        self.start()

    def end(self) -> float:
        """Take the clock away, and return the seconds since its beginning."""
        self._done.set()
        self.join()
        return time.monotonic() - self._began

    def run(self) -> None:
        if self._done.wait(LONG):
            return
        if not sys.stderr.isatty():
            say(f"{self._what} ...")
            while not self._done.wait(PACE):
                say(f"{self._what} ... {_duration(time.monotonic() - self._began)}")
            return
        if _start is not self:
            _started()
        form = "{desc} ... {elapsed}"
        clock: Any = _ClockLine(desc=self._what, bar_format=form, leave=False, file=sys.stderr, delay=LONG, **_width())
        clock.start_t -= time.monotonic() - self._began
        with clock:
            clock.refresh()
            while not self._done.wait(1.0):
                clock.refresh()


@contextmanager
def waiting(what: str, report: bool = True) -> Iterator[None]:
    """Say what is being done if the block takes longer than `LONG` seconds, and how long it has been going on.

    Args:
        what: a noun, such as "compilation".
        report: whether a line says at the end how long it took, if that was longer than `LONG`.
    """
    if not speaks():
        yield
        return
    clock = _Clock(what)
    try:
        yield
    finally:
        seconds = clock.end()
    if report and seconds > LONG:
        say(f"{what}: {_duration(seconds)}")


@contextmanager
def starting() -> Iterator[None]:
    """On a terminal, show a clock until the block's first line, bar or other clock, if that takes longer than `LONG`.

    Libraries alone may take many seconds to load from a slow disk.
    """
    global _start
    if not (speaks() and sys.stderr.isatty()):
        yield
        return
    _start = _Clock("start")
    try:
        yield
    finally:
        _start.end()


def _started() -> None:
    """Take away the clock of `starting`, if it stands."""
    if _start:
        _start.end()
