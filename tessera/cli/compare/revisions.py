"""Parameters and figures of a run, read from Git or from the working folder. DVC is not needed.

A DVC experiment is a commit that refs/exps/../../NAME names. Its metrics.json files are part of it, since dvc.yaml does
not cache them.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tessera import paths
from tessera.artifacts.manifests import read_manifest
from tessera.documents import JSON_BYTES, YAML_BYTES, parse_json, parse_yaml, read_bytes
from tessera.errors import UserError
from tessera.parameters import Params, validate
from tessera.parameters.sections import Choice, Section
from tessera.recorded import edited_stages

WORKSPACE = "workspace"
METRICS = "metrics.json"


@dataclass(frozen=True)
class Parameters:
    """The parameters of a run.

    Attributes:
        values: of the parameters that the run uses, by dotted path. Of a choice only the chosen option counts, and its
            name is left out of the path: `stage2_prior.layers` is the layers of whichever prior is chosen.
        places: the path of each with the names of options.
        everything: all values, by the path with the names of options, also of options that are not chosen.
    """

    values: dict[str, Any]
    places: dict[str, str]
    everything: dict[str, Any]


@dataclass
class Run:
    """What is known of one run.

    Attributes:
        label: the name that the user gave.
        commit: its full hash; empty for the working folder.
        parameters: see `Parameters`.
        figures: values by STAGE:PATH.
        stages: the stages that have figures.
        data: the hash that DVC recorded of the prepared images; "" where it recorded none, or if in the working folder
            `data` was edited since.
        notes: what the user must know to read the values, a sentence each.
    """

    label: str
    commit: str
    parameters: Parameters
    figures: dict[str, Any]
    stages: set[str]
    data: str = ""
    notes: list[str] = field(default_factory=list)


def git(*arguments: str) -> bytes | None:
    """What a Git command prints, or None if it fails.

    Raises:
        UserError: Git is not installed.
    """
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        raise UserError("compare: reads revisions by git, which is not installed; install git") from None
    return done.stdout if done.returncode == 0 else None


def experiments() -> dict[str, list[tuple[str, str]]]:
    """The DVC experiments by name: of each the hashes of the commit that it started from, and of its own."""
    found: dict[str, list[tuple[str, str]]] = {}
    for line in (git("for-each-ref", "--format=%(objectname) %(refname)", "refs/exps") or b"").decode().splitlines():
        commit, _, ref = line.partition(" ")
        parts = ref.split("/")  # refs/exps/AB/CDEF.../NAME; other references of DVC's own are shorter or not hashes
        if len(parts) == 5 and len(parts[2]) == 2:
            found.setdefault(parts[4], []).append((parts[2] + parts[3], commit))
    return found


def commit_of(name: str) -> str:
    """The full hash of the commit that a revision or an experiment's name means.

    Raises:
        UserError: nothing has this name, or several experiments have it.
    """
    if git("rev-parse", "--git-dir") is None:
        raise UserError("compare: this folder is no Git repository; run `git init`, and commit the runs to compare")
    if found := git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"):
        return found.decode().strip()
    named = experiments()
    here = named.get(name, [])
    if len(here) > 1:
        head = (git("rev-parse", "HEAD") or b"").decode().strip()
        here = [one for one in here if one[0] == head] or here
    if len(here) > 1:
        hashes = ", ".join(commit[:7] for _, commit in here)
        raise UserError(f"{name}: {len(here)} experiments have this name; give one of their hashes: {hashes}")
    if here:
        return here[0][1]
    if name == "HEAD":
        raise UserError("HEAD: there is no commit yet; commit the first run: git add dvc.lock params.yaml results")
    known = f" ({', '.join(sorted(named)[:8])})" if named else ""
    raise UserError(f"{name}: no revision of Git and no DVC experiment{known} has this name; `git log` lists commits")


def used(raw: Any, origin: str) -> tuple[Parameters, Params | None, list[str]]:
    """The parameters of a run. `runtime`, which changes no result, is left out.

    Returns:
        The values; the validated parameters, or None if they are of another version of this program; and what to say.
    """
    try:
        params = validate(raw, origin)
    except UserError as error:
        fault = str(error).removeprefix(f"{origin}: ").split("; ")[0]
        note = f"{origin}: written for another version ({fault}), so its values are shown as they stand in the file"
        tree = {name: value for name, value in raw.items() if name != "runtime"} if isinstance(raw, dict) else {}
        found = list(leaves(tree))
        everything = {place: value for _, place, value in leaves(tree, chosen_alone=False)}
        params, notes = None, [note]
    else:
        tree = {name: value for name, value in params.values().items() if name != "runtime"}
        found, notes = list(leaves(tree)), []
        everything = dict(_of_every_option(params, ""))
    values = {path: value for path, _, value in found}
    return Parameters(values, {path: place for path, place, _ in found}, everything), params, notes


def leaves(tree: Any, path: str = "", place: str = "", chosen_alone: bool = True) -> Iterator[tuple[str, str, Any]]:
    """Every value of a tree with its path, and the path at which it stands in the tree.

    The first path leaves out the name of a chosen option. A list of sections is numbered; an empty section is no value.

    Args:
        chosen_alone: whether values of options that are not chosen are left out.
    """
    if isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        tree = {str(index): item for index, item in enumerate(tree)}
    if not isinstance(tree, dict):
        yield path, place, tree
        return
    name = tree.get("name") if chosen_alone else None
    option = tree.get(name) if isinstance(name, str) else None
    for key, value in tree.items():
        below = f"{place}.{key}".lstrip(".")
        if isinstance(option, dict) and key == name:
            yield from leaves(value, path, below, chosen_alone)
        elif not isinstance(option, dict) or (key not in option and (not isinstance(value, dict) or key == "training")):
            # Beside the chosen option a file that is shown as it stands has the others. All share `training`.
            yield from leaves(value, f"{path}.{key}".lstrip("."), below, chosen_alone)


def _of_every_option(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every value of validated parameters by its path, those of the options that are not chosen too."""
    if isinstance(value, Choice):
        names = ["name", *value.shared_names(), *value.option_names()]
    elif isinstance(value, Section):
        names = list(type(value).model_fields)
    elif isinstance(value, tuple) and any(isinstance(item, Section) for item in value):
        for index, item in enumerate(value):
            yield from _of_every_option(item, f"{path}.{index}")
        return
    else:
        plain = list(value) if isinstance(value, tuple) else value
        yield from ((place, found) for _, place, found in leaves(plain, path, path))
        return
    for name in names:
        if getattr(value, name) is not None or not isinstance(value, Choice):
            yield from _of_every_option(getattr(value, name), f"{path}.{name}".lstrip("."))


