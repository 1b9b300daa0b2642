"""What the run that made the models says of them: data, parameters, figures. Only what is surely theirs is taken."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sampling.edits import made_and_now
from tessera import paths
from tessera.artifacts.edited import first_difference
from tessera.artifacts.manifests import read_manifest
from tessera.documents import read_json
from tessera.errors import UserError
from tessera.parameters import load

if TYPE_CHECKING:
    from sampling.published import Published

METRICS = paths.RESULTS / "evaluate" / "metrics.json"
# The sections of params.yaml from which the models and their samples follow.
RECIPE = ("data", "stage1_vqvae", "extract_codes", "stage2_prior", "sampling")


@dataclass(frozen=True)
class Provenance:
    """What is known of the run that made some models; by default nothing.

    Attributes:
        recipe: the values that the run used, by section of params.yaml. No value is a path of the machine.
        images: number of images of each split.
        metrics: what `evaluate` measured.
        picture: the bytes of the picture of samples, a PNG file.
        missing: what could not be taken, and why: the ends of sentences.
    """

    recipe: dict[str, Any] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    picture: bytes | None = None
    missing: tuple[str, ...] = ()

    @property
    def hub_id(self) -> str | None:
        """The id on the Hub of the data, if the run took them from there."""
        return self.recipe["data"]["source"] if self.recipe.get("data", {}).get("revision") else None


def read(run: Path, pipeline: Published, identities: dict[str, str]) -> Provenance:
    """What a run says of its models.

    Args:
        run: the run's folder, with params.yaml, models, results, and data/prepared if it is still there.
        pipeline: holds the models.
        identities: of the models, by kind.

    Raises:
        UserError: the run has other models, or a file of it is damaged.
    """
    for kind, folder in {"vqvae": paths.VQVAE, "prior": paths.PRIOR}.items():
        found = read_manifest(run / folder, kind, contents=False).identity
        if found != identities[kind]:
            raise UserError(
                f"run: {run / folder} is another {kind}, {found[:16]}, than the one to be saved, "
                f"{identities[kind][:16]}; name the run that made the models"
            )
    missing: list[str] = []
    return Provenance(
        _recipe(run, pipeline, missing),
        _images(run, pipeline, missing),
        _metrics(run, identities, missing),
        _picture(run, identities, missing),
        tuple(missing),
    )


def _recipe(run: Path, pipeline: Published, missing: list[str]) -> dict[str, Any]:
    params = load(run / paths.PARAMS)
    for folder, _, made, now in made_and_now(pipeline, params):
        if difference := first_difference(made, now):
            path, old, new = difference
            missing.append(f"the recipe: {folder} was made with {path} {old!r}, and params.yaml says {new!r}")
            return {}
    sections = [*RECIPE, "refine_decoder"] if pipeline.decoder is not pipeline.vqvae else RECIPE
    return {name: without_paths(params.used(name)) for name in sections}


def without_paths(value: Any) -> Any:
    """Parameters in which a path of this machine is its last name alone. What the Hub names stays as it is."""
    if isinstance(value, dict):
        hub = value.get("revision") is not None
        return {
            key: each if hub and key == "source" else without_paths(each)
            for key, each in value.items()
            if key != "watch"  # what DVC watches is of no use elsewhere
        }
    if isinstance(value, list | tuple):
        return [without_paths(each) for each in value]
    if isinstance(value, str) and ("/" in value or "\\" in value):
        return Path(value.replace("\\", "/")).name
    return value


def _images(run: Path, pipeline: Published, missing: list[str]) -> dict[str, int]:
    folder = run / paths.PREPARED
    try:
        prepared = read_manifest(folder, "prepared", contents=False)
    except UserError as error:
        missing.append(f"the numbers of images: {error}")
        return {}
    if prepared.identity != pipeline.manifests["vqvae"].parents.get("prepared"):
        missing.append(f"the numbers of images: {folder} holds other data than the models were trained on")
        return {}
    return dict(prepared.read_json("stats.json")["images"])


def _metrics(run: Path, identities: dict[str, str], missing: list[str]) -> dict[str, Any]:
    file = run / METRICS
    found = read_json(file) if file.is_file() else {}
    if isinstance(found, dict) and found.get("models") == identities:
        return found
    reason = "is of other models" if found else "is not there"
    missing.append(f"the figures: {file} {reason}; `python -m evaluation.evaluate` measures these models")
    return {}


def _picture(run: Path, identities: dict[str, str], missing: list[str]) -> bytes | None:
    try:
        samples = read_manifest(run / paths.SAMPLES, "samples", contents=False)
        if samples.parents == identities:
            return samples.read(paths.SAMPLE_GRID.name)
        reason = f"{run / paths.SAMPLES} is of other models; `python -m sampling.sample` draws those of these models"
    except UserError as error:
        reason = str(error)
    missing.append(f"the picture: {reason}")
    return None
