"""Gradient estimators against autograd on their definitions, written out as matrices in float64."""

from __future__ import annotations

import warnings

import pytest
import torch

from stage1_vqvae.quantizers.gradients import GRADIENT_ESTIMATORS, Estimator, diveq, rotation, straight_through


def pairs(count: int = 40, width: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return torch.randn(count, width, generator=random), torch.randn(count, width, generator=random) * 2


def defined_rotation(z: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
    """λRz of one vector, where R is an explicit rotation matrix from z to the code, and λ and R are constants."""
    with torch.no_grad():
        e, q = z / z.norm(), code / code.norm()
        r = (e + q) / (e + q).norm()
        matrix = torch.eye(len(z), dtype=z.dtype) - 2 * torch.outer(r, r) + 2 * torch.outer(q, e)
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(len(z), dtype=z.dtype))  # R is a rotation
        assert torch.det(matrix) == pytest.approx(1)
        scale = code.norm() / z.norm()
    return scale * (matrix @ z)


def gradient(output: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """The gradient of a nonlinear loss that weighs every element differently."""
    weights = torch.linspace(0.5, 2, output.numel(), dtype=output.dtype).view_as(output)
    return torch.autograd.grad((weights * output.sin()).sum(), z)[0]


@pytest.mark.parametrize("name", GRADIENT_ESTIMATORS)
def test_the_forward_value_is_exactly_the_code(name: str) -> None:
    z, code = pairs(400)
    code[0], code[1], z[2], code[3] = 0.0, -z[1] * 3, 0.0, z[3] * 1e-9
    z_q = GRADIENT_ESTIMATORS[name](z.view(20, 20, 5), code.view(20, 20, 5))
    assert torch.equal(z_q, code.view(20, 20, 5))


def test_straight_through_is_autograd_on_its_definition() -> None:
    z, code = (t.double().requires_grad_() for t in pairs())
    found = gradient(straight_through(z, code), z)
    torch.testing.assert_close(found, gradient(z + (code - z).detach(), z))


def test_rotation_is_autograd_on_its_definition() -> None:
    z, code = pairs()
    exact = z.double().requires_grad_()
    by_definition = torch.stack([defined_rotation(a, b.double()) for a, b in zip(exact, code, strict=True)])
    torch.testing.assert_close(by_definition, code.double())
    expected = gradient(by_definition, exact)
    double = z.double().requires_grad_()
    torch.testing.assert_close(gradient(rotation(double, code.double()), double), expected)
    single = z.requires_grad_()
    torch.testing.assert_close(gradient(rotation(single, code), single).double(), expected, rtol=1e-4, atol=1e-4)


def test_rotation_keeps_the_angle_between_gradient_and_vector() -> None:
    """The gradient has the same angle to z that it had to the code (Fifty et al. 2024, section 4.3)."""
    z, code = (t.double() for t in pairs())
    z.requires_grad_()
    outgoing = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (incoming,) = torch.autograd.grad(rotation(z, code), z, outgoing)
    cosine = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(cosine(incoming, z.detach()), cosine(outgoing, code))


@pytest.mark.parametrize("name", ["straight_through", "rotation"])
def test_no_gradient_reaches_the_code(name: str) -> None:
    z, code = pairs()
    code.requires_grad_()
    GRADIENT_ESTIMATORS[name](z.requires_grad_(), code).sum().backward()
    assert code.grad is None and z.grad is not None


def test_opposite_vectors_reflect() -> None:
    z = torch.tensor([[3.0, 0.0, 4.0]], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(rotation(z, -2 * z.detach()), z, torch.tensor([[1.0, 2.0, 3.0]]).double())
    e = z.detach()[0] / 5
    reflection = 2 * (torch.eye(3, dtype=torch.float64) - 2 * torch.outer(e, e))
    torch.testing.assert_close(found[0], reflection @ torch.tensor([1.0, 2.0, 3.0]).double())


def test_a_zero_vector_passes_the_gradient_straight_and_a_zero_code_stops_it() -> None:
    z = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]], requires_grad=True)
    code = torch.tensor([[30.0, 40.0], [0.0, 0.0], [0.0, 0.0]])
    (found,) = torch.autograd.grad(rotation(z, code), z, torch.tensor([[1.0, 2.0]]).expand(3, 2))
    torch.testing.assert_close(found, torch.tensor([[1.0, 2.0], [0.0, 0.0], [1.0, 2.0]]))


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1.0, 1e15])
def test_rotation_is_finite_for_extreme_vectors(size: float) -> None:
    z, code = pairs()
    z = (z * size).requires_grad_()
    (found,) = torch.autograd.grad(rotation(z, code).sum(), z)
    assert found.isfinite().all()


def test_nearly_opposite_vectors_give_a_finite_gradient_of_the_right_size() -> None:
    z, _ = pairs(400)
    code = -z * (1 + 1e-7 * torch.randn(z.shape, generator=torch.Generator().manual_seed(2)))
    z.requires_grad_()
    (found,) = torch.autograd.grad(rotation(z, code), z, torch.ones_like(z))
    assert found.isfinite().all() and found.norm(dim=-1).max() < 4 * 5**0.5


def test_diveq_is_autograd_on_its_definition() -> None:
    z, code = pairs()
    z, code = z.double(), code.double()
    weights, noise = torch.randn_like(z), 0.1 * torch.randn_like(z)
    for added in (None, noise):
        a, b = (x.clone().requires_grad_() for x in (z, code))
        (diveq(a, b, added) * weights).sum().backward()
        c, d = (x.clone().requires_grad_() for x in (z, code))
        direction = code - z if added is None else code - z + added
        direction = direction / direction.norm(dim=-1, keepdim=True)
        ((c + (d - c).square().sum(-1, keepdim=True).sqrt() * direction) * weights).sum().backward()
        torch.testing.assert_close(a.grad, c.grad)
        torch.testing.assert_close(b.grad, d.grad)


def test_diveq_equals_vector_quantize_pytorch() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever an oracle's import has to say is not about us
        from vector_quantize_pytorch.vector_quantize_pytorch import directional_reparam
    z, code = pairs()
    a, b, c, d = (x.clone().requires_grad_() for x in (z, code, z, code))
    torch.manual_seed(3)
    theirs = directional_reparam(c, d, noise_variance=0.04)
    torch.manual_seed(3)
    ours = diveq(a, b, torch.randn_like(z) * 0.2)
    torch.testing.assert_close(ours, theirs)
    for loss in (ours.sin().sum(), theirs.sin().sum()):
        loss.backward()
    torch.testing.assert_close((a.grad, b.grad), (c.grad, d.grad))


def test_diveq_noise_belongs_to_its_seed_and_has_its_variance() -> None:
    """Far from the code, the error of the direction is the noise divided by the distance, in all but one dimension."""
    z, code = torch.zeros(50, 40, 5), torch.tensor([1e3, 0.0, 0.0, 0.0, 0.0]).expand(50, 40, 5)
    seeds = torch.arange(50)
    estimator = Estimator("diveq", 0.25)
    noise = estimator(z, code, seeds)[..., 1:]
    assert noise.var().item() == pytest.approx(0.25, rel=0.05)
    torch.testing.assert_close(estimator(z[7:8], code[7:8], seeds[7:8])[..., 1:], noise[7:8])
    assert not torch.equal(noise[0], noise[1])
    assert not Estimator("diveq").stochastic and not Estimator("rotation", 1.0).stochastic


def test_diveq_at_the_code_itself_is_finite() -> None:
    z = torch.randn(3, 4, requires_grad=True)
    diveq(z, z.detach().clone()).sum().backward()
    assert z.grad.isfinite().all()
