"""Better codes for the same decoder: gradient steps move each image's z, and the best codes on the way are kept.

The encoder picks an image's codes in one pass. Any codes z bound -log p(x) by -log p(x | z) - log p(z), so an image may
have codes under which the decoder gives it a higher probability. The search minimises the distortion -log p(x | z)
alone. The rate may rise or fall with it.

All levels are moved together, and each finer level's z is computed again from the moved coarser levels. A fine level
thus keeps coding what the coarser ones left over. If only the finest level were moved, the errors of
coarse codes would remain.

Nothing is shared by the images of a batch, and nothing is drawn at random.

Sources: Kim et al. 2018, "Semi-Amortized Variational Autoencoders"; Yang et al. 2020, "Improving Inference for Neural
Image Compression", section 3.1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from stage1_vqvae.model import VQVAE
from stage1_vqvae.quantizers.output import planes
from tessera.footprint import images_together, kept_for_backward
from tessera.images.pixels import to_float

# Learning rate of Adam, in root mean squares of z over an image's grid, since models differ in z's scale. On validation
# images of nine small models it was, of 0.003 to 0.1, the one that was never far from the best for 50 steps.
RATE = 0.03
BETAS = (0.9, 0.99)


class NoGradient(ValueError):
    """A quantizer passes no gradient to z in evaluation, so z cannot be moved by gradient steps."""


class Refined(NamedTuple):
    """What refinement found for each of B images.

    Attributes:
        codes: int64 (B, h, w, depth) for each level, coarsest first.
        before: float64 (B,), -log p(x | z) for the encoder's codes, in nats.
        after: float64 (B,), -log p(x | z) for `codes`; never above `before`.
        changed: int64 (B,), the number of tokens that differ from the encoder's.
    """

    codes: list[torch.Tensor]
    before: torch.Tensor
    after: torch.Tensor
    changed: torch.Tensor


class _Search:
    """The codes of some images, as a function of how far z of each level is moved.

    Attributes:
        moves: float32 (B, h, w, D) for each level, in root mean squares of z over the image's grid. They start at 0,
            where the codes are the encoder's.
    """

    def __init__(self, model: VQVAE, pixels: torch.Tensor) -> None:
        self.model, self.pixels = model, pixels
        with torch.no_grad():
            self.features = model.network.encode(to_float(pixels))
        self.moves = [
            torch.zeros(len(pixels), v.height, v.width, model.quantizer_of(level).dim, device=pixels.device)
            for level, v in enumerate(model.layout.levels)
        ]
        for move in self.moves:
            move.requires_grad_()

    def _moved(self, level: int, z: torch.Tensor) -> torch.Tensor:
        return z + self.moves[level] * z.detach().square().mean((1, 2, 3), keepdim=True).sqrt()

    def measure(self) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The codes, and float64 (B,) -log p(x | z) with gradients for `moves`."""
        outputs, _ = self.model.quantize_features(self.features, self._moved)
        network = self.model.network
        parameters = network.decode(network.decoder_inputs([planes(output.z_q) for output in outputs]))
        return [output.indices for output in outputs], self.model.likelihood.nll(parameters.float(), self.pixels)

    def set_gradients(self, nats: torch.Tensor) -> None:
        """Compute the gradients of `moves`. Where a gradient is not finite, z stays where it is.

        Raises:
            NoGradient: some level's z has no gradient.
        """
        found = torch.autograd.grad(nats.sum(), self.moves, allow_unused=True) if nats.requires_grad else [None]
        if any(gradient is None for gradient in found):
            raise NoGradient("the quantizer passes no gradient to z in evaluation")
        for move, gradient in zip(self.moves, found, strict=True):
            move.grad = gradient.nan_to_num(0.0, 0.0, 0.0)


@torch.enable_grad()
def refine(model: VQVAE, pixels: torch.Tensor, steps: int, rate: float = RATE) -> Refined:
    """Improves the codes of images by gradient steps on z, straight through the quantizer.

    Args:
        model: in evaluation mode. Nothing of it changes.
        pixels: uint8 (B, C, H, W), on the model's device.
        steps: the number of steps of Adam.
        rate: its learning rate, see `RATE`.

    Raises:
        NoGradient: the model's quantizer passes no gradient to z.
    """
    search = _Search(model, pixels)
    optimizer = torch.optim.Adam(search.moves, rate, betas=BETAS)
    first, nats = search.measure()
    codes, before = first, nats.detach()
    after = before
    for _ in range(steps):
        search.set_gradients(nats)
        optimizer.step()
        found, nats = search.measure()
        better = nats.detach() < after
        codes = [torch.where(better.view(-1, 1, 1, 1), new, old) for new, old in zip(found, codes, strict=True)]
        after = torch.where(better, nats.detach(), after)
    changed = (model.layout.flatten(codes) != model.layout.flatten(first)).sum(1)
    return Refined(codes, before, after, changed)


def refined_together(model: VQVAE, most: int) -> int:
    """How many images are refined at once: see `images_together`. A step keeps what its backward pass needs.

    Args:
        most: `runtime.batch_size`.

    Raises:
        NoGradient: the model's quantizer passes no gradient to z.
    """
    device = next(model.parameters()).device
    blank = torch.zeros(1, *model.layout.image_shape, dtype=torch.uint8, device=device)
    with torch.enable_grad():
        kept = kept_for_backward(model, lambda: _Search(model, blank).measure())
    return images_together(model, lambda: refine(model, blank, 1), most, kept)
