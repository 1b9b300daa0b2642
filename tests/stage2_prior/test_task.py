"""The task that a prior brings to the training loop: its batches, labels and passes, and its validation figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_codes import LAYOUT

from stage2_prior.priors.build import build_prior
from stage2_prior.task import PriorTask, nats_by_token
from tessera import paths
from tessera.codes.store import open_codes

pytestmark = pytest.mark.usefixtures("on_the_cpu")
Write = Callable[..., None]


def make_task(classes: int, name: str = "pixelcnn", **training: Any) -> PriorTask:
    from tessera.parameters import load

    codes = open_codes(paths.CODES)
    section = getattr(load(Path("params.yaml")).stage2_prior, name)
    torch.manual_seed(0)
    config = {"name": name, "params": section.arguments(), "layout": LAYOUT.to_json(), "num_classes": classes}
    prior = build_prior(config)
    return PriorTask(prior, codes, section.training.model_copy(update=training))


@pytest.mark.parametrize(
    ("prior", "names"),
    [
        ("pixelcnn", {"tokens", "labels"}),
        ("masked", {"tokens", "labels", "noise"}),
        ("any_order", {"tokens", "labels", "noise", "progress"}),
    ],
)
def test_a_batch_is_the_same_however_it_is_shared(
    write_params: Write, write_codes: Write, prior: str, names: set[str]
) -> None:
    write_codes()
    write_params()
    task = make_task(3, prior)
    for step in (0, 4, 5):
        whole = task.batch(step, slice(0, 8))
        halves = [task.batch(step, rows) for rows in (slice(0, 4), slice(4, 8))]
        assert whole.keys() == names
        for name in names:
            assert torch.equal(torch.cat([half[name] for half in halves]), whole[name])


def test_random_numbers_change_with_the_step_and_progress_is_of_the_schedule(
    write_params: Write, write_codes: Write
) -> None:
    write_codes()
    write_params()
    for training, expected in (
        ({"steps": 8, "schedule_steps": None}, [0, 0.25, 1]),
        ({"steps": 8, "schedule_steps": 4}, [0, 0.5, 1]),  # longer than its schedule
    ):
        task = make_task(3, "any_order", **training)
        batches = [task.batch(step, slice(0, 4)) for step in (0, 2, 8)]
        assert [batch["progress"].unique().tolist() for batch in batches] == [[value] for value in expected]
        assert not torch.equal(batches[0]["noise"], batches[1]["noise"])
        assert len(batches[0]["noise"].unique(dim=0)) == 4
        assert torch.equal(task.batch(2, slice(0, 4))["noise"], batches[1]["noise"])


def test_labels_are_dropped_and_extra_passes_taken_as_often_as_asked(write_params: Write, write_codes: Write) -> None:
    write_codes()
    write_params()
    task = make_task(3, batch_size=2000, label_dropout=0.25, extra_pass_fraction=0.6)
    task.order.batch_size = 2000
    batch, indices = task.batch(0, slice(0, 2000)), task.order.batch(0)
    train_split = task.codes["train"]
    dropped = batch["labels"] == 3
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(batch["labels"][~dropped], train_split.label_tensor(indices)[~dropped])
    of_pass = torch.stack([(train_split.rows(indices, p) == batch["tokens"]).all(1) for p in range(3)])
    assert of_pass.any(0).all()  # each the codes of its own image, in one of its passes
    shares = of_pass.float().mean(1).tolist()
    assert shares == pytest.approx([0.4, 0.3, 0.3], abs=0.04)


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, [True]), (1.0, [False])])
def test_extra_passes_may_be_never_or_always(
    write_params: Write, write_codes: Write, fraction: float, expected: list[bool]
) -> None:
    write_codes()
    write_params()
    task = make_task(3, extra_pass_fraction=fraction)
    plain = task.codes["train"].rows(task.order.batch(2))
    assert (task.batch(2, slice(0, 8))["tokens"] == plain).all(1).unique().tolist() == expected


def test_without_classes_every_label_is_the_null_label(write_params: Write, write_codes: Write) -> None:
    write_codes(classes=0)
    write_params()
    assert make_task(0).batch(0, slice(0, 8))["labels"].tolist() == [0] * 8


def test_nats_per_token_count_every_image_once(write_params: Write, write_codes: Write) -> None:
    write_codes()
    write_params()
    task = make_task(3)
    split, prior = task.codes["validation"], task.model.eval()
    with torch.no_grad():
        expected = prior.nll(split.rows(slice(None)), split.label_tensor(slice(None)))
    for batch_size in (1, 5, 13, 100):
        found = nats_by_token(prior, split, batch_size, torch.device("cpu"))
        torch.testing.assert_close(found.float(), expected.mean(0))
    mean = expected.mean().item()
    assert task.validate() == {
        "nats_per_token": pytest.approx(mean),
        "nats_per_token_level_0": pytest.approx(expected[:, 0].mean().item()),
        "nats_per_token_level_1": pytest.approx(expected[:, 1:].mean().item()),
    }
