"""Runs of a training in TensorBoard, trackio and Weights & Biases, by Accelerate's classes. They write files alone.

Nothing is sent over a network. A user sends a run elsewhere by the tracker's own command.

A process that trains begins its run anew: it deletes what the run holds, and then logs every row of the curves, those
from before an interruption too. So a run holds no row twice, and no row of a step that the training does not go on
from. This is the same for all trackers, of which only TensorBoard could cut a run off at a step.

`tessera.training.tracked` imports this module by name, so it is no part of a stage's code: an edit of it trains nothing
again.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker
from PIL import Image

from tessera.locks import acquire

Scalar = bool | int | float | str
PICTURE = "pictures"  # the name of a training's pictures in every tracker


class Run:
    """The run of one training in one tracker.

    A run is named by the stage and by the first letters of the training's fingerprint. So the process that goes on with
    a training finds its run again.

    Attributes:
        tracker: Accelerate's tracker. It has been started.
    """

    tracker: GeneralTracker

    def log(self, values: dict[str, float], step: int) -> None:
        """Log figures of a step."""
        self.tracker.log(values, step=step)

    def show(self, picture: Path, step: int) -> None:
        """Log a picture of a step, from a PNG file."""
        raise NotImplementedError

    def finish(self) -> None:
        """Wait until everything is written, and end the run."""
        self.tracker.finish()


class TensorBoard(Run):
    """Events in FOLDER/STAGE/NAME."""

    def __init__(self, folder: Path, stage: str, name: str, parameters: dict[str, Scalar]) -> None:
        from torch.utils.tensorboard.summary import hparams

        for events in (folder / stage / name).glob("events.out.tfevents.*"):
            events.unlink()
        # purge_step: a TensorBoard that is open forgets what it has read.
        self.tracker = TensorBoardTracker(name, folder / stage, purge_step=0)
        self.tracker.start()
        # Accelerate's own way puts the parameters into a further run, whose name is the time.
        _, start, _ = hparams(parameters, {})
        self.tracker.tracker.file_writer.add_summary(start)

    def log(self, values: dict[str, float], step: int) -> None:
        # By default a figure is rounded to float32.
        self.tracker.log(values, step=step, new_style=True, double_precision=True)

    def show(self, picture: Path, step: int) -> None:
        with Image.open(picture) as image:
            pixels = np.asarray(image.convert("RGB"))
        self.tracker.log_images({PICTURE: pixels[None]}, step=step, dataformats="NHWC")


class Trackio(Run):
    """Rows in the database of the project tessera-STAGE in FOLDER, or in TRACKIO_DIR."""

    def __init__(self, folder: Path, stage: str, name: str, parameters: dict[str, Scalar]) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(folder.resolve()))
        # On a network's file system trackio would append to files, from which no run can be deleted.
        os.environ.setdefault("TRACKIO_STORAGE_MODE", "sqlite")
        for remote in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
            os.environ.pop(remote, None)
        import trackio

        project = f"tessera-{stage}"
        # Experiments may share the database. Two trainings of one fingerprint would write the same run.
        lock = Path(os.environ["TRACKIO_DIR"]) / f"{project}-{name}.lock"
        self.lock = acquire(lock, f"sends this training to trackio ({lock.parent})")
        try:
            with hub_is_offline(), redirect_stdout(io.StringIO()):
                delete_from_trackio(project, name)
                machine = {"auto_log_cpu": False, "auto_log_gpu": False}
                self.tracker = TrackioTracker(project, name=name, embed=False, **machine)
                self.tracker.start()
                self.tracker.tracker.config.update(parameters)  # Accelerate adds a parameter allow_val_change
        except BaseException:
            self.lock.close()
            raise
        self.image = trackio.Image

    def show(self, picture: Path, step: int) -> None:
        self.tracker.log({PICTURE: self.image(picture)}, step=step)

    def finish(self) -> None:
        import trackio

        with redirect_stdout(io.StringIO()):
            trackio.finish()  # Accelerate's way leaves the run to be finished once more when the process ends
        self.lock.close()


def delete_from_trackio(project: str, name: str) -> None:
    """Delete a run with its pictures, if there is one.

    Raises:
        OSError: trackio could not delete it.
    """
    import trackio

    try:
        runs = list(trackio.Api().runs(project))
    except ValueError:  # there is no such project yet
        return
    for run in runs:
        if run.name == name and not run.delete():
            raise OSError(f"the run {name} of the project {project} could not be deleted, and would have rows twice")
    shutil.rmtree(trackio.utils.project_media_dir(project) / name, ignore_errors=True)


@contextmanager
def hub_is_offline() -> Iterator[None]:
    """Have huggingface_hub refuse requests. A trackio that begins a run would ask the Hub for the user's name."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


class Wandb(Run):
    """An offline run in FOLDER/wandb, of the project tessera-STAGE."""

    def __init__(self, folder: Path, stage: str, name: str, parameters: dict[str, Scalar]) -> None:
        os.environ["WANDB_ERROR_REPORTING"] = "false"
        import wandb

        for run in (folder / "wandb").glob(f"offline-run-*-{name}"):
            shutil.rmtree(run)
        folder.mkdir(parents=True, exist_ok=True)  # or W&B writes to the system's temporary folder
        settings = wandb.Settings(
            silent=True, console="off", x_disable_stats=True, disable_git=True, disable_code=True, save_code=False
        )
        self.tracker = WandBTracker(
            f"tessera-{stage}", dir=str(folder), id=name, name=name, mode="offline", settings=settings
        )
        self.tracker.start()
        self.tracker.store_init_configuration(parameters)

    def show(self, picture: Path, step: int) -> None:
        self.tracker.log_images({PICTURE: [str(picture)]}, step=step)


RUNS: dict[str, type[Run]] = {"tensorboard": TensorBoard, "trackio": Trackio, "wandb": Wandb}
