"""CodeLayout: the shape of an image's codes, and how they form one sequence."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from typing import TypeVar

import numpy as np
import torch

from tessera.artifacts.bounded import ONE_TENSOR
from tessera.errors import UserError

T = TypeVar("T", float, torch.Tensor)

# The most tokens that an image may have, and the most codes of a codebook. A configuration may come from anywhere, and
# these bound the time and memory that a layout alone takes.
MOST_TOKENS, MOST_CODES = 2**22, 2**24


@dataclass(frozen=True)
class Level:
    """The shape of one grid of codes.

    Attributes:
        height, width: positions of the grid.
        depth: codes a position.
        codebook_size: each code is below this number.
        sizes: the codebook size of each depth (depth,), if they differ. `codebook_size` is then the largest of them.
    """

    height: int
    width: int
    depth: int
    codebook_size: int
    sizes: tuple[int, ...] | None = None

    @property
    def depth_sizes(self) -> tuple[int, ...]:
        """The codebook size of each depth, (depth,)."""
        return self.sizes or (self.codebook_size,) * self.depth

    @property
    def tokens(self) -> int:
        return self.height * self.width * self.depth


@dataclass(frozen=True)
class CodeLayout:
    """The shape of an image's codes, and how they form one sequence of tokens.

    The sequence goes through the levels, and within a level through rows, columns and depths. A token therefore comes
    after the tokens of all coarser levels, and after the earlier depths of its own position.

    Attributes:
        image_shape: (C, H, W).
        levels: coarsest first.

    Raises:
        ValueError: a size is not positive, or there is no level.
        UserError: an image would have more than `MOST_TOKENS` tokens, or a codebook more than `MOST_CODES` codes.
    """

    image_shape: tuple[int, int, int]
    levels: tuple[Level, ...]

    def __post_init__(self) -> None:
        if self.levels and self.num_tokens > MOST_TOKENS:
            raise UserError(
                f"{self._images} of {self.num_tokens:,} tokens are too large: at most {MOST_TOKENS:,} tokens can be; "
                "make the images smaller, or the network's downsampling larger"
            )
        sizes, codes = list(self.image_shape), [1]
        for level in self.levels:
            sizes += [level.height, level.width, level.depth]
            codes += [level.codebook_size, *level.depth_sizes]
        if not self.levels or len(self.image_shape) != 3 or min(*sizes, *codes) < 1:
            raise ValueError(f"a layout needs (C, H, W) and levels of positive sizes, got {self}")
        if max(codes) > MOST_CODES:
            raise UserError(
                f"a codebook of {max(codes):,} codes is too large: at most {MOST_CODES:,} codes can be; lower its size"
            )

    @property
    def _images(self) -> str:
        return f"images of {' x '.join(map(str, self.image_shape))} values"

    @property
    def num_tokens(self) -> int:
        """N, the number of tokens of an image."""
        return sum(level.tokens for level in self.levels)

    @property
    def vocabulary(self) -> int:
        """V, the size of the largest codebook."""
        return max(level.codebook_size for level in self.levels)

    @property
    def dimensions(self) -> int:
        """C·H·W, the number of values of an image."""
        return math.prod(self.image_shape)

    def bits_per_dim(self, nats: T) -> T:
        """Convert nats per image, a number or a tensor, to bits per dimension."""
        return nats / (self.dimensions * math.log(2))

    @property
    def uniform_nats(self) -> float:
        """-log p(z) in nats per image under the uniform prior: the sum of log K over the tokens.

        Source: van den Oord et al. 2017, section 3.1.
        """
        return sum(level.height * level.width * math.log(size) for level in self.levels for size in level.depth_sizes)

    def slices(self) -> list[slice]:
        """The part of the sequence that each level takes."""
        ends = accumulate(level.tokens for level in self.levels)  # numpy's cumsum would break a compiled prior's graph
        return [slice(end - level.tokens, end) for end, level in zip(ends, self.levels, strict=True)]

    def check(self, codes: list[torch.Tensor]) -> None:
        """Refuse code grids of another layout.

        Raises:
            ValueError: the grids are not [(B, h, w, depth), ...] of this layout.
        """
        expected = [(level.height, level.width, level.depth) for level in self.levels]
        if [tuple(c.shape[1:]) for c in codes] != expected:
            raise ValueError(f"expected code grids {expected}, got {[tuple(c.shape[1:]) for c in codes]}")

    def flatten(self, codes: list[torch.Tensor]) -> torch.Tensor:
        """Turn grids [(B, h, w, depth), ...] into tokens (B, N). Raises `ValueError`: see `check`."""
        self.check(codes)
        return torch.cat([c.flatten(1) for c in codes], dim=1)

    def unflatten(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """Turn tokens (B, N) into grids [(B, h, w, depth), ...].

        Raises:
            ValueError: the tokens have another shape.
        """
        if tokens.ndim != 2 or tokens.shape[1] != self.num_tokens:
            raise ValueError(f"expected tokens (B, {self.num_tokens}), got {tuple(tokens.shape)}")
        return [
            tokens[:, part].reshape(-1, level.height, level.width, level.depth)
            for part, level in zip(self.slices(), self.levels, strict=True)
        ]

    def counts(self, codes: list[torch.Tensor]) -> list[torch.Tensor]:
        """How often each code occurs in grids [(B, h, w, depth), ...].

        Returns:
            for each level, int64 (depth, K) with K the size of its codebook. Levels and depths that share a codebook
            are still counted separately.
        """
        found = []
        for grid, level in zip(codes, self.levels, strict=True):
            places = grid.reshape(-1, level.depth) + torch.arange(level.depth, device=grid.device) * level.codebook_size
            size = level.depth * level.codebook_size
            found.append(torch.bincount(places.flatten(), minlength=size).view(level.depth, -1))
        return found

    @cached_property
    def places(self) -> torch.Tensor:
        """The level, row, column and depth of each token, int64 (N, 4)."""
        rows = []
        for index, level in enumerate(self.levels):
            grid = torch.cartesian_prod(
                torch.tensor([index]), torch.arange(level.height), torch.arange(level.width), torch.arange(level.depth)
            )
            rows.append(grid)
        return torch.cat(rows)

    @cached_property
    def codebook_sizes(self) -> torch.Tensor:
        """The number of values that each token may take, int64 (N,)."""
        by_level = [torch.tensor(level.depth_sizes).repeat(level.height * level.width) for level in self.levels]
        return torch.cat(by_level)

    @cached_property
    def allowed(self) -> torch.Tensor:
        """Which values each token may take, bool (N, V). All other logits are -inf.

        Raises:
            UserError: a published model may not have a table of this shape, see `tessera.artifacts.bounded`.
        """
        if self.num_tokens * self.vocabulary > ONE_TENSOR:
            raise UserError(
                f"{self._images} have {self.num_tokens:,} tokens, and with {self.vocabulary:,} codes each a table of "
                f"them is too large: at most {ONE_TENSOR:,} entries can be; lower stage2_prior's largest_softmax, the "
                "codebook size or the image size, or choose another prior"
            )
        return torch.arange(self.vocabulary) < self.codebook_sizes[:, None]

    @property
    def dtype(self) -> np.dtype:
        """The smallest unsigned dtype that holds every code."""
        return np.min_scalar_type(self.vocabulary - 1)

    def to_json(self) -> dict:
        """The layout as JSON values, from which `from_json` makes it again. Fields that are None are left out."""
        levels = [{name: v for name, v in asdict(level).items() if v is not None} for level in self.levels]
        return {"image_shape": self.image_shape, "levels": levels}

    @classmethod
    def from_json(cls, raw: dict) -> CodeLayout:
        return cls(tuple(raw["image_shape"]), tuple(Level(**level) for level in raw["levels"]))
