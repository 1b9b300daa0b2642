"""Commands about the whole: `python -m tessera COMMAND`; `python -m tessera --help` lists them."""

from __future__ import annotations

import sys

from tessera.cli import main

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
