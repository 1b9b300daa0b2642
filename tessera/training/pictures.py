"""Pictures that show how far a training has come, drawn at its validations: results/STAGE/images/step-000000200.png.

They are no stage's output: Git and DVC ignore them, and no result depends on them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tessera.artifacts.files import write_text
from tessera.console import say
from tessera.images.grids import save_grid

if TYPE_CHECKING:
    from tessera.training.task import Task

# What draws a stage's pictures. It is named, not imported: code that draws pictures is no part of a stage's code, so an
# edit of it trains nothing again.
PAINTERS = {
    "train_vqvae": "stage1_vqvae.pictures:Reconstructions",
    "refine_decoder": "stage1_vqvae.pictures:Reconstructions",
    "train_prior": "sampling.previews:Samples",
}


class Pictures:
    """Draws the pictures of one training.

    A picture is left out where all pictures together would take more than a given share of the training's time. The
    first one is always drawn.

    Args:
        stage: the stage's name; one that is not in `PAINTERS` has no pictures.
        folder: where the pictures are written.
        share: the largest share of the time that pictures may take; 0 for none.
    """

    def __init__(self, stage: str, folder: Path, share: float) -> None:
        self.folder, self.share = folder, share
        self.wanted = stage in PAINTERS and share > 0
        self.stage, self.paint = stage, None
        self.began, self.spent, self.last = time.monotonic(), 0.0, 0.0

    def begin(self, run: str, step: int) -> None:
        """Delete pictures of other trainings, and of steps that this training has not taken.

        Args:
            run: the training's fingerprint, which is kept beside its pictures.
            step: how many steps it has taken.
        """
        mark = self.folder / "run"
        same = mark.is_file() and mark.read_bytes() == run.encode()
        for path in self.folder.glob("step-*.png"):
            number = path.stem.removeprefix("step-")
            if not same or not number.isdecimal() or int(number) > step:
                path.unlink(missing_ok=True)
        if self.wanted:
            write_text(mark, run)

    def draw(self, task: Task, step: int) -> None:
        """Draw a picture of the model as it is now, in evaluation mode.

        An error ends the pictures, not the training. A line says so.
        """
        began = time.monotonic()
        afterwards = began - self.began + self.last  # if this picture takes as long as the last one
        if not self.wanted or (self.paint and self.spent + self.last > self.share * afterwards):
            return
        try:
            # The training's random numbers stay as they are.
            device = next(task.model.parameters()).device
            with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
                self.paint = self.paint or self._painter(task)
                save_grid(self.paint(), self.folder / f"step-{step:09d}.png")
        except Exception as error:
            self.wanted = False
            say(f"note: no more pictures of this training ({type(error).__name__}: {' '.join(str(error).split())})")
        self.last = time.monotonic() - began
        self.spent += self.last

    def _painter(self, task: Task) -> Callable[[], torch.Tensor]:
        module, name = PAINTERS[self.stage].split(":")
        return getattr(import_module(module), name)(task)
