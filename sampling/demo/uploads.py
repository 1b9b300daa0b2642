"""Reads a picture that a person uploaded, which may be anything, as the model's images were prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stage0_images.parameters import Preparation
from stage0_images.pixels import decoding, read_image
from stage0_images.reading import BadImage
from tessera.errors import UserError

LARGEST = 50_000_000  # pixels of an upload, about those of the largest cameras; decoding takes up to 24 bytes a pixel


def read_upload(path: str | Path | None, preparation: dict[str, Any]) -> np.ndarray:
    """An uploaded picture, cut and scaled to the model's size: uint8 (C, H, W).

    Its size is read from its header, so that no more pixels than `LARGEST` are ever decoded.

    Args:
        path: the uploaded file; None if there is none.
        preparation: how the model's images were prepared, from its own configuration.

    Raises:
        UserError: there is no file, it is no image, or it is too large. The message does not name the file's folder.
    """
    if path is None:
        raise UserError("no picture was chosen: upload one first")
    if not preparation:
        raise UserError("models/vqvae does not say how its images were prepared; make it anew with `dvc repro`")
    wanted = Preparation.of_model(preparation)
    wanted = wanted.model_copy(update={"max_pixels": min(wanted.max_pixels, LARGEST)})
    try:
        with decoding():
            return read_image(Path(path), wanted)
    except BadImage as error:
        reason = str(error).replace("data.max_pixels", "the most that is read")
        raise UserError(f"{Path(path).name}: {reason}; upload another picture, PNG or JPEG for one") from error
