"""The stage that trains a decoder on: what it publishes, what it leaves alone, and who decodes with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stage1_vqvae import extract, reconstruct, refine, train
from stage1_vqvae.decoder import LIKELIHOOD, REFINED, load_decoder, load_refined
from stage1_vqvae.model import load_vqvae
from tessera import paths
from tessera.cli import states
from tessera.errors import UserError
from tessera.images.pixels import to_float
from tessera.images.prepared import open_prepared

pytestmark = pytest.mark.usefixtures("on_the_cpu")
Write = Callable[..., None]
ON = {
    "refine_decoder.name": "objective",
    "refine_decoder.objective": {"perceptual": {"weight": 0.0}, "adversarial": {"weight": 0.5}},
}


def bytes_of(*folders: Path) -> dict[str, bytes]:
    return {path.as_posix(): path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_none_publishes_a_folder_that_says_so_and_the_likelihoods_that_never_changes(
    write_params: Write, write_prepared: Write
) -> None:
    write_prepared()
    write_params()
    assert train.main([]) == 0 and refine.main([]) == 0
    model, manifest = load_vqvae(paths.VQVAE)
    with pytest.raises(UserError, match=r"there is no refined decoder, since refine_decoder\.name is none; choose"):
        load_decoder(paths.DECODERS, REFINED, model, manifest)
    assert load_decoder(paths.DECODERS, LIKELIHOOD, model, manifest) == (model, None)
    with pytest.raises(UserError, match="decoder: expected likelihood or refined, got 'sharp'"):
        load_decoder(paths.DECODERS, "sharp", model, manifest)
    before = bytes_of(paths.DECODERS / LIKELIHOOD)
    write_params({"stage1_vqvae.training.seed": 1})
    assert train.main([]) == 0 and refine.main([]) == 0
    assert bytes_of(paths.DECODERS / LIKELIHOOD) == before and len(before) == 1
    assert json.loads((paths.RESULTS / "refine_decoder" / "metrics.json").read_text())["unavailable"]


@pytest.mark.slow
def test_a_refined_decoder_leaves_codes_and_vqvae_and_belongs_to_them(
    write_params: Write, write_prepared: Write
) -> None:
    write_prepared()
    write_params()
    for stage in (train, extract, refine, reconstruct):
        assert stage.main([]) == 0
    before = bytes_of(paths.VQVAE, paths.CODES)
    picture = (reconstruct.IMAGES / "validation.png").read_bytes()
    write_params(ON)
    assert refine.main([]) == 0 and extract.main([]) == 0
    assert bytes_of(paths.VQVAE, paths.CODES) == before
    model, manifest = load_vqvae(paths.VQVAE)
    refined, found = load_refined(paths.DECODERS / REFINED)
    assert found.parents == {"vqvae": manifest.identity, "prepared": manifest.parents["prepared"]}
    images = to_float(open_prepared(paths.PREPARED)["validation"].pixels(slice(None)))
    with torch.no_grad():
        codes = model.encode(images)
        assert all(torch.equal(a, b) for a, b in zip(codes, refined.encode(images), strict=True))
        assert not torch.equal(model.decode(codes), refined.decode(codes))
    assert model.has_likelihood and not refined.has_likelihood
    (run,) = Path(".state/refine_decoder").iterdir()
    states.main(["--publish", f"refine_decoder/{run.name}", "again"])
    again = Path("again/models/decoder")
    assert bytes_of(again) == {
        f"{again}/{Path(name).name}": b for name, b in bytes_of(paths.DECODERS / REFINED).items()
    }
    assert reconstruct.main([]) == 0
    assert (reconstruct.IMAGES / "validation.png").read_bytes() == picture
    write_params({"sampling.decoder": "refined"})
    assert reconstruct.main([]) == 0
    assert (reconstruct.IMAGES / "validation.png").read_bytes() != picture
    write_params({"stage1_vqvae.training.seed": 1})
    assert train.main([]) == 0
    with pytest.raises(UserError, match="refined: made from another vqvae"):
        load_decoder(paths.DECODERS, REFINED, *load_vqvae(paths.VQVAE))
