"""Answers the page's requests: one at a time, and mistakes as one line."""

from __future__ import annotations

import html
import threading
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import gradio as gr
import numpy as np
import torch

from tessera.errors import UserError
from tessera.explained import explained
from tessera.images.grids import enlarged, save_grid

SHOWN = 320  # pixels; smaller pictures are enlarged by a whole number, so that pixels stay square and sharp
SECONDS = 30  # for which a message stays
MEMORY = "the number of images"  # by which a request takes less memory


class Answers:
    """Runs one request at a time.

    A model on one device is no faster with several requests, and each takes memory. The others wait in the queue.

    Args:
        folder: where files to download are written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._one = folder, threading.Lock()

    def of(self, action: Callable[..., Any]) -> Callable[..., Any]:
        """The action, whose mistakes of the user the page shows as one line. A defect keeps its traceback."""

        @wraps(action)
        def answer(*arguments: Any, **named: Any) -> Any:
            try:
                with self._one:
                    return action(*arguments, **named)
            except Exception as error:
                known = error if isinstance(error, UserError) else explained(error, MEMORY)
                if known is None:
                    raise
                # The page would show the message as HTML, and it may hold a file's name.
                raise gr.Error(html.escape(str(known)), duration=SECONDS, print_exception=False) from error

        return answer

    def file(self, picture: np.ndarray, name: str) -> str:
        """Writes a picture, uint8 (height, width, 3), as a PNG file to download, and returns its path."""
        path = Path(mkdtemp(dir=self.folder)) / f"{name}.png"
        save_grid(torch.from_numpy(picture).permute(2, 0, 1), path)
        return str(path)


def large(pixels: np.ndarray) -> np.ndarray:
    """An image uint8 (C, H, W) as the page shows it: uint8 (h, w, 3), enlarged to about `SHOWN` pixels."""
    factor = max(1, SHOWN // max(pixels.shape[1:]))
    return colours(enlarged(torch.from_numpy(pixels), factor).numpy())


def colours(pixels: np.ndarray) -> np.ndarray:
    """An image uint8 (C, H, W) as uint8 (H, W, 3)."""
    return np.array(np.broadcast_to(pixels, (3, *pixels.shape[1:])).transpose(1, 2, 0), order="C")
