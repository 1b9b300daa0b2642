"""Exchanges the names of two folders in one step, which Python's own library cannot do."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

CURRENT_FOLDER = -100  # AT_FDCWD: relative paths start in the current folder
EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2) on Linux, RENAME_SWAP of renamex_np(2) on macOS
# The kernel, or the file system, does not know how.
UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


def exchange(first: Path, second: Path) -> bool:
    """Give each of two folders the other's name. No other process ever finds one of the names missing.

    Returns:
        False if this system cannot do it; nothing has changed then.

    Raises:
        OSError: either does not exist, or may not be renamed.
    """
    library, names = ctypes.CDLL(None, use_errno=True), (os.fsencode(first), os.fsencode(second))
    if sys.platform.startswith("linux") and hasattr(library, "renameat2"):
        failed = library.renameat2(CURRENT_FOLDER, names[0], CURRENT_FOLDER, names[1], EXCHANGE)
    elif sys.platform == "darwin" and hasattr(library, "renamex_np"):
        failed = library.renamex_np(*names, EXCHANGE)
    else:
        return False
    if not failed:
        return True
    number = ctypes.get_errno()
    if number in UNKNOWN:
        return False
    raise OSError(number, os.strerror(number), str(first), None, str(second))
