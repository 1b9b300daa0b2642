"""Checks where `data.source` and `data.watch` lead, without opening a file of the source. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

from stage0_images.parameters import HUB_ID, DataParams, absolute
from tessera.errors import UserError

STAND_IN = Path("data/embedded.txt")  # what DVC watches where the source is no local folder; it never changes


def local_folder(source: str) -> Path | None:
    """The absolute path of the folder that a source names, or None for digits or a Hub id.

    Raises:
        UserError: the source is none of the three. A name of the form owner/name whose first part is a folder here is
            taken for a misspelt folder.
    """
    if source == "digits":
        return None
    path = absolute(source)
    if source and path.is_dir():
        return path
    if path.is_file():
        raise UserError(f"data.source: {source!r} is a file; give the folder it lies in")
    if HUB_ID.fullmatch(source) and not path.parent.exists():
        return None
    raise UserError(
        f"data.source: {source!r}: no such folder; give an existing folder, a Hub id (owner/name), or digits"
    )


def check_places(params: DataParams) -> Path | None:
    """Checks the source, and the path that DVC watches.

    DVC watches the source itself if it is a local folder, otherwise any existing file.

    Returns:
        See `local_folder`.

    Raises:
        UserError: the source is none, or `data.watch` is another path.
    """
    folder = local_folder(params.source)
    if folder is None:
        if not Path(params.watch).is_file():
            here = Path(params.watch) == STAND_IN
            remedy = f"restore it: `git restore {STAND_IN}`" if here else f"set it to {STAND_IN}"
            raise UserError(
                f"data.watch: {params.watch!r} is not a file, and data.source {params.source!r} is no folder that DVC "
                f"could watch; {remedy}"
            )
    elif os.path.abspath(params.watch) != str(folder):
        wanted = str(folder) if params.source.startswith("~") else params.source
        raise UserError(
            f"data.watch: {params.watch!r} is not the folder of data.source; set it to {wanted!r} too, so that DVC "
            "sees when the images change"
        )
    return folder
