"""Where a pipeline's models come from and go to: a run's folder, a folder of one's own, the Hub."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch

from sampling import checks
from stage1_vqvae.decoder import LIKELIHOOD, load_decoder
from stage1_vqvae.model import load_vqvae
from stage2_prior.priors.build import load_prior
from tessera import paths
from tessera.artifacts.manifests import Manifest
from tessera.artifacts.publishing import new_folder, scratch
from tessera.errors import UserError

# Imported by their names, when they are first used: neither the Hub nor the text of a card is code of the stages that
# load a pipeline, and an edit of either runs none of them again.
HUB, SAVING = "sampling.hub", "sampling.saving"


class Published:
    """Loads, saves and publishes a pipeline.

    A saved pipeline is a folder with the folders `vqvae`, `prior` and, if the pipeline draws with the refined decoder,
    `decoders/refined`, each of which loads from its own files alone. Beside them lie README.md, which is the card that
    the Hub shows; samples.png; and .eval_results, which the Hub's leaderboards read. A folder of a run, such as models,
    has the same folders.

    Attributes:
        source: what the models were loaded from, for people; "" if they were not loaded.
        folder: the folder that they were loaded from; None for the Hub, or if they were not loaded.
        manifests: of the published models by kind, where they were loaded.
        beside: the bytes of the card and of what belongs to it, by file name, where `from_pretrained` found them.
    """

    source: str = ""
    folder: Path | None = None
    manifests: dict[str, Manifest]
    beside: dict[str, bytes]

    def __init__(self) -> None:
        self.manifests, self.beside = {}, {}

    @property
    def parents(self) -> dict[str, str]:
        """The identities of the published models by kind, where they were loaded."""
        return {kind: manifest.identity for kind, manifest in self.manifests.items()}

    @classmethod
    def load(
        cls,
        folder: Path | str = "models",
        device: torch.device | str | None = None,
        precision: str = "fp32",
        decoder: str = LIKELIHOOD,
    ) -> Self:
        """Load FOLDER/vqvae and FOLDER/prior, and FOLDER/decoders/refined for the refined decoder.

        Args:
            device: where to; None for the GPU if there is one.
            precision: of the prior while it draws codes, fp32 or bf16. In bf16 drawing is faster, the prior is not
                exactly the trained one, and by rounding its codes depend on `batch_size`. Likelihoods are fp32.
            decoder: which one turns codes into images: likelihood, whose p(x | z) gives the bits; or refined.

        Raises:
            UserError: there is no such device or decoder, a model is missing or damaged, or the prior or the decoder
                was made for another VQ-VAE.
        """
        folder, where = Path(folder), checks.device(device)
        checks.warn_of_other_checkout(Path.cwd())
        vqvae, vqvae_manifest = load_vqvae(folder / "vqvae")
        prior, prior_manifest = load_prior(folder / "prior")
        prior_manifest.require_parent("vqvae", vqvae_manifest.identity, folder / "prior")
        shown, decoder_manifest = load_decoder(folder / paths.DECODERS.name, decoder, vqvae, vqvae_manifest)
        pipeline = cls(vqvae, prior, where, precision, shown)
        pipeline.folder, pipeline.source = folder, str(folder)
        pipeline.manifests = {"vqvae": vqvae_manifest, "prior": prior_manifest}
        pipeline.manifests |= {"decoder": decoder_manifest} if decoder_manifest else {}
        return pipeline

    @classmethod
    def from_pretrained(
        cls,
        source: Path | str,
        *,
        revision: str | None = None,
        token: str | None = None,
        device: torch.device | str | None = None,
        precision: str = "fp32",
        decoder: str = LIKELIHOOD,
    ) -> Self:
        """Load a folder, or a model of the Hub. A folder on this machine comes first.

        Of a model of the Hub only the files that a pipeline has are downloaded, into the Hub's own cache. A model that
        is in the cache loads without network.

        Args:
            source: a folder, see `load`; or a model's id on the Hub, OWNER/NAME.
            revision: of a model of the Hub: a branch, a tag or a commit; None for the newest version. A commit always
                names the same files.
            token: of the Hub, for a private model; None for the one of `hf auth login` or HF_TOKEN.
            device, precision, decoder: see `load`.

        Raises:
            UserError: see `load`; or the Hub has no such model or revision, or cannot be reached.
        """
        hub, options = import_module(HUB), {"device": device, "precision": precision, "decoder": decoder}
        if hub.is_id(source) and not Path(source).exists():
            with hub.downloaded(str(source), revision, token, import_module(SAVING).FILES) as (folder, name):
                pipeline = hub.naming(name, folder, lambda: cls._with_card(folder, options))
            pipeline.folder, pipeline.source = None, name
            return pipeline
        if revision is not None:
            raise UserError(f"revision: {source} is a folder, which has no revisions; leave it out")
        return cls._with_card(Path(source), options)

    @classmethod
    def _with_card(cls, folder: Path, options: dict[str, Any]) -> Self:
        pipeline = cls.load(folder, **options)
        pipeline.beside = import_module(SAVING).beside(folder)
        return pipeline

    def save_pretrained(
        self,
        folder: Path | str,
        *,
        run: Path | str | None = None,
        license: str | None = None,
        dataset: str | None = None,
    ) -> Path:
        """Write the models, a card, and what belongs to it into a new folder, which loads where Tessera is installed.

        The card is written from the run that made the models. Models that `from_pretrained` loaded with a card keep
        this card, edited or not.

        Args:
            folder: it must not be there yet, or be empty, and cannot be the current one. A symbolic link stays, and
                the folder that it leads to is written.
            run: the folder of the run that made the models, with params.yaml and results; None: the one that the models
                were loaded from, if it lies in a run.
            license: a licence as the Hub names it, such as "mit". Without it the card says that none is given.
            dataset: the id on the Hub of the data that the figures were measured on. The Hub's leaderboards need it.
                None: the run's own source, if that is an id.

        Returns:
            The folder.

        Raises:
            UserError: the folder holds something, or is the current one; see also `sampling.saving.write`.
        """
        folder = new_folder("folder", Path(folder))
        place = Path(os.path.realpath(folder))
        if place == Path.cwd():
            raise UserError(f"folder: {folder} is the current folder, which cannot be replaced; name a new folder")
        with scratch(place) as staging:
            whole = staging / place.name  # inside, since the lock on `staging` itself is held
            whole.mkdir()
            import_module(SAVING).write(self, whole, place.name, run, license, dataset)
            os.replace(whole, place)
        return folder

    def push_to_hub(
        self,
        repo_id: str,
        *,
        revision: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        message: str = "Models and card",
        run: Path | str | None = None,
        license: str | None = None,
        dataset: str | None = None,
    ) -> str:
        """Upload what `save_pretrained` would write, in one commit of a model on the Hub, which is made if need be.

        Files of an earlier pipeline that this one does not have, such as its figures and its refined decoder, are
        deleted there in the same commit. All other files stay as they are.

        Args:
            repo_id: the model's id, OWNER/NAME.
            revision: the branch, which is made if need be; None for the main one.
            private: whether a new model is private; None: as the owner's account has it. True is refused for a
                model that is there already and public.
            token: of the Hub, with the right to write; None for the one of `hf auth login` or HF_TOKEN.
            message: the commit's.
            run, license, dataset: see `save_pretrained`.

        Returns:
            The address of the commit.

        Raises:
            UserError: see `save_pretrained`; or there is no token, the token does not suffice, or the Hub cannot be
                reached.
        """
        hub = import_module(HUB)
        hub.require_id(repo_id)
        hub.require_token(token)
        with TemporaryDirectory() as place:
            saving = import_module(SAVING)
            saving.write(self, Path(place), repo_id, run, license, dataset)
            return hub.upload(Path(place), repo_id, revision, private, token, message, saving.WRITTEN)
