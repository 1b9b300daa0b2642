"""Writes a pipeline as a folder: its models, its card, and what belongs to the card."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sampling.card import card, eval_results
from sampling.provenance import Provenance, read
from stage1_vqvae.decoder import REFINED
from stage2_prior.priors.build import prior_config
from tessera import paths
from tessera.artifacts.manifests import MANIFEST, Manifest, read_manifest
from tessera.artifacts.models import save_model
from tessera.console import say
from tessera.documents import read_bytes
from tessera.errors import UserError

if TYPE_CHECKING:
    from sampling.published import Published

CARD, PICTURE, EVAL_RESULTS = "README.md", "samples.png", ".eval_results"
DECODER = f"{paths.DECODERS.name}/{REFINED}"
MODELS = {"vqvae": "vqvae", "prior": "prior", "decoder": DECODER}  # the folder of each kind of model
BESIDE = (CARD, PICTURE, f"{EVAL_RESULTS}/*.yaml")
# All files that a saved pipeline has, as patterns. Nothing else is downloaded from the Hub.
FILES = (
    *(f"{folder}/{name}" for folder in MODELS.values() for name in ("config.json", "model.safetensors", MANIFEST)),
    *BESIDE,
)
LARGEST = 2**22  # bytes of a file beside the models
NAMED = re.compile(r'from_pretrained\("[^"\n]*"')  # how a card loads its models
HEAD = re.compile(r"(---\n)(.*?)(^---\n.*)", re.DOTALL | re.MULTILINE)  # a card's metadata, and what follows them
LICENSE = re.compile(r"^license:.*\n", re.MULTILINE)
LICENSE_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")


def beside(folder: Path) -> dict[str, bytes]:
    """The card of a saved pipeline and what belongs to it, by file name; empty if there is no card.

    Raises:
        UserError: one of the files is a symbolic link, is no regular file, or is too large.
    """
    if not (folder / CARD).is_file():
        return {}
    found = {}
    for path in sorted(path for pattern in BESIDE for path in folder.glob(pattern)):
        if path.is_symlink() or path.parent.is_symlink():
            raise UserError(f"{path}: a symbolic link, which could be changed from outside; replace it by the file")
        found[path.relative_to(folder).as_posix()] = read_bytes(path, LARGEST)
    return found


def write(
    pipeline: Published,
    folder: Path,
    name: str,
    run: Path | str | None = None,
    license: str | None = None,
    dataset: str | None = None,
) -> None:
    """Write a pipeline into an empty folder.

    Models that are unchanged since they were loaded get the same bytes again, and so the same identity.

    Args:
        name: what the card calls the pipeline, and loads it by.
        run, license, dataset: see `Published.save_pretrained`.

    Raises:
        UserError: `run` did not make these models, or cannot be read; the licence has no such name; or a dataset is
            named for a card that stays.
    """
    if license is not None and not LICENSE_NAME.fullmatch(license):
        raise UserError(f"license: expected a name as the Hub writes it, such as mit or cc-by-4.0, got {license!r}")
    written = write_models(pipeline, folder)
    unchanged = written == pipeline.parents
    if unchanged and pipeline.beside and run is None:
        if dataset is not None:
            raise UserError("dataset: these models came with a card, which stays; name the `run` to write a new card")
        _write_again(pipeline.beside, folder, name, license)
        return
    run = Path(run) if run is not None else _run_of(pipeline) if unchanged else None
    told = read(run, pipeline, written) if run else Provenance()
    for reason in told.missing:
        say(f"note: the card leaves out {reason}")
    dataset = dataset or told.hub_id
    if told.picture:
        (folder / PICTURE).write_bytes(told.picture)
    if results := eval_results(told, dataset):
        (folder / EVAL_RESULTS).mkdir()
        (folder / EVAL_RESULTS / "tessera.yaml").write_text(results, encoding="utf-8")
    elif told.metrics:
        say(f"note: no {EVAL_RESULTS}, since leaderboards go by a dataset of the Hub and none is named")
    text = card(pipeline, told, name, license, dataset, PICTURE if told.picture else None)
    (folder / CARD).write_text(text, encoding="utf-8")


def write_models(pipeline: Any, folder: Path) -> dict[str, str]:
    """Write the models as they are in memory, and return their identities by kind.

    A prior and a decoder are written as children of the VQ-VAE beside them.
    """
    models = {"vqvae": (pipeline.vqvae, pipeline.vqvae.config), "prior": (pipeline.prior, prior_config(pipeline.prior))}
    if pipeline.decoder is not pipeline.vqvae:
        models["decoder"] = pipeline.decoder, {"available": True, "vqvae": pipeline.decoder.config}
    identities: dict[str, str] = {}
    for kind, (model, config) in models.items():
        loaded: Manifest | None = pipeline.manifests.get(kind)
        parents = (loaded.parents if loaded else {}) | ({"vqvae": identities["vqvae"]} if identities else {})
        place = folder / MODELS[kind]
        save_model(place, kind, config, model.state_dict(), parents, (loaded.training if loaded else None) or None)
        identities[kind] = read_manifest(place, kind, contents=False).identity
    return identities


def _run_of(pipeline: Published) -> Path | None:
    """The folder of the run that a pipeline's models lie in; None if they lie in none."""
    here = pipeline.folder
    if here is None or here.resolve().name != paths.MODELS.name:
        return None
    return here.parent if (here.parent / paths.PARAMS).is_file() else None


def _write_again(files: dict[str, bytes], folder: Path, name: str, license: str | None) -> None:
    """Write the card that the models were loaded with, which now loads them by `name`, and what belongs to it.

    The card is text from outside and may be edited by hand. It is changed as text, and never parsed.
    """
    for file, content in files.items():
        path = folder / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    text = files[CARD].decode("utf-8", errors="replace")
    text = NAMED.sub(lambda _: f'from_pretrained("{name}"', text)
    if license:
        opening, head, rest = HEAD.match(text).groups() if HEAD.match(text) else ("---\n", "", f"---\n{text}")
        text = f"{opening}license: {license}\n{LICENSE.sub('', head)}{rest}"
    (folder / CARD).write_text(text, encoding="utf-8")
