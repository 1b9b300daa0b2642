"""Says what in params.yaml differs from what a published folder was made with.

Under DVC the two always agree. A stage that is started by hand after an edit reads what is there. Its result is right
for what it read, and other than params.yaml says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tessera import paths
from tessera.artifacts.manifests import REMEDY
from tessera.console import say
from tessera.documents import read_json
from tessera.errors import UserError
from tessera.parameters import Params


def tell_if_edited(params: Params, *kinds: str) -> None:
    """Print a line for each published folder that was made with other parameters than these.

    Args:
        kinds: prepared, vqvae or prior. A folder that is missing or damaged is passed over: the stage that reads it
            refuses it.
    """
    for kind in kinds:
        folder, made, now = _FOLDERS[kind](params)
        place = first_difference(made, now, "")
        if place is not None:
            path, old, new = place
            say(
                f"warning: {folder} was made with {path} {old!r}, params.yaml says {new!r}; it is used as it is; "
                f"`{REMEDY[kind]}` makes it anew, and what depends on it must be made after it"
            )


def first_difference(made: Any, now: Any, path: str) -> tuple[str, Any, Any] | None:
    """The dotted path of the first value that differs, and both values. Keys of one side alone do not count."""
    if isinstance(made, dict) and isinstance(now, dict):
        names = sorted(set(made) & set(now), key=lambda name: (name != "name", name))
        inner = (first_difference(made[name], now[name], f"{path}.{name}".strip(".")) for name in names)
        return next((found for found in inner if found is not None), None)
    return None if made == now else (path, made, now)


def _content(file: Path) -> dict[str, Any]:
    try:
        found = read_json(file)
    except UserError:
        return {}
    return found if isinstance(found, dict) else {}


def _prepared(params: Params) -> tuple[Path, Any, Any]:
    made = _content(paths.PREPARED / "stats.json").get("preparation") or {}
    return paths.PREPARED, {"data": made}, {"data": params.data.preparation()}


def _vqvae(params: Params) -> tuple[Path, Any, Any]:
    made, section = _content(paths.VQVAE / "config.json"), params.stage1_vqvae
    now = {part: getattr(section, part).values() for part in ("network", "quantizer", "likelihood")}
    return paths.VQVAE, {"stage1_vqvae": made}, {"stage1_vqvae": now}


def _prior(params: Params) -> tuple[Path, Any, Any]:
    made, now = _content(paths.PRIOR / "config.json"), params.stage2_prior.config()
    if made.get("name") != now["name"]:
        now, made = {"name": now["name"]}, {key: made[key] for key in ("name",) if key in made}
    else:
        now, made = {now["name"]: now["params"]}, {made["name"]: made.get("params")}
    return paths.PRIOR, {"stage2_prior": made}, {"stage2_prior": now}


_FOLDERS = {"prepared": _prepared, "vqvae": _vqvae, "prior": _prior}
