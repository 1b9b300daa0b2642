"""Whether the libraries are there, new enough, and fit together."""

from __future__ import annotations

import platform
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from importlib.util import find_spec

from packaging.requirements import Requirement

from tessera.cli.doctor.finding import Finding, Level
from tessera.errors import UserError
from tessera.project import ROOT
from tessera.training.tracked import require_trackers

NOT_NEEDED = {"dvc": "`dvc repro` cannot run; each stage runs by hand (`python -m stage0_images.prepare`, ...)"}
# What is imported to see whether a library works: one that does not fit torch fails at these.
TRIED = {"torchvision": "torchvision.ops", "transformers": "transformers.models.llama.modeling_llama"}


def required() -> list[Requirement]:
    """What pyproject.toml requires. It is read where the code is a checkout, and else found as installed."""
    file = ROOT / "pyproject.toml"
    if file.is_file():
        lines = tomllib.loads(file.read_text(encoding="utf-8"))["project"]["dependencies"]
    else:
        lines = [line for line in metadata.requires("tessera") or [] if "extra ==" not in line]
    return [Requirement(line) for line in lines]


def look() -> Iterator[Finding]:
    """Each library that is missing, too old or broken; and in one line all others."""
    good = [f"python {platform.python_version()}"]
    for requirement in required():
        name = requirement.name
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            level = Level.WARNING if name in NOT_NEEDED else Level.ERROR
            consequence = f": {NOT_NEEDED[name]}" if name in NOT_NEEDED else ""
            yield Finding(level, name, f"not installed{consequence}; `pip install '{requirement}'`")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            yield Finding(Level.ERROR, name, f"{version} is installed, expected {requirement.specifier}; install that")
        elif failure := broken(TRIED.get(name, name)):
            hint = "; it must be built for the installed torch" if name in TRIED else ""
            yield Finding(Level.ERROR, name, f"{version} cannot be imported ({failure}){hint}; install it again")
        else:
            good.append(f"{name} {version}")
    yield Finding(Level.OK, "libraries", ", ".join(good))


def look_at_trackers(names: Iterable[str]) -> Iterator[Finding]:
    """A tracker of `runtime.trackers` that is not installed, which every training refuses."""
    try:
        require_trackers(names)
    except UserError as error:
        yield Finding(Level.ERROR, "trackers", str(error))


def broken(module: str) -> str | None:
    """Why a module cannot be imported, in one line; None if it can, or has another name than its package."""
    if find_spec(module.partition(".")[0]) is None:
        return None
    try:
        __import__(module)
    except Exception as error:  # a library that is broken may raise anything
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return None
