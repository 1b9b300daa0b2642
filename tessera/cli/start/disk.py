"""How much disk a whole run needs."""

from __future__ import annotations

from configparser import ConfigParser
from configparser import Error as ConfigError
from pathlib import Path

from tessera import paths
from tessera.parameters import Params

KEPT_STATES, STATE_FLOATS = 2, 4  # saved states of a training; floats a weight: itself, the best, two moments
DVC = Path(".dvc")
KINDS = 2  # of samples: with the parameters' settings, and without


def cache() -> Path:
    """Where DVC keeps its copies: `cache.dir` of its settings, or .dvc/cache."""
    settings = ConfigParser(interpolation=None)
    try:
        settings.read([DVC / "config", DVC / "config.local"], encoding="utf-8")  # the later one decides
    except (ConfigError, OSError, ValueError):  # DVC itself will say so
        return DVC / "cache"
    return DVC / settings.get("cache", "dir", fallback="cache")


def passes(params: Params) -> int:
    """Passes over the training images whose codes are extracted."""
    extract = params.extract_codes
    return (2 * extract.shift + 1) ** 2 * (2 if extract.horizontal_flip else 1) + extract.draws


def run_bytes(params: Params, images: dict[str, int], samples: int, weights: int) -> dict[Path, int]:
    """About how many bytes a run leaves in each folder: images, codes, models, samples, DVC's copy of them, states.

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
    kept = {
        paths.PREPARED: sum(images.values()) * pixels,
        paths.CODES: encoded * positions * code,
        paths.MODELS: 4 * weights,
        paths.RESULTS: KINDS * samples * pixels,
    }
    return kept | {cache(): sum(kept.values()), paths.STATE: KEPT_STATES * STATE_FLOATS * 4 * weights}
