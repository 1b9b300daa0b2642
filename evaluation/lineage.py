"""Which published folders belong together: who was made from whom."""

from __future__ import annotations

from pathlib import Path

from stage1_vqvae.decoder import LIKELIHOOD, REFINED
from tessera import paths
from tessera.artifacts.manifests import read_manifest
from tessera.errors import UserError

FOLDERS = {
    "prepared": paths.PREPARED,
    "vqvae": paths.VQVAE,
    "codes": paths.CODES,
    "prior": paths.PRIOR,
    "classifier": paths.CLASSIFIER,
    "samples": paths.SAMPLES,
}

# Who was made from whom, upstream first: the first mismatch is the one to mend.
LINEAGE = (
    ("vqvae", "prepared"),
    ("decoder", "vqvae"),
    ("codes", "prepared"),
    ("codes", "vqvae"),
    ("prior", "codes"),
    ("prior", "vqvae"),
    ("classifier", "prepared"),
    ("samples", "vqvae"),
    ("samples", "prior"),
    ("samples", "decoder"),
)


def check_lineage(folders: dict[str, Path] = FOLDERS, decoder: str = LIKELIHOOD) -> None:
    """Refuse artifacts that do not belong together.

    Args:
        decoder: which one turned codes into samples: likelihood or refined.

    Raises:
        UserError: one is missing, or names another parent than the one at hand.
    """
    if decoder == REFINED:
        folders = {**folders, "decoder": paths.DECODERS / REFINED}
    manifests = {kind: read_manifest(folder, kind, contents=False) for kind, folder in folders.items()}
    for child, parent in LINEAGE:
        if child in manifests and parent in manifests:
            manifests[child].require_parent(parent, manifests[parent].identity, folders[child])
    if decoder == LIKELIHOOD and "decoder" in manifests["samples"].parents:
        raise UserError(f"{paths.SAMPLES}: drawn by the refined decoder; {manifests['samples'].remedy}")
