"""Check params.yaml: `python -m common.params [FILE]`. `make repro` runs this before DVC deletes anything."""

import sys
from pathlib import Path

from common import paths
from common.errors import UserError
from common.params import load

if __name__ == "__main__":
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else paths.PARAMS
    try:
        load(file)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"{file}: every parameter is valid")
