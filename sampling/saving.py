"""Writes a pipeline as a folder: its models, its card, and what belongs to the card."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sampling.card import NO_LICENSE, card, eval_results
from sampling.provenance import Provenance, read
from stage1_vqvae.decoder import LIKELIHOOD, REFINED
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
RESULTS = f"{EVAL_RESULTS}/tessera.yaml"
MODEL_FILES = tuple(f"{at}/{name}" for at in MODELS.values() for name in ("config.json", "model.safetensors", MANIFEST))
# All files that a saved pipeline may have, as patterns. Nothing else is downloaded from the Hub.
FILES = (*MODEL_FILES, *BESIDE)
# The files that are written for a pipeline. A pipeline without one of them deletes an earlier pipeline's on the Hub.
WRITTEN = (*MODEL_FILES, CARD, PICTURE, RESULTS)
LARGEST = 2**22  # bytes of a file beside the models
# The line of a card's section "Use" that loads the models: what is before their name, the name, the rest of the line.
NAMED = re.compile(
    r'(^## Use[ \t]*\r?\n(?:(?!^## ).)*?^pipeline = TwoStagePipeline\.from_pretrained\()("[^"\n]*")([^\n]*)',
    re.DOTALL | re.MULTILINE,
)
# A card's metadata between two lines "---", and what follows them. The lines may end as they do on Windows.
HEAD = re.compile(r"(\ufeff?\s*---[ \t]*\r?\n)(.*?)(^---[ \t]*(?:\r?\n|\Z).*)", re.DOTALL | re.MULTILINE)
LICENSE = re.compile(r"^license:.*\n(?:[ \t-].*\n)*", re.MULTILINE)
UNLICENSED = re.compile(r"(?:\r?\n){0,2}" + r"\s{1,4}".join(map(re.escape, NO_LICENSE.split())))
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
        if path.is_symlink() or (path.parent != folder and path.parent.is_symlink()):
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
        UserError: `run` did not make these models, or cannot be read; the licence has no such name; a dataset is named
            for a card that stays; or this card draws with a decoder that was not loaded.
    """
    if license is not None and not LICENSE_NAME.fullmatch(license):
        raise UserError(f"license: expected a name as the Hub writes it, such as mit or cc-by-4.0, got {license!r}")
    written = write_models(pipeline, folder)
    unchanged = written == pipeline.parents
    if unchanged and pipeline.beside and run is None:
        if dataset is not None:
            raise UserError(
                "dataset: these models came with a card, which stays; name the dataset when you save the run's own "
                "models, or edit the card"
            )
        _write_again(pipeline.beside, folder, name, license, REFINED if "decoder" in written else LIKELIHOOD)
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
        (folder / RESULTS).write_text(results, encoding="utf-8")
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
    if here is None or Path(os.path.realpath(here)).name != paths.MODELS.name:
        return None
    return here.parent if (here.parent / paths.PARAMS).is_file() else None


def _write_again(files: dict[str, bytes], folder: Path, name: str, license: str | None, decoder: str) -> None:
    """Write the card that the models were loaded with, which now loads them by `name`, and what belongs to it.

    The card is text from outside and may be edited by hand. It is changed as text, and never parsed.

    Args:
        decoder: the one that is written.

    Raises:
        UserError: the card loads the refined decoder, and `decoder` is another one.
    """
    text = files[CARD].decode("utf-8", errors="replace")
    loads = NAMED.search(text)
    if loads and f'decoder="{REFINED}"' in loads[3] and decoder != REFINED:
        raise UserError(
            f'decoder: this card draws with the refined decoder; load with decoder="{REFINED}" '
            f"(sampling.decoder: {REFINED})"
        )
    for file, content in files.items():
        path = folder / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    text = NAMED.sub(lambda found: f'{found[1]}"{name}"{found[3]}', text, count=1)
    if license:
        end = "\r\n" if "\r\n" in text else "\n"
        text = UNLICENSED.sub("", text)
        found = HEAD.match(text)
        opening, head, rest = found.groups() if found else (f"---{end}", "", f"---{end}{text}")
        text = f"{opening}license: {license}{end}{LICENSE.sub('', head)}{rest}"
    (folder / CARD).write_bytes(text.encode())
