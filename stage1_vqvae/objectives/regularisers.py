"""Regularisers of a discriminator: LeCam's distance, and R1's gradient penalty.

Sources: Tseng et al. 2021, "Regularizing Generative Adversarial Networks under Limited Data", equation 4 (LeCam);
Mescheder et al. 2018, "Which Training Methods for GANs do actually Converge?", equation 9 (R1).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tessera.distributed import sum_over_processes


class Anchors(nn.Module):
    """LeCam's anchors: moving averages of the discriminator's mean logits of images and of reconstructions.

    They are the same on every process, since `update` averages over all. The first update takes the batch's own means.

    Args:
        decay: of the moving averages.
    """

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("means", torch.zeros(2))  # of the logits of images, and of reconstructions
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._sums: Tensor | None = None  # sums of both means and a count, over the micro-batches of a step

    def forward(self, real: list[Tensor], fake: list[Tensor]) -> Tensor:
        """The mean squared distance of logits to the opposite anchor, a scalar, summed over both kinds of images.

        It also gathers the logits' means for `update`.

        Args:
            real: maps of logits of images, (B, 1, h_i, w_i).
            fake: those of reconstructions.
        """
        means = torch.stack([torch.stack([part.mean() for part in logits]).mean() for logits in (real, fake)])
        images = len(real[0])
        row = torch.cat([means.detach() * images, means.new_tensor([images])]).double()
        self._sums = row if self._sums is None else self._sums + row
        of_images, of_reconstructions = self.means.to(means.dtype)
        parts = [(part - of_reconstructions).square().mean() for part in real]
        others = [(part - of_images).square().mean() for part in fake]
        return torch.stack(parts).mean() + torch.stack(others).mean()

    def update(self) -> None:
        """Move the anchors towards the mean logits of the step, and forget these means."""
        if self._sums is None:
            return
        *sums, images = sum_over_processes(self._sums)
        means = (torch.stack(sums) / images).to(self.means.dtype)
        self.means.copy_(torch.where(self.updates > 0, self.means.lerp(means, 1 - self.decay), means))
        self.updates += 1
        self._sums = None

    def discard(self) -> None:
        """Forget the means of the step."""
        self._sums = None


def gradient_penalty(logits: list[Tensor], images: Tensor) -> Tensor:
    """The mean over images of the squared norm of the gradient of an image's logits, a scalar.

    Args:
        logits: maps of logits (B, 1, h_i, w_i) of these images. An image's logit is the mean over its positions and
            over the maps.
        images: float (B, C, H, W), with a gradient.
    """
    total = torch.stack([part.flatten(1).mean(1).sum() for part in logits]).mean()
    (gradient,) = torch.autograd.grad(total, images, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()
