"""The terms of an objective and their parts, against plain formulas."""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from tiny_features import TinyFeatures
from torch import nn

from stage1_vqvae.discriminators.patch import Patch
from stage1_vqvae.discriminators.projected import Projected
from stage1_vqvae.objectives import frozen
from stage1_vqvae.objectives.adversarial import Adversarial, hinge
from stage1_vqvae.objectives.distance import distance
from stage1_vqvae.objectives.perceptual import Perceptual
from stage1_vqvae.objectives.regularisers import Anchors, gradient_penalty
from tessera.randomness import generator

FEATURES = {"name": "tiny", "tiny": {}}


@pytest.fixture(autouse=True)
def tiny_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "build_features", lambda params: TinyFeatures().freeze())


def images(seed: int, count: int = 3, channels: int = 1) -> torch.Tensor:
    return torch.rand(count, channels, 8, 12, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("channel_weights", [None, (torch.rand(4), torch.rand(6))], ids=["means", "lpips"])
def test_the_perceptual_distance_is_that_of_unit_vectors_at_every_depth(channel_weights) -> None:
    network, one, other = TinyFeatures(), images(0), images(1)
    with torch.no_grad():
        made, wanted = network.maps(one), network.maps(other)
    depths = []
    for depth, (a, b) in enumerate(zip(made, wanted, strict=True)):
        each = []
        for image in range(len(a)):
            for row in range(a.shape[2]):
                for column in range(a.shape[3]):
                    x, y = a[image, :, row, column], b[image, :, row, column]
                    squares = (x / (x.norm() + 1e-10) - y / (y.norm() + 1e-10)) ** 2
                    each.append((squares * (1 if channel_weights is None else channel_weights[depth])).sum())
        depths.append(torch.stack(each).mean())
    expected = torch.stack(depths).mean() if channel_weights is None else torch.stack(depths).sum()
    torch.testing.assert_close(distance(made, wanted, channel_weights), expected)
    quarter = (depths[0] + depths[1] / 4) / 1.25 if channel_weights is None else expected
    torch.testing.assert_close(distance(made, wanted, channel_weights, depth_factor=0.25), quarter)


def test_a_perceptual_term_is_zero_for_equal_images_and_has_a_finite_gradient_everywhere() -> None:
    term = Perceptual(1, weight=1.0, depth_factor=0.5, part=None, features=FEATURES)
    same = images(0)
    assert term(same, same).item() == 0
    made = images(1).requires_grad_()
    term(made, same).backward()
    assert made.grad.isfinite().all() and made.grad.abs().sum() > 0
    # Where a ReLU leaves nothing, a vector has no direction.
    zeros = [torch.zeros(1, 4, 2, 2, requires_grad=True)]
    distance(zeros, [torch.ones(1, 4, 2, 2)], None).backward()
    assert zeros[0].grad.isfinite().all()


def test_frozen_features_are_neither_trained_nor_saved_but_move_and_are_copied_with_the_term() -> None:
    for module in (
        Perceptual(1, weight=1.0, depth_factor=0.5, part=None, features=FEATURES),
        Projected(1, channels=5, part=None, matching=0.0, features=FEATURES),
    ):
        network = module.features.network
        names = [*dict(module.named_parameters()), *module.state_dict()]
        assert not [name for name in names if name.startswith("features")]
        module.train()
        assert not network.training and not any(p.requires_grad for p in network.parameters())
        module.double()
        assert network.first.weight.dtype == torch.float64
        assert deepcopy(module).features.network is not network


def test_a_projected_discriminator_has_a_head_for_each_depth_and_trains_them_alone() -> None:
    torch.manual_seed(0)
    model = Projected(1, channels=5, part=None, matching=0.0, features=FEATURES)
    made = images(0).requires_grad_()
    ours, theirs = model.look(made, images(1))
    logits = model.judge(ours)
    assert [tuple(part.shape) for part in logits] == [(3, 1, 8, 12), (3, 1, 4, 6)]
    hinge(logits, model.judge(theirs)).backward()
    assert made.grad.abs().sum() > 0
    assert all(name.startswith("heads.") and p.grad is not None for name, p in model.named_parameters())
    # Each depth also sees the deeper ones: the mixture is a fixed linear map of both.
    maps = model.features.maps(images(2))
    whole = model.projected(maps)
    model.channel_mix_1.zero_()
    assert not torch.equal(model.projected(maps)[0], whole[0]) and model.projected(maps)[1].abs().sum() == 0


def test_lecam_pulls_logits_to_the_opposite_moving_average() -> None:
    torch.manual_seed(0)
    anchors, averages = Anchors(0.9), None
    for step in range(4):
        real, fake = torch.randn(6, 1, 2, 2, dtype=torch.float64) + 1, torch.randn(6, 1, 2, 2, dtype=torch.float64)
        of_real, of_fake = averages or (0.0, 0.0)
        expected = (real - of_fake).square().mean() + (fake - of_real).square().mean()
        for part in (slice(0, 4), slice(4, 6)) if step == 2 else (slice(0, 6),):
            found = anchors([real[part]], [fake[part]])
        if step != 2:
            assert found.item() == pytest.approx(expected.item(), rel=1e-6)
        if step == 1:
            anchors.discard()
            continue
        anchors.update()
        means = (real.mean().item(), fake.mean().item())
        averages = tuple(0.9 * a + 0.1 * m for a, m in zip(averages, means, strict=True)) if averages else means
        assert anchors.means.tolist() == pytest.approx(averages, rel=1e-6)
    assert anchors.updates == 3


def test_r1_is_the_squared_gradient_of_each_image_and_can_be_differentiated() -> None:
    torch.manual_seed(0)
    model = Patch(1, channels=3, layers=1, norm="group").double()
    pictures = images(0).double().requires_grad_()
    found = gradient_penalty(model(pictures), pictures)
    expected = []
    for image in pictures.detach():
        one = image[None].requires_grad_()
        (gradient,) = torch.autograd.grad(model(one)[0].mean(), one)
        expected.append(gradient.square().sum())
    torch.testing.assert_close(found, torch.stack(expected).mean())
    weight = model.layers[0].weight
    (slope,) = torch.autograd.grad(found, weight)
    step = 1e-6
    with torch.no_grad():
        weight[0, 0, 1, 2] += step
    moved = gradient_penalty(model(pictures), pictures)
    assert ((moved - found) / step).item() == pytest.approx(slope[0, 0, 1, 2].item(), rel=1e-3)


def test_the_patch_discriminator_has_the_published_size_and_sees_70_pixels() -> None:
    with torch.device("meta"):
        model = Patch(3, channels=64, layers=3, norm="batch")
        assert model(torch.zeros(1, 3, 256, 256))[0].shape == (1, 1, 30, 30)
    # Four by four kernels: 3 -> 64 and 512 -> 1 with biases, three without, each with a norm of two vectors.
    widths = (64, 128, 256, 512)
    expected = 16 * 3 * 64 + 64 + 16 * 512 + 1
    expected += sum(16 * a * b + 2 * b for a, b in pairwise(widths))
    assert sum(p.numel() for p in model.parameters()) == expected == 2_765_633
    small = Patch(1, channels=1, layers=3, norm="group")
    for place, layer in enumerate(small.layers):
        if isinstance(layer, nn.GroupNorm):
            small.layers[place] = nn.Identity()  # a norm sees the whole image
    image = torch.rand(1, 1, 96, 96, requires_grad=True)
    logits = small(image)[0]
    logits[0, 0, 5, 5].backward()
    rows, columns = (image.grad[0, 0].abs().sum(side) > 0 for side in (1, 0))
    assert rows.sum() == columns.sum() == 70


def test_a_perceptual_term_compares_one_part_in_training_and_all_parts_in_evaluation() -> None:
    whole = Perceptual(1, weight=1.0, depth_factor=0.5, part=None, features=FEATURES)
    term = Perceptual(1, weight=1.0, depth_factor=0.5, part=6, features=FEATURES)
    made, wanted = images(0), images(1)  # of 8 x 12 pixels
    each = {
        (top, left): whole(made[..., top : top + 6, left : left + 6], wanted[..., top : top + 6, left : left + 6])
        for top in range(3)
        for left in range(7)
    }
    found = set()
    for seed in range(60):
        term.begin(generator("step", seed))
        value = term(made, wanted)
        torch.manual_seed(seed)
        assert term(made, wanted) == value  # in a step it is the same part, whatever else is drawn
        found |= {place for place, other in each.items() if torch.isclose(value, other, rtol=1e-6)}
    assert {top for top, _ in found} == {0, 1, 2} and {left for _, left in found} == set(range(7))
    corners = torch.stack([each[place] for place in ((0, 0), (0, 6), (2, 0), (2, 6))])
    torch.testing.assert_close(term.eval()(made, wanted), corners.mean())


def test_a_projected_discriminator_judges_a_random_part() -> None:
    model, seen = Projected(1, channels=5, part=6, matching=0.0, features=FEATURES), []
    with pytest.raises(RuntimeError, match="call begin first"):
        model.look(images(0), images(1))
    for seed in range(4):
        model.begin(generator("step", seed))
        ours, theirs = model.look(images(0), images(0))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert [tuple(part.shape) for part in model.judge(ours)] == [(3, 1, 6, 6), (3, 1, 3, 3)]
        seen.append(ours[0])
    assert any(not torch.equal(seen[0], other) for other in seen[1:])


def adversarial(**projected: object) -> Adversarial:
    """An adversarial term with a projected discriminator."""
    torch.manual_seed(0)
    discriminator = {"name": "projected", "projected": {"channels": 5, "part": None, "matching": 0.0} | projected}
    discriminator["projected"] |= {"features": FEATURES}
    regulariser = {"name": "none", "weight": 0.0, "decay": 0.99}
    optimizer = {"learning_rate_factor": 1.0, "betas": (0.5, 0.9)}
    start = {"adaptive": False, "start_step": 0, "ramp_steps": 0}
    return Adversarial(
        1, weight=1.0, **start, regulariser=regulariser, optimizer=optimizer, discriminator=discriminator
    ).eval()


def test_a_discriminator_learns_from_what_the_decoder_was_judged_by_in_the_step() -> None:
    term, looks = adversarial(part=6), []
    network = term.discriminator.features.network
    network.first.register_forward_hook(lambda _, given, __: looks.append(given[0].detach().clone()))
    pieces = [(images(seed).requires_grad_(), images(seed + 10)) for seed in range(2)]  # micro-batches
    for number in (1, 2):  # pieces of a step
        term.begin(generator("step", number))
        looks.clear()
        for made, wanted in pieces[:number]:
            term(made, wanted)
        seen = list(looks)
        losses = [term.own_loss(made.detach(), wanted)[0] for made, wanted in pieces[:number]]
        # One look is enough if there is one piece. Of several none is kept, and each is looked at again.
        again = looks[len(seen) :]
        assert len(again) == (0 if number == 1 else 2 * number)
        assert all(torch.equal(a, b) for a, b in zip(seen, again, strict=False))
        for place, loss in enumerate(losses):
            looked = seen[2 * place : 2 * place + 2]  # at images, and then at reconstructions
            parts = [term.discriminator.judge(network.feature_maps(each)) for each in looked]
            torch.testing.assert_close(loss, hinge(*parts))
    term.begin(generator("step", 3))
    term(*pieces[0])
    term.begin(generator("step", 4))
    looks.clear()
    term.own_loss(pieces[1][0].detach(), pieces[1][1])
    assert len(looks) == 2  # nothing is left of the step before


def test_matching_is_the_distance_of_the_features_that_are_judged() -> None:
    made, wanted = images(0), images(1)
    plain, matched = adversarial(), adversarial(matching=3.0)
    added = matched(made, wanted) - plain(made, wanted)
    torch.testing.assert_close(
        added, 3 * Perceptual(1, weight=1.0, depth_factor=1.0, part=None, features=FEATURES)(made, wanted)
    )
    # The distance is a part of its own: the deceit beside it is that of a term without.
    found = matched.losses(made, wanted)
    assert torch.equal(found[""], plain(made, wanted)) and set(found) == {"", "_matching"}
    torch.testing.assert_close(found["_matching"], added)
    losses = [term.own_loss(made, wanted)[0] for term in (plain, matched)]
    assert torch.equal(*losses)
