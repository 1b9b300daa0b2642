"""Pictures of a training at its validations."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from torch import nn

from tessera.training import pictures
from tessera.training.pictures import Pictures
from tessera.training.task import Task

FOLDER = Path("results/test/images")


class Toy(Task):
    section, criterion = "toy.training", "error"

    def __init__(self, params: object) -> None:
        torch.manual_seed(0)
        self.model, self.params = nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.5)), params

    def batch(self, step: int, rows: slice) -> dict[str, torch.Tensor]:
        return {"input": torch.ones(8, 3)[rows]}

    def loss(self, name: str, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(batch["input"]).square().mean()

    def validate(self) -> dict[str, float]:
        return {"error": self.model[0].weight.abs().sum().item()}


class Painter:
    """Paints the training's weight as grey, and draws random numbers while it does."""

    seconds = 0.0

    def __init__(self, task: Task) -> None:
        self.task = task

    def __call__(self) -> torch.Tensor:
        assert not self.task.model.training and not torch.is_grad_enabled()
        torch.rand(1000)
        time.sleep(self.seconds)
        return torch.full((3, 4, 6), 7, dtype=torch.uint8)


@pytest.fixture
def painter(monkeypatch: pytest.MonkeyPatch) -> type[Painter]:
    module = ModuleType("painters")
    module.Painter = type("Painter", (Painter,), {})
    monkeypatch.setitem(sys.modules, "painters", module)
    monkeypatch.setattr(pictures, "PAINTERS", {"test": "painters:Painter"})
    return module.Painter


def steps() -> list[int]:
    return sorted(int(path.stem.removeprefix("step-")) for path in FOLDER.glob("*.png"))


def test_pictures_can_be_seen_while_the_training_runs(painter, training: Callable, trained: Callable) -> None:
    seen = {}

    class Watched(Toy):
        def batch(self, step: int, rows: slice) -> dict[str, torch.Tensor]:
            seen[step] = steps()
            for file in FOLDER.glob("*.png"):
                Image.open(file).verify()
            return super().batch(step, rows)

    trained(Watched(training()), pictures=1.0)
    assert seen[3] == [] and seen[6] == [4] and seen[9] == [4, 8], "batches may be read one step ahead"


def test_a_picture_is_drawn_at_each_validation_and_the_training_is_the_same_without(
    painter, training: Callable, trained: Callable
) -> None:
    with_them = trained(Toy(training()), "with", pictures=1.0)
    assert steps() == [4, 8, 10]
    picture = Image.open(FOLDER / "step-000000004.png")
    assert (picture.size, picture.getpixel((0, 0))) == ((6, 4), (7, 7, 7))
    without = trained(Toy(training()), "without", pictures=0.0)
    assert steps() == [], "an earlier training's pictures are deleted"
    assert torch.equal(with_them.task.model[0].weight, without.task.model[0].weight)
    assert with_them.progress.train == without.progress.train


def test_pictures_that_would_take_more_than_their_share_are_left_out(painter, in_tmp: Path, monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(pictures.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(painter, "__call__", lambda self: now.__setitem__(0, now[0] + 3) or torch.zeros(3, 1, 1).byte())
    drawn, task = Pictures("test", FOLDER, share=0.1), Toy(None)
    task.model.eval()
    for step in range(1, 21):  # a validation every ten seconds, and a picture of three
        now[0] += 10
        drawn.draw(task, step)
    assert steps()[0] == 1, "the first is always drawn"
    # After d pictures, validation s has one if 3 (d + 1) <= 0.1 (10 s + 3 (d + 1)).
    assert steps() == [1, *(math.ceil(2.7 * (d + 1)) for d in range(1, 7))]
    assert len(steps()) * 3 <= 0.1 * now[0]


def test_an_error_ends_the_pictures_and_not_the_training(painter, training, trained, capsys, monkeypatch) -> None:
    def broken(self) -> torch.Tensor:
        raise ValueError("no\npaint")

    monkeypatch.setattr(painter, "__call__", broken)
    assert trained(Toy(training()), pictures=1.0).progress.finished
    assert capsys.readouterr().err.count("note: no more pictures of this training (ValueError: no paint)\n") == 1


def test_going_on_keeps_the_pictures_so_far(painter, in_tmp: Path) -> None:
    FOLDER.mkdir(parents=True)
    for name in ("step-000000004.png", "step-000000008.png", "step-x.png", "mine.png"):
        (FOLDER / name).touch()
    (FOLDER / "run").write_text("this run")
    drawn = Pictures("test", FOLDER, 0.03)
    drawn.begin("this run", 4)
    assert sorted(path.name for path in FOLDER.glob("*.png")) == ["mine.png", "step-000000004.png"]
    (FOLDER / "run").write_bytes(b"\xff")  # damaged: nobody knows whose pictures these are
    drawn.begin("this run", 4)
    assert sorted(path.name for path in FOLDER.glob("*.png")) == ["mine.png"]


def test_a_run_that_was_finished_before_does_not_stand_beside_anothers_pictures(painter, training, trained) -> None:
    trained(Toy(training()), "first", pictures=1.0)
    trained(Toy(training(learning_rate=0.1)), "second", pictures=1.0)
    trained(Toy(training()), "first", pictures=1.0)  # finished: it is only published again
    assert steps() == []
