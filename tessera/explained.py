"""Says what a user can do about errors of libraries and of the system. All others are defects of this project."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from tessera import paths
from tessera.errors import UserError
from tessera.project import PACKAGES

# Errors of the file system that a user can mend: a place that is taken, of another kind, read-only, or failing.
PLACES = tuple(
    getattr(errno, name)
    for name in ("EEXIST", "ENOTDIR", "EISDIR", "EACCES", "EPERM", "EROFS", "ELOOP", "ENAMETOOLONG", "EIO", "EBUSY")
)
TO_WRITE = (errno.EEXIST, errno.EROFS)  # these come of writing alone; others may come of reading too
SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FULL = "Not enough disk space"  # how `datasets` begins a message
BROKEN = re.compile(
    r"torchvision::|module 'torchvision'|\.so\b.*(cannot open|undefined symbol|too short)|Failed to import"
)


def explained(error: BaseException, memory: str = "") -> UserError | None:
    """Turns an error of a library or the file system into advice to the user; None if the user cannot do anything.

    Errors of torch are recognised by the names of their classes, because torch may not be imported yet.

    Args:
        memory: the parameters whose change lets the program that ran take less memory.
    """
    if reason := no_space(error):
        return _about_space(error, reason)
    if isinstance(error, OSError) and error.filename is not None and error.errno in PLACES:
        use = "write there" if error.errno in TO_WRITE else "read it, or to write there"
        return UserError(f"{error.filename}: {error.strerror}; this stage must be able to {use}")
    return _about_memory(error, memory) or _about_torch(error) or _about_imports(error)


def no_space(error: BaseException) -> str | None:
    """The system's reason, if an error or one of its causes says that the disk is full or a file too large."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, OSError) and cause.errno in SPACE:
            return os.strerror(cause.errno)
        # Libraries in Rust and C++ have the system's message in a text of their own.
        named = [os.strerror(number) for number in SPACE if os.strerror(number) in str(cause)]
        if type(cause).__name__ in ("SafetensorError", "OSError", "ArrowInvalid") and (named or FULL in str(cause)):
            return named[0] if named else FULL
        cause = cause.__cause__ or cause.__context__
    return None


def _about_space(error: BaseException, reason: str) -> UserError:
    file = getattr(error, "filename", None)
    if reason == os.strerror(errno.EFBIG):
        return UserError(
            f"{file or Path.cwd()}: {reason}; a limit of this shell (`ulimit -f`) or of the file system ends files at "
            "a size; raise it, and run the same command again: what was published before is unchanged"
        )
    places: dict[int, str] = {}
    own = [place for place in (*paths.WRITTEN, Path(".dvc")) if place.is_dir()]  # each may be on a disk of its own
    named = [Path(file).parent] if isinstance(file, str) else []
    for place in (_temporary_folder(), *own, *named, os.environ.get("DVC_ROOT", "."), "."):
        with suppress(OSError):  # it may be gone
            places[_device(place)] = os.path.abspath(place)
    free = {place: shutil.disk_usage(place).free for place in places.values()}
    full = file or min(reversed(free), key=free.__getitem__)
    each = ", ".join(f"{count / 1e6:.0f} MB at {place}" for place, count in free.items())
    return UserError(
        f"{full}: {reason}; free: {each}; make room, and run the same command again: what was published before is "
        "unchanged"
    )


def _device(place: str | Path) -> int:
    """The number of the disk that a folder is on."""
    return os.stat(place).st_dev


def _temporary_folder() -> str:
    """The folder of temporary files. Python names none where it can write to none, as on a full disk."""
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        return os.environ.get("TMPDIR", "/tmp")


def _about_memory(error: BaseException, lower: str) -> UserError | None:
    names, said = {kind.__name__ for kind in type(error).__mro__}, " ".join(str(error).split())
    if not names & {"OutOfMemoryError", "MemoryError"} and "DefaultCPUAllocator: can't allocate memory" not in said:
        return None
    advice = f"lower {lower}" if lower else "use less at a time, or a machine with more"
    reason = f" ({said.split('. ')[0][:200]})" if said else ""
    return UserError(f"there is not enough memory{reason}; {advice}")


def _about_torch(error: BaseException) -> UserError | None:
    names, said = {kind.__name__ for kind in type(error).__mro__}, str(error)
    if names & {"BackendCompilerFailed", "InductorError"}:
        reason = " ".join(said.split("\n\nSet TORCH")[0].split())[:300]
        cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR", "torch's cache of compiled code")
        return UserError(
            f"torch.compile failed ({reason}); set compile to false in the stage's training section, install a C++ "
            f"compiler if there is none, or delete {cache}: a run that was killed may have left half a file there"
        )
    return None


def _about_imports(error: BaseException) -> UserError | None:
    """A library that is missing, or that does not fit the others. A missing module of this project is a defect."""
    if isinstance(error, ImportError):
        broken = (error.name or "").split(".")[0] not in PACKAGES
    else:
        broken = isinstance(error, RuntimeError | AttributeError | OSError) and bool(BROKEN.search(str(error)))
    if not broken:
        return None
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return UserError(
        f"a library cannot be imported ({reason}); install the libraries again, torch and torchvision from one place; "
        "`python -m tessera doctor` tells which are broken"
    )


def exit_status(error: Exception) -> int:
    """Prints an error that a user can act on as one line on standard error, and returns its exit status.

    Raises:
        Exception: `error` itself, if the user cannot do anything about it.
    """
    known = error if isinstance(error, UserError) else explained(error)
    if known is None:
        raise error
    print(f"error: {known}", file=sys.stderr)
    return known.status
