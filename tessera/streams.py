"""Standard output and standard error that may lose their reader: a lost terminal, or `| head`. No torch here."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

GONE = (errno.EPIPE, errno.EIO, errno.ENXIO)  # of a pipe that nobody reads any more, or of a terminal that is gone


class _Lasting:
    """A stream that goes to /dev/null once nobody reads it, and escapes what its encoding does not have.

    What a run prints is never a reason to end the run.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """See `io.TextIOBase.write`."""
        try:
            try:
                return self._stream.write(text)
            except UnicodeEncodeError as error:  # a terminal that has no sign for a character of a name
                return self._stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        except OSError as error:
            self._let_go(error)
            return len(text)

    def flush(self) -> None:
        """See `io.IOBase.flush`."""
        try:
            self._stream.flush()
        except OSError as error:
            self._let_go(error)

    def end(self) -> None:
        """Write what is left. A failure is said and no more, because the run itself has ended before it."""
        try:
            self.flush()
        except OSError as error:  # such as a full disk
            self._lead_nowhere()  # or Python would try again when it ends, and change the exit status
            with suppress(OSError):
                print(f"warning: the last lines cannot be written ({error.strerror})", file=sys.stderr)

    def _let_go(self, error: OSError) -> None:
        """Go on without a reader that is gone. Raises any other error."""
        if error.errno not in GONE:
            raise error
        self._lead_nowhere()

    def _lead_nowhere(self) -> None:
        """Lead the stream to /dev/null, for child processes too."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextmanager
def lasting() -> Iterator[None]:
    """Within a `with` block, printing goes on without an error when nobody reads it any more.

    So it does where a stream is closed from the beginning, as some daemons start their programs.
    """
    _open_standard_descriptors()
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        wrapped = [_Lasting(stream or nowhere) for stream in before]
        sys.stdout, sys.stderr = wrapped
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before
            for stream in wrapped:
                stream.end()


def _open_standard_descriptors() -> None:
    """Lead descriptors 0 to 2 that are closed to /dev/null.

    The next files that are opened would have these numbers, and would get what libraries and child processes print.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
