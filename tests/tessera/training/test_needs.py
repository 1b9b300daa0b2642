"""How much memory a training needs, against sums by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tessera.errors import UserError
from tessera.footprint import kept_for_backward
from tessera.training import needs as needs_module
from tessera.training.needs import needs, require_room
from tessera.training.task import Task


class Toy(Task):
    """Two layers on 4 numbers an image; the loss keeps the input of each layer and the ReLU's result."""

    section, criterion = "toy", "loss"

    def __init__(self) -> None:
        self.model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))

    def batch(self, step: int, rows: slice) -> dict[str, torch.Tensor]:
        return {"input": torch.ones(16, 4)[rows].clone()}

    def loss(self, name: str, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(batch["input"]).sum()


def test_what_the_forward_pass_keeps_is_counted_once_and_without_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    images = torch.ones(3, 4)
    # The first layer keeps its input. The ReLU's result is kept by the ReLU and by the second layer.
    assert kept_for_backward(model, lambda: model(images).sum()) == 4 * (3 * 4 + 3 * 8)


def test_weights_moments_best_weights_average_and_gradients_are_counted() -> None:
    task, weights = Toy(), 4 * (4 * 8 + 8 + 8 + 1)
    params = SimpleNamespace(batch_size=8, steps=1, precision="fp32", weight_ema_decay=0.99)
    found = needs(task, params)
    assert found.image == 4 * (4 + 8)
    assert found.fixed == 6 * weights  # itself, the best, the average, two moments, the gradient
    assert found.state == 5 * weights
    assert found.memory(8) == 6 * weights + 8 * 48


def test_measuring_changes_neither_the_model_nor_the_random_numbers() -> None:
    task, params = Toy(), SimpleNamespace(batch_size=8, steps=1, precision="fp32", weight_ema_decay=0.0)
    task.model.append(nn.Dropout(0.5)).append(nn.BatchNorm1d(1)).eval()
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    needs(task, params)
    assert torch.equal(torch.rand(3), expected) and not task.model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.model.state_dict().items())
    assert all(parameter.grad is None for parameter in task.model.parameters())


def test_a_training_that_does_not_fit_is_refused_with_the_parameter_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = SimpleNamespace(batch_size=8, steps=1, precision="fp32", weight_ema_decay=0.0, compile=False)
    runtime, task = SimpleNamespace(keep_states=2), Toy()
    said = require_room(task, params, runtime, 8, tmp_path)
    assert said.startswith("expects about 0 MB of memory")
    with monkeypatch.context() as patch:
        patch.setattr(needs_module, "free_bytes", lambda device: 1000)
        with pytest.raises(
            UserError,
            match=r"toy\.batch_size: 8: a step takes about 0 MB of memory .* set runtime\.micro_batch below 8",
        ):
            require_room(task, params, runtime, 8, tmp_path)
    monkeypatch.setattr(needs_module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    state = needs(task, params).state
    assert 500 < state < 1000
    with pytest.raises(UserError, match=r"; make room$"):  # two states are the least
        require_room(task, params, runtime, 8, tmp_path)
    with pytest.raises(UserError, match=r"lower runtime\.keep_states"):
        require_room(task, params, SimpleNamespace(keep_states=3), 8, tmp_path)


def test_a_training_that_goes_on_needs_disk_only_for_what_it_does_not_hold_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = SimpleNamespace(batch_size=8, steps=1, precision="fp32", weight_ema_decay=0.0, compile=False)
    runtime, task = SimpleNamespace(keep_states=2), Toy()
    state = needs(task, params).state
    monkeypatch.setattr(needs_module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=state))
    with pytest.raises(UserError, match="0 MB more than now"):
        require_room(task, params, runtime, 8, tmp_path)
    for step in range(3):  # more of them than are kept: a new one still needs its own room
        (tmp_path / f"step-{step}").mkdir()
        (tmp_path / f"step-{step}" / "state.safetensors").write_bytes(bytes(state))
        if step:
            require_room(task, params, runtime, 8, tmp_path)
    monkeypatch.setattr(needs_module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=state - 1))
    with pytest.raises(UserError, match=r"; make room$"):
        require_room(task, params, runtime, 8, tmp_path)


def test_the_disk_of_a_folder_that_another_machine_makes_is_that_of_the_nearest_one(tmp_path: Path) -> None:
    params = SimpleNamespace(batch_size=8, steps=1, precision="fp32", weight_ema_decay=0.0, compile=False)
    folder = tmp_path / ".state" / "train_prior" / "abc"
    require_room(Toy(), params, SimpleNamespace(keep_states=2), 8, folder)
    assert not folder.parent.exists()
