"""The project's code as this process began with it, so that an edit meanwhile is noticed. It imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tessera.errors import UserError
from tessera.project import files, loaded, syntax


class Code:
    """The text of all of the project's files at the moment when this object is made."""

    def __init__(self) -> None:
        self.texts = {file: file.read_bytes() for file in files()}

    def changed(self) -> list[Path]:
        """The files that this process has imported and that do something else now. A comment does not count."""
        imported = loaded()
        now = {file: file.read_bytes() for file in imported if file.is_file()}
        edited = [file for file in imported if now.get(file) != self.texts.get(file)]
        return [file for file in edited if not (file in now and file in self.texts and self._alike(file, now[file]))]

    def _alike(self, file: Path, text: bytes) -> bool:
        try:
            return syntax(text) == syntax(self.texts[file])
        except (SyntaxError, ValueError):
            return False


_running: list[Code] = []


@contextmanager
def running() -> Iterator[Code]:
    """A run, which begins with the code as it is now."""
    code = Code()
    _running.append(code)
    try:
        yield code
    finally:
        _running.remove(code)


def require_unedited() -> None:
    """Refuse to give a result the name of code that this process may not have run.

    Whoever names a result by a hash of the code reads the files again, and calls this afterwards.

    Raises:
        UserError: a file was edited after a run of this process began.
    """
    changed = [file for code in _running for file in code.changed()]
    if changed:
        raise UserError(f"{changed[0]}: edited while this run was starting, which has made nothing yet; run it again")
