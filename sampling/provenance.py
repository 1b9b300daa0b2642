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
from tessera.parameters import Params, load
from tessera.recorded import edited_stages

if TYPE_CHECKING:
    from sampling.published import Published

METRICS = paths.RESULTS / "evaluate" / "metrics.json"
# The stages that made the models and their samples, and the section of params.yaml that each follows.
RECIPE = {
    "prepare": "data",
    "train_vqvae": "stage1_vqvae",
    "refine_decoder": "refine_decoder",
    "extract_codes": "extract_codes",
    "train_prior": "stage2_prior",
    "sample": "sampling",
}
OF_SAMPLES = ("classifier", "distribution")  # the sections of metrics.json that hold figures of samples
SECTIONS = {"vqvae": "stage1_vqvae", "decoder": "refine_decoder", "prior": "stage2_prior"}  # that train each model


@dataclass(frozen=True)
class Provenance:
    """What is known of the run that made some models; by default nothing.

    Attributes:
        recipe: the values that the run used, by section of params.yaml. No value is a path of the machine.
        recorded: whether the stage `fingerprint` recorded these values. Without its records, only networks and numbers
            of steps were compared with the models, and the recipe has no section `data`.
        images: number of images of each split.
        metrics: what `evaluate` measured.
        picture: the bytes of the picture of samples, a PNG file.
        missing: what could not be taken, and why: the ends of sentences.
    """

    recipe: dict[str, Any] = field(default_factory=dict)
    recorded: bool = False
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
    params = load(run / paths.PARAMS)
    edited = edited_stages(params, run)
    sections = {stage: RECIPE[stage] for stage in RECIPE if stage != "refine_decoder" or _refined(pipeline)}
    images = _images(run, pipeline, missing)
    reason = _unrecorded(run, pipeline, set(sections) <= set(edited))
    if edit := _edit(pipeline, params, {stage: edited.get(stage) for stage in sections}):
        missing.append(f"the recipe: {edit}")
        sections = {}
    elif reason:
        missing.append(f"the data: {reason}; `dvc repro` makes a run with a record")
        del sections["prepare"]
    recipe = {name: without_paths(params.used(name)) for name in sections.values()}
    drawn = edited.get("sample")
    return Provenance(
        recipe,
        not reason,
        images,
        _metrics(run, identities, drawn, missing),
        _picture(run, identities, drawn, missing),
        tuple(missing),
    )


def _refined(pipeline: Published) -> bool:
    return pipeline.decoder is not pipeline.vqvae


def _edit(pipeline: Published, params: Params, edited: dict[str, str | None]) -> str | None:
    """What in `params` is other than when the models and samples were made, as the end of a sentence; None: nothing.

    Args:
        edited: of each stage, what was edited since `fingerprint` recorded it.
    """
    for folder, _, made, now in made_and_now(pipeline, params):
        if difference := first_difference(made, now):
            path, old, new = difference
            return f"{folder} was made with {path} {old!r}, and params.yaml says {new!r}"
    trainings = params.trainings()
    for kind, section in SECTIONS.items():
        took = pipeline.manifests[kind].training if kind in pipeline.manifests else {}
        if took and (path := _other_steps(took, trainings.get(f"{section}.training"))):
            return (
                f"the {kind} was trained with steps: {took['steps']} and schedule_steps: {took['schedule_steps']}, and "
                f"params.yaml has other {section}.training.{path}"
            )
    for stage, path in edited.items():
        if path:
            return f"{path} in params.yaml was edited since the run began (the stage {stage} uses it)"
    return None


def _other_steps(took: dict[str, int], training: Any) -> str | None:
    """Which number of `training` a model was not trained with; None: it may have been, if it ended early or not.

    Args:
        took: the numbers of its manifest.
        training: the section of params.yaml; None: there is none, and nothing is trained.
    """
    if training is None or took["schedule_steps"] != (training.schedule_steps or training.steps):
        return "steps" if training is None or training.schedule_steps is None else "schedule_steps"
    return "steps" if took["steps"] > training.steps else None


def _unrecorded(run: Path, pipeline: Published, complete: bool) -> str | None:
    """Why the record of the run need not be that of the models; None: it is.

    A run that was begun and not finished has a record of parameters by which the models were not made. Its first stages
    have replaced the images or the codes.

    Args:
        complete: whether every stage has a record.
    """
    if not complete:
        return f"{run / paths.FINGERPRINTS} has no record of the run"
    manifests = pipeline.manifests
    for folder, kind, child in ((paths.PREPARED, "prepared", "vqvae"), (paths.CODES, "codes", "prior")):
        try:
            found = read_manifest(run / folder, kind, contents=False).identity
        except UserError:
            found = None
        if found is None or found != manifests[child].parents.get(kind):
            return f"{run / folder} is not what {paths.MODELS / child} was made from"
    return None


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


def _metrics(run: Path, identities: dict[str, str], edit: str | None, missing: list[str]) -> dict[str, Any]:
    """What `evaluate` measured of the models.

    Args:
        edit: what was edited since the samples were drawn. Then nothing that was measured of samples is taken.
    """
    file = run / METRICS
    found = read_json(file) if file.is_file() else {}
    if isinstance(found, dict) and found.get("models") == identities:
        if edit:
            missing.append(f"the figures of samples: {_other_samples(edit)}")
        return {name: value for name, value in found.items() if not (edit and name in OF_SAMPLES)}
    reason = "is of other models" if found else "is not there"
    missing.append(f"the figures: {file} {reason}; `python -m evaluation.evaluate` measures these models")
    return {}


def _other_samples(edit: str) -> str:
    return f"{edit} was edited since they were drawn; `dvc repro` draws and measures others"


def _picture(run: Path, identities: dict[str, str], edit: str | None, missing: list[str]) -> bytes | None:
    """The picture of samples. `edit`: what was edited since they were drawn. Then there is none."""
    try:
        samples = read_manifest(run / paths.SAMPLES, "samples", contents=False)
        if samples.parents == identities and not edit:
            return samples.read(paths.SAMPLE_GRID.name)
        other = f"{run / paths.SAMPLES} is of other models; `python -m sampling.sample` draws those of these models"
        reason = _other_samples(edit) if samples.parents == identities and edit else other
    except UserError as error:
        reason = str(error)
    missing.append(f"the picture: {reason}")
    return None
