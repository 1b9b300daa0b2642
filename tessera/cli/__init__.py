"""Commands about the whole pipeline: `python -m tessera COMMAND`. One file each, with `main(argv) -> exit status`."""

from __future__ import annotations

import difflib
import signal
import sys
from importlib import import_module
from pkgutil import iter_modules

from tessera.console import say
from tessera.explained import exit_status
from tessera.streams import lasting


def commands() -> dict[str, str]:
    """Each command, with the first line of its docstring up to the command line."""
    names = sorted(module.name for module in iter_modules(__path__))
    lines = {name: str(import_module(f"{__name__}.{name}").__doc__).splitlines()[0] for name in names}
    return {name: line.split(": python -m")[0].rstrip(".") for name, line in lines.items()}


def main(argv: list[str]) -> int:
    """Run the command that `argv` names, with the rest of `argv`; a `UserError` becomes one line and its status.

    Ctrl-C gives 130, as in a shell.
    """
    names = commands()
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: python -m tessera COMMAND [...]\n")
        print("\n".join(f"  {name:<12} {line}" for name, line in names.items()))
        return 0 if argv else 2
    name, *rest = argv
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean `{close[0]}`?" if close else ""
        print(f"error: no command `{name}`; there are {', '.join(names)}{hint}", file=sys.stderr)
        return 2
    with lasting():
        try:
            return import_module(f"{__name__}.{name}").main(rest)
        except KeyboardInterrupt:
            say("stopped by SIGINT")
            return 128 + signal.SIGINT
        except Exception as error:
            return exit_status(error)
