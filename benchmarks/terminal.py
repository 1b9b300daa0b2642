"""What does a person see of a command? Runs it in a terminal, and tells the longest silence and every line it left.

    python benchmarks/terminal.py [--columns 120] [--text FILE] [--json FILE] -- dvc repro

Everything that changes the screen counts as a sign of life, a bar that moves too. `--text`: the lines that stay on the
screen, each with the second at which it was complete. Needs a Unix system.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import struct
import sys
import termios
import time
from pathlib import Path


def run(command: list[str], columns: int) -> tuple[list[tuple[float, bytes]], int]:
    """Run a command in a terminal; returns what it wrote, each piece with its second, and the exit status."""
    process, terminal = pty.fork()
    if not process:
        os.execvp(command[0], command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    began, pieces = time.monotonic(), []
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # the terminal is closed
            break
        if not piece:
            break
        pieces.append((time.monotonic() - began, piece))
        os.write(sys.stdout.fileno(), piece)
    pieces.append((time.monotonic() - began, b""))
    return pieces, os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def silences(pieces: list[tuple[float, bytes]]) -> list[tuple[float, float, str]]:
    """Every silence, longest first: its seconds, when it began, and what was written before it."""
    found, last, text = [], 0.0, ""
    for second, piece in pieces:
        found.append((round(second - last, 2), round(last, 2), text[-100:]))
        last, text = second, (text + piece.decode("utf-8", "replace"))[-400:]
    return sorted(found, reverse=True)


def lines(pieces: list[tuple[float, bytes]]) -> list[str]:
    """The lines that stay: of what a carriage return overwrites, the last; without a terminal's other codes."""
    import re

    found, current = [], ""
    for second, piece in pieces:
        current += piece.decode("utf-8", "replace")
        *complete, current = current.split("\n")
        for line in complete:
            parts = [part for part in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).split("\r") if part.strip()]
            if parts:
                found.append(f"{second:7.1f}  {parts[-1].rstrip()}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="+")
    parser.add_argument("--columns", type=int, default=120)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    pieces, status = run(options.command, options.columns)
    found = silences(pieces)
    for seconds, begin, text in found[:5]:
        print(f"{seconds} s of silence after {begin} s, after {text!r}")
    if options.text:
        options.text.write_text("\n".join(lines(pieces)) + "\n", encoding="utf-8")
    if options.json:
        options.json.write_text(json.dumps({"seconds": pieces[-1][0], "silences": found[:20]}), encoding="utf-8")
    raise SystemExit(status)


if __name__ == "__main__":
    main()
