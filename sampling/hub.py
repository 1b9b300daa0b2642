"""The Hugging Face Hub: models come from it and go to it. Its errors become one line each."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from tessera.errors import UserError

ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
LOG_IN = "log in by `hf auth login`, or set HF_TOKEN"
WRITE = "take one that may write there, from the settings of your account"

Loaded = TypeVar("Loaded")

# What is said of an error of huggingface_hub, or of the library beneath it, by the first name in its class's ancestry.
# All libraries of the Hub are imported inside functions, and their exceptions change modules between versions.
SAID = {
    "GatedRepoError": f"its owner grants access on request; ask for it on the model's page, then {LOG_IN}",
    "RevisionNotFoundError": "there is no revision {revision!r} of it; choose a branch, tag or commit from its page",
    "RepositoryNotFoundError": (
        "there is no such folder here and no such model on the Hub, or the model is private; check the name, or "
        f"{LOG_IN}"
    ),
    "LocalTokenNotFoundError": f"there is no token of the Hub on this machine; {LOG_IN}",
    "HFValidationError": "no id of the Hub; expected OWNER/NAME, of letters, digits, '-', '_' and '.'",
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE keeps the Hub's library from the network; unset it to {task}",
    "IncompleteSnapshotError": "a part of it is not in the cache, and the Hub cannot be reached; check the network",
    "LocalEntryNotFoundError": (
        "there is no such folder here, it is not in the Hub's cache, and the Hub cannot be reached; check the name, "
        "the network and HF_HUB_OFFLINE"
    ),
    "TransportError": "the Hub cannot be reached ({reason}); check the network",
}
STATUS = {401: f"the Hub knows no such token; {LOG_IN}", 403: f"the token does not suffice to {{task}}; {WRITE}"}


def is_id(source: object) -> bool:
    """Whether something may be a model's id on the Hub: text OWNER/NAME."""
    return isinstance(source, str) and bool(ID.fullmatch(source))


def require_id(repo_id: str) -> None:
    """Refuses what is no id.

    Raises:
        UserError: with the form of an id.
    """
    if not is_id(repo_id):
        raise UserError(f"{repo_id!r}: {SAID['HFValidationError']}")


def require_token(token: str | None) -> None:
    """Refuses to go on without a token of the Hub.

    Args:
        token: the one that was given; None: this machine must have one.

    Raises:
        UserError: there is none.
    """
    from huggingface_hub import get_token

    if not (token or get_token()):
        raise UserError(SAID["LocalTokenNotFoundError"])


@contextmanager
def downloaded(
    repo_id: str, revision: str | None, token: str | None, files: Sequence[str]
) -> Iterator[tuple[Path, str]]:
    """Download some files of a model, and yield a folder with them and the name of what was downloaded.

    The Hub's cache holds symbolic links to files that other models may share. Published folders refuse links, since
    what they lead to can be changed from outside. So the files are copied out of the cache, and the copy is deleted at
    the end.

    Args:
        files: patterns of the files' names. Others are not downloaded.

    Raises:
        UserError: the Hub has no such model or revision or cannot be reached, or the model has no such files.
    """
    from huggingface_hub import snapshot_download

    with _explained(repo_id, revision, "download"):
        snapshot = Path(snapshot_download(repo_id, revision=revision, token=token, allow_patterns=list(files)))
    name = f"{repo_id} at {snapshot.name[:12]}"
    found = [path for pattern in files for path in snapshot.glob(pattern) if path.is_file()]
    if not (snapshot / "vqvae" / "manifest.json").is_file():
        raise UserError(f"{name}: no pipeline of Tessera, since it has no vqvae/manifest.json")
    with TemporaryDirectory() as place:
        for path in found:
            copy = Path(place) / path.relative_to(snapshot)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        yield Path(place), name


def naming(name: str, folder: Path, load: Callable[[], Loaded]) -> Loaded:
    """What `load` returns. Its messages name the model in place of the folder that its files were copied to.

    Raises:
        UserError: the files of the model cannot be loaded.
    """
    try:
        return load()
    except UserError as error:
        reason = str(error).replace(f"{folder}/", "").split("; make it anew")[0]
        raise UserError(f"{name}: {reason}; tell its owner, or name another revision") from error


def upload(
    folder: Path,
    repo_id: str,
    revision: str | None,
    private: bool | None,
    token: str | None,
    message: str,
    own: Sequence[str] = (),
) -> str:
    """Upload a folder in one commit. The model and the branch are made if need be.

    Args:
        private: whether a new model is private; None: as the owner's account has it.
        own: names of files that belong to a model. Those on the Hub that the folder lacks are deleted in this commit.

    Returns:
        The address of the commit.

    Raises:
        UserError: the Hub refuses it or cannot be reached; or a model that is to be private was there and is public.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with _explained(repo_id, revision, "upload"):
        api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.repo_info(repo_id).private:
            raise UserError(
                f"{repo_id}: it was on the Hub before and is public; make it private in its settings there, or leave "
                "`private` out; nothing is uploaded"
            )
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo_id, folder_path=folder, revision=revision, commit_message=message, delete_patterns=list(own)
        )
    return str(done.commit_url)


@contextmanager
def _explained(repo_id: str, revision: str | None, task: str) -> Iterator[None]:
    """Turn the errors of the Hub's library that a user can mend into one line."""
    try:
        yield
    except Exception as error:
        names = [kind.__name__ for kind in type(error).__mro__]
        status = getattr(getattr(error, "response", None), "status_code", None)
        said = next((SAID[name] for name in names if name in SAID), STATUS.get(status))
        reason = " ".join(str(error).split())[:200]
        if said is None and "HfHubHTTPError" in names:
            said = "the Hub answered {reason}"
        if said is None:
            raise
        raise UserError(f"{repo_id}: {said.format(revision=revision, task=task, reason=reason)}") from error
