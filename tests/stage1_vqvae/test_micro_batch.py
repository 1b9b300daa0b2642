"""Every quantizer trained in micro-batches: the gradient and the codebook are those of the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stage1_vqvae.model import VQVAE
from stage1_vqvae.task import VQVAETask
from tessera.errors import UserError
from tessera.images.prepared import ImageSplit
from tessera.launch.devices import accelerator
from tessera.training.checkpoint import StateFolder
from tessera.training.loop import Trainer

SHAPE = (1, 8, 12)


@pytest.fixture
def take_a_step(
    in_tmp: Path, params: Callable, raw_params: dict[str, Any], choose_quantizer: Callable, choose_network: Callable
) -> Callable[[str, int | None], Trainer]:
    """`take_a_step(case, micro_batch)`: a trainer after one step on 8 images, started at the data."""

    def take(case: str, micro_batch: int | None) -> Trainer:
        choose_quantizer(case, None)
        choose_network("conv")
        raw_params["stage1_vqvae"]["training"] |= {"batch_size": 8, "codebook_images": 24, "warmup_steps": 0}
        raw_params["data"] |= dict(zip(("channels", "height", "width"), SHAPE, strict=True))
        raw_params["runtime"] |= {"micro_batch": micro_batch, "threads": 1}
        found = params()
        section = found.stage1_vqvae
        images = np.random.default_rng(0).integers(0, 256, (24, *SHAPE), dtype=np.uint8)
        config = {"image_shape": list(SHAPE), "data_variance": 0.3, "network": section.network.values()}
        config |= {"quantizer": section.quantizer.values(), "likelihood": section.likelihood.values()}
        torch.manual_seed(0)
        split = ImageSplit(images, None)
        task = VQVAETask(VQVAE(config), split, split, section.training, section.augmentation)
        state = StateFolder("test", "run", exclusive=False)
        trainer = Trainer(task, section.training, found.runtime, accelerator(found.runtime), state)
        task.model.train()
        task.initialise()
        trainer.stepper.take(0, task.batch(0, slice(None)), trainer.progress)
        return trainer

    return take


def first_moments(trainer: Trainer) -> dict[str, torch.Tensor]:
    """AdamW's first moments, which after one step are a fixed part of the gradient."""
    found = {}
    for group in trainer.groups:
        for name, parameter in group.parameters.items():
            found[name] = group.optimizer.state[parameter]["exp_avg"] if parameter in group.optimizer.state else None
    return found


def test_a_step_in_pieces_has_the_whole_batchs_gradient_and_codebook(
    take_a_step: Callable[[str, int | None], Trainer], quantizer_case: str
) -> None:
    whole = take_a_step(quantizer_case, None)
    if whole.task.whole_batch:
        with pytest.raises(UserError, match="entropy of the whole batch"):
            take_a_step(quantizer_case, 3)
        return
    cut = take_a_step(quantizer_case, 3)
    moments = first_moments(cut)
    for name, moment in first_moments(whole).items():
        assert (moment is None) == (moments[name] is None), name
        if moment is not None:
            torch.testing.assert_close(moments[name], moment, rtol=1e-4, atol=1e-7, msg=name)
    buffers = dict(cut.task.model.named_buffers())
    for name, buffer in whole.task.model.named_buffers():
        torch.testing.assert_close(buffers[name], buffer, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(("micro_batch", "most"), [(None, 8), (3, 3)])
def test_a_validation_takes_no_more_images_at_once_than_a_training_step(
    take_a_step: Callable[[str, int | None], Trainer], micro_batch: int | None, most: int, monkeypatch
) -> None:
    task, seen = take_a_step("vq", micro_batch).task, []
    quantize = task.model.quantize
    monkeypatch.setattr(task, "fit_likelihood", lambda: None)  # it takes 64 training images at once, whatever the batch
    monkeypatch.setattr(task.model, "quantize", lambda images: seen.append(len(images)) or quantize(images))
    task.validate()
    assert max(seen) == most
    assert sum(seen) == len(task.validation)
