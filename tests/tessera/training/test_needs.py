"""How much memory a training needs, against sums by hand."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from tessera.footprint import kept_for_backward
from tessera.training.needs import needs
from tessera.training.task import Task


class Toy(Task):
    """Two layers on 4 numbers an image; the loss keeps the input of each layer and the ReLU's result."""

    section, criterion = "toy", "loss"

    def __init__(self) -> None:
        self.model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        self.discarded = False

    def batch(self, step: int, rows: slice) -> dict[str, torch.Tensor]:
        return {"input": torch.ones(16, 4)[rows].clone()}

    def loss(self, name: str, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(batch["input"]).sum()

    def discard(self) -> None:
        self.discarded = True


def test_what_the_forward_pass_keeps_is_counted_once_and_without_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    images = torch.ones(3, 4)
    # The first layer keeps its input. The ReLU's result is kept by the ReLU and by the second layer.
    assert kept_for_backward(model, lambda: model(images).sum()) == 4 * (3 * 4 + 3 * 8)


def test_weights_moments_best_weights_average_and_gradients_are_counted() -> None:
    task, weights = Toy(), 4 * (4 * 8 + 8 + 8 + 1)
    params = SimpleNamespace(batch_size=8, precision="fp32", weight_ema_decay=0.99)
    found = needs(task, params)
    assert found.image == 4 * (4 + 8) and task.discarded
    assert found.fixed == 6 * weights  # itself, the best, the average, two moments, the gradient
    assert found.state == 5 * weights
    assert found.memory(8) == 6 * weights + 8 * 48


def test_measuring_changes_neither_the_model_nor_the_random_numbers() -> None:
    task, params = Toy(), SimpleNamespace(batch_size=8, precision="fp32", weight_ema_decay=0.0)
    task.model.append(nn.Dropout(0.5)).eval()
    before = [parameter.clone() for parameter in task.model.parameters()]
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    needs(task, params)
    assert torch.equal(torch.rand(3), expected) and not task.model.training
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, task.model.parameters(), strict=True))
