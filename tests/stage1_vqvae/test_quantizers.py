"""Properties that every quantizer must have, checked without a network."""

from __future__ import annotations

import pytest
import torch


def test_codes_are_looked_up_as_they_were_found_under_autocast_too(build_alone, quantizer_case) -> None:
    quantizer = build_alone(quantizer_case).eval()
    z = torch.randn(5, 7, quantizer.dim)
    plain = quantizer(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = quantizer(z)
        found = quantizer.lookup(output.indices)
        drawn = quantizer.draw(z, torch.arange(5)) if quantizer.can_draw else None
    assert output.z_q.dtype == found.dtype == torch.float32
    assert torch.equal(found, output.z_q) and torch.equal(found, plain.z_q)
    assert torch.equal(found, quantizer.lookup(plain.indices))
    assert drawn is None or torch.equal(drawn, quantizer.draw(z, torch.arange(5)))


def test_in_evaluation_the_code_itself_passes_a_gradient_to_z(build_alone, quantizer_case) -> None:
    quantizer = build_alone(quantizer_case).eval()
    z, weights = torch.randn(5, 7, quantizer.dim, requires_grad=True), torch.randn(5, 7, quantizer.dim)
    output = quantizer(z)
    assert torch.equal(output.z_q, quantizer.lookup(output.indices))
    (gradient,) = torch.autograd.grad((output.z_q * weights).sum(), z)
    assert gradient.isfinite().all() and (gradient != 0).any(-1).all()


@pytest.mark.parametrize("case", ["vq", "residual", "grouped", "soft_em", "lfq", "simvq"])
def test_in_evaluation_a_gradient_passes_straight_through(build_alone, case) -> None:
    quantizer = build_alone(case).eval()
    z, weights = torch.randn(5, 7, quantizer.dim, requires_grad=True), torch.randn(5, 7, quantizer.dim)
    (gradient,) = torch.autograd.grad((quantizer(z).z_q * weights).sum(), z)
    assert torch.equal(gradient, weights)


def test_one_vector_is_quantized_in_training(build_alone, quantizer_case) -> None:
    quantizer = build_alone(quantizer_case)
    output = (
        quantizer(torch.randn(quantizer.dim)) if not quantizer.stochastic else quantizer(torch.randn(1, quantizer.dim))
    )
    assert output.loss.shape == () and output.indices.shape[-1] == quantizer.depth
    assert output.z_q.numel() == quantizer.dim


def test_vectors_and_indices_of_another_model_are_refused(build_alone, quantizer_case) -> None:
    quantizer = build_alone(quantizer_case)
    for width in (quantizer.dim + 1, 2 * quantizer.dim):
        with pytest.raises(ValueError, match=rf"expected vectors of width {quantizer.dim}, got shape \(3, {width}\)"):
            quantizer(torch.randn(3, width))
    indices = torch.zeros(3, quantizer.depth, dtype=torch.int64)
    assert quantizer.lookup(indices).shape == (3, quantizer.dim)
    for wrong in (-1, quantizer.codebook_size):
        indices[1, -1] = wrong
        with pytest.raises(ValueError, match=rf"expected indices below {quantizer.codebook_size}, got .*{wrong}"):
            quantizer.lookup(indices)
    with pytest.raises(ValueError, match=f"expected {quantizer.depth} codes for each position"):
        quantizer.lookup(torch.zeros(3, quantizer.depth + 1, dtype=torch.int64))
