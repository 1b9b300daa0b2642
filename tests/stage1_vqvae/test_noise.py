"""Random numbers of quantizers: they depend on the image's seed alone and have the right distribution."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from stage1_vqvae.quantizers.noise import derived, gumbels, normals, uniforms

CPU = torch.device("cpu")


@pytest.mark.parametrize("draw", [uniforms, gumbels, normals])
def test_a_row_depends_on_its_own_seed_alone(draw) -> None:
    seeds = torch.tensor([5, 2**62 - 1, 7])
    whole = draw((3, 2, 4), seeds, CPU)
    assert whole.shape == (3, 2, 4) and whole.isfinite().all()
    for row in range(3):
        assert torch.equal(draw((1, 2, 4), seeds[row : row + 1], CPU)[0], whole[row])
    assert not torch.equal(whole[0], whole[2])


def test_another_number_of_seeds_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 4 seeds, one for each image, got 1"):
        uniforms((4, 2), torch.tensor([1]), CPU)


@pytest.mark.parametrize(
    ("draw", "family"), [(uniforms, stats.uniform), (gumbels, stats.gumbel_r), (normals, stats.norm)]
)
def test_draws_follow_their_distribution(draw, family) -> None:
    values = draw((4, 5000), torch.arange(4), CPU)
    assert stats.kstest(values.flatten().numpy(), family.cdf).pvalue > 0.01


def test_without_seeds_the_global_generator_draws() -> None:
    torch.manual_seed(3)
    first = uniforms((2, 5), None, CPU)
    torch.manual_seed(3)
    assert torch.equal(uniforms((2, 5), None, CPU), first)


def test_derived_seeds_differ_in_the_bits_that_a_generator_uses() -> None:
    seeds = torch.tensor([0, 1, 2**62, 2**62 + 2**40])
    found = torch.stack([derived(derived(seeds[:2], a), b) for a in range(6) for b in range(6)])
    assert len((found & (2**32 - 1)).flatten().unique()) == found.numel() and (found >= 0).all()
    assert derived(None, 3) is None
    level, depth = (uniforms((2, 50), derived(seeds[:2], key), CPU) for key in (0, 1))
    assert not torch.equal(level, depth)
