"""How much disk a whole run needs."""

from __future__ import annotations

from tessera.parameters import Params

KEPT_STATES, STATE_FLOATS = 2, 4  # saved states of a training; floats a weight: itself, the best, two moments
KINDS = 2  # of samples: with the parameters' settings, and without


def passes(params: Params) -> int:
    """Passes over the training images whose codes are extracted."""
    extract = params.extract_codes
    return (2 * extract.shift + 1) ** 2 * (2 if extract.horizontal_flip else 1) + extract.draws


def run_bytes(params: Params, images: dict[str, int], samples: int, weights: int) -> int:
    """About how many bytes a run leaves: images, codes, models, samples, DVC's copy of all, and saved states.

    Args:
        images: number of images of each split.
        samples: `sampling.images`.
        weights: number of weights of all models.
    """
    data, stage1 = params.data, params.stage1_vqvae
    positions = data.height * data.width // stage1.network.chosen.factor**2
    code = 1 if stage1.quantizer.chosen.sizes[0] <= 256 else 2  # bytes
    pixels = data.channels * data.height * data.width
    encoded = sum(images.values()) + (passes(params) - 1) * images["train"]
    kept = (sum(images.values()) + KINDS * samples) * pixels + encoded * positions * code + 4 * weights
    return 2 * kept + KEPT_STATES * STATE_FLOATS * 4 * weights