def read_run(name: str, params: Path = paths.PARAMS) -> Run:
    """A run by a revision's name, an experiment's name, or "workspace".

    Args:
        params: the workspace's parameter file.

    Raises:
        UserError: there is nothing of this name, it has no params.yaml, or a file of it is damaged.
    """
    if name == WORKSPACE:
        run = _of(name, "", read_bytes(params, YAML_BYTES), dict(_files_here()))
        run.notes.extend(_made_anew(run))
        return run
    commit = commit_of(name)
    text = git("show", f"{commit}:./{paths.PARAMS.as_posix()}")
    if text is None:
        raise UserError(f"{name}: this revision has no {paths.PARAMS}; name one that has, from this folder")
    return _of(name, commit, text, dict(_files_of(commit)))


def read_file(run: Run, file: Path) -> bytes | None:
    """The contents of a small file of a run, by its path in the project; None if the run does not have it."""
    if run.commit:
        return git("show", f"{run.commit}:./{file.as_posix()}")
    return read_bytes(file, JSON_BYTES) if file.is_file() else None


def _of(name: str, commit: str, text: bytes, files: dict[str, bytes]) -> Run:
    parameters, params, notes = used(parse_yaml(text, f"{name}: {paths.PARAMS}"), f"{name}: {paths.PARAMS}")
    edited = edited_stages(params) if params and not commit else {}
    if stale := [stage for stage, path in edited.items() if path]:
        notes.append(
            f"{name}: params.yaml was edited since `dvc repro`, so the figures of {', '.join(stale)}, and of the "
            "stages after, are of other parameters than those shown"
        )
    figures: dict[str, Any] = {}
    for stage, data in files.items():
        origin = f"{name}: {paths.RESULTS.as_posix()}/{stage}/{METRICS}"
        figures |= {
            f"{stage}:{path}": value
            for _, path, value in leaves(parse_json(data, origin, finite=False), chosen_alone=False)
        }
    run = Run(name, commit, parameters, figures, set(files), notes=notes)
    if not edited.get("prepare"):
        run.data = _prepared(read_file(run, paths.DVC_LOCK))
    return run


def _prepared(lock: bytes | None) -> str:
    """The hash of the prepared images in a dvc.lock; empty if it is of no form that is known here."""
    with suppress(UserError, AttributeError, TypeError, KeyError):
        outs = parse_yaml(lock or b"", paths.DVC_LOCK)["stages"]["prepare"]["outs"]
        return next((str(out["md5"]) for out in outs if out["path"] == paths.PREPARED.as_posix()), "")
    return ""


def _made_anew(run: Run) -> Iterator[str]:
    """A note on the first model in this folder that is not known to be the one that `evaluate` measured."""
    for kind, folder in (("vqvae", paths.VQVAE), ("prior", paths.PRIOR)):
        measured = run.figures.get(f"evaluate:models.{kind}")
        if measured is None:
            continue
        try:
            found = read_manifest(folder, kind, contents=False).identity
        except UserError:  # DVC removes a model when its training begins
            yield (
                f"{run.label}: {folder.as_posix()} is not here. If it is being trained, the figures of evaluate are of "
                "an earlier one, and not of the parameters shown; otherwise `dvc checkout` may bring it back"
            )
            return
        if found != measured:
            yield (
                f"{run.label}: evaluate measured another {kind} than the one in {folder.as_posix()}, so its figures "
                "may be of other parameters than those shown; `dvc repro` measures the present one"
            )
            return


def _files_here() -> Iterator[tuple[str, bytes]]:
    for file in sorted(paths.RESULTS.glob(f"*/{METRICS}")):
        yield file.parent.name, read_bytes(file, JSON_BYTES)


def _files_of(commit: str) -> Iterator[tuple[str, bytes]]:
    listed = git("ls-tree", "-r", "-z", "--name-only", commit, f"{paths.RESULTS.as_posix()}/") or b""
    for file in map(Path, filter(None, listed.decode(errors="surrogateescape").split("\0"))):
        if file.name == METRICS and file.parent.parent == paths.RESULTS:
            yield file.parent.name, git("show", f"{commit}:./{file.as_posix()}") or b""
