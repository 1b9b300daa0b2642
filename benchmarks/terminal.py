"""What does a person see of a command? Runs it in a terminal, and tells the longest silence and every line it left.

    python benchmarks/terminal.py [--columns 100] [--text FILE] [--json FILE] [--page FILE --title TEXT] -- dvc repro

Everything that changes the screen counts as a sign of life, a bar that moves too. `--text`: the lines that stay on the
screen, each with the second at which it was last changed. `--page`: a page of Markdown, whose section TITLE gets these
lines in place of those that it has. Needs a Unix system.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import re
import struct
import sys
import termios
import time
from codecs import getincrementaldecoder
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


class Screen:
    """The lines of a terminal that is as high as all that was written to it.

    It knows the codes that progress bars use: to the line's beginning, lines up and down, and erasing.

    Attributes:
        rows: the second at which each line was last changed, and its characters.
    """

    def __init__(self, columns: int) -> None:
        self.columns, self.rows, self.row, self.column = columns, [(0.0, "")], 0, 0

    def write(self, second: float, text: str) -> None:
        """Write text, whose codes are whole."""
        for code in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[^\x1b]", text):
            if code == "\r":
                self.column = 0
            elif code == "\n":
                self._move(1)
            elif code == "\t":
                self.column = min(self.columns - 1, self.column - self.column % 8 + 8)
            elif code.startswith("\x1b"):
                self._obey(second, code[-1], code[2:-1])
            elif code.isprintable():
                if self.column == self.columns:
                    self._move(1)
                    self.column = 0
                line = self.rows[self.row][1].ljust(self.column)
                self.rows[self.row] = (second, line[: self.column] + code + line[self.column + 1 :])
                self.column += 1

    def _move(self, lines: int) -> None:
        self.row = max(0, self.row + lines)
        self.rows += [(0.0, "")] * (self.row + 1 - len(self.rows))

    def _obey(self, second: float, code: str, number: str) -> None:
        if code in "AB":
            self._move(int(number or 1) * (1 if code == "B" else -1))
        elif code == "K":
            line = self.rows[self.row][1]
            kept = "" if number == "2" else " " * self.column + line[self.column :] if number == "1" else None
            self.rows[self.row] = (second, line[: self.column] if kept is None else kept)
        elif code == "J":
            self.rows = [*self.rows[: self.row], (second, self.rows[self.row][1][: self.column])]

    def lines(self) -> list[str]:
        """Each line that is not blank, behind its second."""
        return [f"{second:7.1f}  {line.rstrip()}" for second, line in self.rows if line.strip()]


def lines(pieces: list[tuple[float, bytes]], columns: int) -> list[str]:
    """The lines that stay on the screen."""
    screen, decoder, rest = Screen(columns), getincrementaldecoder("utf-8")("replace"), ""
    for second, piece in pieces:
        text = rest + decoder.decode(piece)
        cut = re.search(r"\x1b(\[[0-9;?]*)?$", text)  # the rest of this code comes with the next piece
        rest = text[cut.start() :] if cut else ""
        screen.write(second, text[: cut.start()] if cut else text)
    return screen.lines()


def put_into(page: str, title: str, said: str, block: list[str]) -> str:
    """A page whose section `title` has a sentence and a block of text, in place of what it has.

    A section that is not there is added at the end.
    """
    before, heading, after = page.partition(f"## {title}\n")
    if not heading:
        before, heading, after = page.rstrip("\n") + "\n\n", f"## {title}\n", ""
    _, following, rest = after.partition("\n## ")
    inside = "\n".join(["", said, "", "```text", *block, "```", ""])
    return before + heading + inside + following + rest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="+")
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--title")
    options = parser.parse_args()
    page = options.page.read_text(encoding="utf-8") if options.page else ""
    pieces, status = run(options.command, options.columns)
    found, shown = silences(pieces), lines(pieces, options.columns)
    for seconds, begin, text in found[:5]:
        print(f"{seconds} s of silence after {begin} s, after {text!r}")
    if options.text:
        options.text.write_text("\n".join(shown) + "\n", encoding="utf-8")
    if options.page:
        took, longest = pieces[-1][0], found[0][0]
        said = f"`{' '.join(options.command)}` took {took:.0f} seconds; the longest silence was {longest:.1f} seconds."
        options.page.write_text(put_into(page, options.title, said, shown), encoding="utf-8")
    if options.json:
        options.json.write_text(json.dumps({"seconds": pieces[-1][0], "silences": found[:20]}), encoding="utf-8")
    raise SystemExit(status)


if __name__ == "__main__":
    main()
