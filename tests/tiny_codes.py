"""The layout of the codes of which tests train priors."""

from __future__ import annotations

from tessera.codes.layout import CodeLayout, Level

LAYOUT = CodeLayout((1, 8, 8), (Level(1, 1, 1, 5), Level(2, 2, 1, 7)))
