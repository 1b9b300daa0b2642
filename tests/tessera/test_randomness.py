"""Random streams keyed by purpose, and the order of training images as a pure function of the step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tessera.randomness import SampleOrder, generator, seed_of


def test_seeds_are_63_bits_and_differ_by_every_part_of_the_key() -> None:
    keys = [("order", 0, 0), ("order", 0, 1), ("order", 1, 0), ("augment", 0, 0), ("order", 10, 0), ("order", 1, "00")]
    seeds = [seed_of(*key) for key in keys]
    assert len(set(seeds)) == len(keys) and all(0 <= seed < 2**63 for seed in seeds)


def test_a_key_always_gives_the_same_stream() -> None:
    assert seed_of("order", 0, 3) == 5466416715336131561  # a change would make every published result unrepeatable
    assert torch.equal(torch.rand(5, generator=generator("a", 1)), torch.rand(5, generator=generator("a", 1)))
    assert not torch.equal(torch.rand(5, generator=generator("a", 1)), torch.rand(5, generator=generator("a", 2)))


@pytest.mark.parametrize(("images", "batch_size"), [(12, 4), (10, 4), (7, 7), (5, 12), (1, 3)])
def test_every_epoch_holds_every_image_once(images: int, batch_size: int) -> None:
    order = SampleOrder(images, batch_size, seed=3)
    steps = 6 * max(1, images // batch_size + 1)
    drawn = np.concatenate([order.batch(step) for step in range(steps)])
    assert len(drawn) == steps * batch_size and drawn.dtype == np.int64
    for epoch in range(len(drawn) // images):
        assert sorted(drawn[epoch * images : (epoch + 1) * images]) == list(range(images))


def test_the_order_depends_on_seed_and_step_alone() -> None:
    walked, jumped = SampleOrder(10, 4, seed=0), SampleOrder(10, 4, seed=0)
    batches = [walked.batch(step) for step in range(20)]
    for step in (19, 3, 0, 11, 11, 4):
        np.testing.assert_array_equal(jumped.batch(step), batches[step])
    assert not all(np.array_equal(SampleOrder(10, 4, seed=1).batch(s), batches[s]) for s in range(3))


def test_epochs_differ_in_their_order() -> None:
    order = SampleOrder(50, 50, seed=0)
    assert not np.array_equal(order.batch(0), order.batch(1))
