"""Where the weights of feature networks come from: a file, a package, or torchvision's own download."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tessera.documents import read_bytes
from tessera.errors import UserError
from tessera.features.networks.base import FeatureNetwork
from tessera.features.networks.torch_files import LARGEST_FILE, read_torch_file

UNUSED = re.compile(r"(^|\.)num_batches_tracked$")  # counters that batch norms need in training only


@dataclass(frozen=True)
class Download:
    """A file that is fetched once into torch's own folder of downloads.

    Attributes:
        url: where it is.
        sha256: the first hexadecimal digits of its hash, or all of them.
    """

    url: str
    sha256: str

    def path(self, advice: str) -> Path:
        """The file, fetched if it is not there yet.

        Raises:
            UserError: it cannot be fetched or kept, or what came has another hash.
        """
        path = Path(torch.hub.get_dir()) / "checkpoints" / Path(self.url).name
        if path.exists():
            return path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(self.url, str(path), self.sha256, progress=False)
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{self.url}: cannot be fetched ({reason}); {advice}") from error
        return path


def read_weights(path: Path, advice: str, sha256: str = "") -> tuple[dict[str, Tensor], str]:
    """The tensors of a safetensors file, or of a .pth file, whose tensors alone are read.

    Args:
        advice: what the user is told to do about a failure.
        sha256: what the file's hash must begin with.

    Returns:
        The tensors by name, and the SHA-256 of the file.

    Raises:
        UserError: the file is missing, damaged, of another kind, or has another hash.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if path.suffix in (".pth", ".pt"):
        tensors, data = read_torch_file(path, advice)
    else:
        data = read_bytes(path, LARGEST_FILE, advice)
        try:
            tensors = load(data)
        except SafetensorError as error:
            raise UserError(f"{path}: not a readable safetensors file ({error}); {advice}") from error
    found = hashlib.sha256(data).hexdigest()
    if not found.startswith(sha256):
        raise UserError(f"{path}: its SHA-256 begins with {found[:16]}, expected {sha256[:16]}; {advice}")
    return tensors, found


def load_weights(network: nn.Module, tensors: dict[str, Tensor], origin: object, advice: str) -> None:
    """Load tensors into a network, all of whose parameters they must have. Tensors of other modules are left aside.

    Args:
        origin: what the tensors were read from, for messages.
        advice: what the user is told to do about a failure.

    Raises:
        UserError: a tensor is missing or of another shape.
    """
    wanted = {name: value for name, value in network.state_dict().items() if not UNUSED.search(name)}
    for name, value in wanted.items():
        if name not in tensors:
            raise UserError(f"{origin}: not the weights of this network: {name} is missing; {advice}")
        if tensors[name].shape != value.shape:
            shapes = f"{list(tensors[name].shape)}, expected {list(value.shape)}"
            raise UserError(f"{origin}: not the weights of this network: {name} is {shapes}; {advice}")
    network.load_state_dict({name: tensors[name] for name in wanted}, strict=False)


def load_pretrained(
    network: FeatureNetwork, file: str | None, otherwise: Callable[[str], Path], what: str, sha256: str
) -> None:
    """Load the weights of a network that was trained elsewhere, and note the hash of the file that they came from.

    Args:
        file: what the parameters give; None: none.
        otherwise: finds the file where the parameters give none. It takes the advice for its message.
        what: whose weights they are, for messages.
        sha256: what the hash of the file that `otherwise` finds begins with. Any file that is given is taken.

    Raises:
        UserError: the weights are missing, damaged or of another network.
    """
    advice = (
        f"give the weights of {what}, a .safetensors or .pth file, as `file` beside the network's name in params.yaml"
    )
    path = otherwise(advice) if file is None else Path(file)
    tensors, network.weights = read_weights(path, advice, sha256 if file is None else "")
    load_weights(network, tensors, path, advice)
