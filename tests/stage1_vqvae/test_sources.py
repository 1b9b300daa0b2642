"""What sources write by hand is what stands here: a copied gradient, and one-hot vectors times a codebook."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from shipped import parameters

from stage1_vqvae.quantizers.vq import VectorQuantizer


def quantizer() -> VectorQuantizer:
    torch.manual_seed(0)
    values = parameters(
        "stage1_vqvae.quantizer.vq",
        codebook_size=8,
        codebook_dim=4,
        codebook_update="gradient",
        gradient_estimator="straight_through",
        start="normal",
    )
    return VectorQuantizer(**values)


def test_a_gradient_copied_by_a_hook_and_a_second_backward_pass_is_the_straight_through_gradient() -> None:
    """nakosung/VQ-VAE keeps the decoder's gradient by a hook, and walks back from z with it in a second pass."""
    vq = quantizer()
    encoder, decoder = torch.nn.Linear(5, 4), torch.nn.Linear(4, 5)
    images = torch.randn(16, 5)

    output = vq(encoder(images))
    (F.l1_loss(decoder(output.z_q), images) + output.loss).backward()
    ours = [parameter.grad.clone() for parameter in (*encoder.parameters(), *decoder.parameters())]

    for module in (encoder, decoder, vq):
        module.zero_grad()
    kept: list[torch.Tensor] = []
    z = encoder(images)
    code = vq.codebook.detach()[output.indices[..., 0]].requires_grad_()  # a leaf: no graph leads from it to z
    code.register_hook(kept.append)
    F.l1_loss(decoder(code), images).backward()
    z.backward(kept[0], retain_graph=True)
    (vq.commitment_cost * F.mse_loss(z, code.detach())).backward()
    copied = [parameter.grad for parameter in (*encoder.parameters(), *decoder.parameters())]
    assert kept[0].abs().sum() > 0
    for one, other in zip(ours, copied, strict=True):
        torch.testing.assert_close(one, other)


def test_an_embedding_is_a_one_hot_vector_times_the_codebook() -> None:
    """Values and the codebook's gradient are the same whether codes are looked up or multiplied out."""
    vq = quantizer()
    indices = torch.randint(0, 8, (3, 5, 1))
    weights = torch.randn(3, 5, 4)
    looked_up = vq.lookup(indices)
    (gathered,) = torch.autograd.grad((weights * looked_up.sin()).sum(), vq.codebook)
    multiplied = F.one_hot(indices[..., 0], 8).float() @ vq.codebook
    (product,) = torch.autograd.grad((weights * multiplied.sin()).sum(), vq.codebook)
    torch.testing.assert_close(looked_up, multiplied)
    torch.testing.assert_close(gathered, product)
