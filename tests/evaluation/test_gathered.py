"""What is kept of feature vectors, and that processes keep together what one keeps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from evaluation import gathered
from evaluation.gathered import Gathered, Nearest
from tessera import distributed

CPU = torch.device("cpu")
VECTORS = torch.randn(103, 4, generator=torch.Generator().manual_seed(0))
LOGITS = VECTORS @ torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


def on_processes(monkeypatch: pytest.MonkeyPatch, size: int, work: Callable[[], object]) -> object:
    """What the first of some processes makes of work that they share, each run after the other.

    Tensors are summed over processes in the order in which each process sums them.
    """
    tables: list[list[torch.Tensor]] = []
    for rank in range(size):
        mine: list[torch.Tensor] = []
        tables.append(mine)
        for module in (distributed, gathered):
            monkeypatch.setattr(module, "world", lambda rank=rank: (rank, size))
        for module in (gathered, distributed):
            monkeypatch.setattr(
                module, "sum_over_processes", lambda tensor, mine=mine: mine.append(tensor.clone()) or tensor
            )
        monkeypatch.setattr("evaluation.distances.sum_over_processes", gathered.sum_over_processes)
        work()
    sums = iter([torch.stack(parts).sum(0) for parts in zip(*tables, strict=True)])
    for module in (distributed, gathered):
        monkeypatch.setattr(module, "world", lambda: (0, size))
    for name in ("evaluation.gathered", "evaluation.distances"):
        monkeypatch.setattr(f"{name}.sum_over_processes", lambda tensor: tensor.copy_(next(sums)))
    return work()


def gather() -> Gathered:
    found = Gathered(len(VECTORS), 4, CPU)
    for part in distributed.share(len(VECTORS), 10):
        found.add(np.arange(part.start, part.stop), VECTORS[part], LOGITS[part])
    found.merge(6)
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 20])
def test_processes_gather_what_one_does(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(gathered, "KEPT", 30)
    one = gather()
    found = on_processes(monkeypatch, size, gather)
    assert torch.equal(found.vectors, one.vectors) and torch.equal(found.vectors, VECTORS[found.rows])
    assert len(found.rows) == 30
    assert found.moments.mean.numpy() == pytest.approx(VECTORS.double().mean(0).numpy(), abs=1e-12)
    assert found.moments.covariance.numpy() == pytest.approx(np.cov(VECTORS.double().numpy().T), abs=1e-12)
    assert found.inception_score() == pytest.approx(one.inception_score(), rel=1e-12)


def test_the_inception_score_does_not_depend_on_the_order_of_classes() -> None:
    """A classifier that is sure of ten equally frequent classes scores ten, also where images are sorted by class."""
    logits = 50 * torch.eye(10).repeat_interleave(100, 0)
    found = Gathered(1000, 2, CPU)
    for part in distributed.share(1000, 64):
        found.add(np.arange(part.start, part.stop), torch.zeros(part.stop - part.start, 2), logits[part])
    found.merge(10)
    assert found.scores[2].tolist() == [100.0] * 10
    score, deviation = found.inception_score()
    assert score == pytest.approx(10, rel=0.1) and deviation < 0.5  # parts of 100 images: some classes a little rarer


def nearest() -> Nearest:
    found = Nearest(VECTORS[:7])
    for part in distributed.share(90, 10):
        rows = np.arange(10 + part.start, 10 + part.stop)
        found.add(rows, VECTORS[rows])
    found.merge()
    return found


@pytest.mark.parametrize("size", [1, 2, 4, 20])
def test_processes_find_the_nearest_image(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    found = on_processes(monkeypatch, size, nearest)
    distances = (VECTORS[:7, None].double() - VECTORS[None, 10:100].double()).norm(dim=-1)
    assert found.distances.tolist() == pytest.approx(distances.min(1).values.tolist())
    assert found.rows.tolist() == (distances.argmin(1) + 10).tolist()


def test_of_equally_near_images_the_first_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> Nearest:
        found = Nearest(torch.zeros(1, 2))
        for part in distributed.share(6, 2):
            found.add(np.arange(part.start, part.stop), torch.ones(2, 2))
        found.merge()
        return found

    assert work().rows.tolist() == on_processes(monkeypatch, 3, work).rows.tolist() == [0]
