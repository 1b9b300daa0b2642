"""The VQ-VAE of the zalandoresearch notebook, written plainly in fp32 from its description: what ours is compared with.

The widely used PyTorch copy of DeepMind's notebook (github.com/zalandoresearch/pytorch-vq-vae): images in [-0.5, 0.5],
Adam at 1e-3, batches of 256, a codebook from N(0, 1) moved by an EMA, no revival. Nothing is made faster here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

LEARNING_RATE, BATCH_SIZE = 1e-3, 256


def to_notebook(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 pixels to float32 in [-0.5, 0.5]."""
    return pixels.float() / 255 - 0.5


class PlainResidual(nn.Module):
    """ReLU, 3x3, ReLU, 1x1, added to the input: with `rectified_skip`, to the ReLU of the input.

    The notebook's first ReLU works in place, so that what it adds to is no longer the block's input.
    """

    def __init__(self, channels: int, hidden: int, rectified_skip: bool) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=rectified_skip)
        self.wide = nn.Conv2d(channels, hidden, 3, padding=1, bias=False)
        self.narrow = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.narrow(F.relu(self.wide(self.relu(x)), inplace=True))


def stack(rectified_skip: bool) -> list[nn.Module]:
    return [*(PlainResidual(128, 32, rectified_skip) for _ in range(2)), nn.ReLU()]


class PlainOutput(NamedTuple):
    z_q: torch.Tensor  # (B, D, h, w)
    loss: torch.Tensor
    counts: torch.Tensor  # (K,), how often each code was used
    perplexity: torch.Tensor


class PlainQuantizer(nn.Module):
    """Nearest code by one matrix of all distances, one-hot encodings, and an EMA that moves in `forward`.

    The smoothed counts take the place of the counts, and the sums begin at another draw than the codes do, as there.
    """

    def __init__(self, codebook_size: int, codebook_dim: int, decay: float = 0.99, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.decay, self.epsilon = decay, epsilon
        self.register_buffer("codebook", torch.randn(codebook_size, codebook_dim))
        self.register_buffer("ema_count", torch.zeros(codebook_size))
        self.register_buffer("ema_sum", torch.randn(codebook_size, codebook_dim))

    def forward(self, z: torch.Tensor) -> PlainOutput:
        rows = z.permute(0, 2, 3, 1).contiguous()
        flat = rows.view(-1, rows.shape[-1])
        squares = flat.square().sum(1, keepdim=True) + self.codebook.square().sum(1)
        nearest = (squares - 2 * flat @ self.codebook.t()).argmin(1, keepdim=True)
        encodings = torch.zeros(len(flat), len(self.codebook), device=flat.device).scatter_(1, nearest, 1)
        code = (encodings @ self.codebook).view_as(rows)
        if self.training:
            self.move(flat.detach(), encodings)
        loss = 0.25 * F.mse_loss(code, rows)
        z_q = rows + (code - rows).detach()
        counts = encodings.sum(0)
        shares = counts / len(flat)
        perplexity = (-(shares * (shares + 1e-10).log()).sum()).exp()
        return PlainOutput(z_q.permute(0, 3, 1, 2).contiguous(), loss, counts, perplexity)

    @torch.no_grad()
    def move(self, flat: torch.Tensor, encodings: torch.Tensor) -> None:
        """One step of the EMA for vectors (M, D) and their one-hot encodings (M, K)."""
        count = self.ema_count * self.decay + (1 - self.decay) * encodings.sum(0)
        total = count.sum()
        self.ema_count = (count + self.epsilon) / (total + len(count) * self.epsilon) * total
        self.ema_sum = self.ema_sum * self.decay + (1 - self.decay) * (encodings.t() @ flat)
        self.codebook = self.ema_sum / self.ema_count.unsqueeze(1)


class PlainVQVAE(nn.Module):
    """The notebook's model for CIFAR-10: 8x8 codes of 512, D = 64."""

    def __init__(self, data_variance: float, rectified_skip: bool = True) -> None:
        """`data_variance`: of training pixels in [-0.5, 0.5]."""
        super().__init__()
        self.data_variance = data_variance
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 64, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 128, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(128, 128, 3, padding=1),
            *stack(rectified_skip),
        )
        self.latent = nn.Conv2d(128, 64, 1)
        self.quantizer = PlainQuantizer(512, 64)
        self.decoder = nn.Sequential(
            nn.Conv2d(64, 128, 3, padding=1),
            *stack(rectified_skip),
            nn.ConvTranspose2d(128, 64, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 3, 4, stride=2, padding=1),
        )

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, PlainOutput]:
        """The training loss, the reconstructions, and what the quantizer gave, of images in [-0.5, 0.5]."""
        output = self.quantizer(self.latent(self.encoder(images)))
        reconstructions = self.decoder(output.z_q)
        return F.mse_loss(reconstructions, images) / self.data_variance + output.loss, reconstructions, output


def plain_step(
    model: PlainVQVAE,
    optimizer: torch.optim.Optimizer,
    pixels: torch.Tensor,
    to_images: Callable[[torch.Tensor], torch.Tensor] = to_notebook,
) -> torch.Tensor:
    """One training step on uint8 pixels; returns its loss."""
    optimizer.zero_grad()
    loss, _, _ = model(to_images(pixels))
    loss.backward()
    optimizer.step()
    return loss.detach()
