"""What a run's models were made with is compared with params.yaml, value by value."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from sampling.edits import made_and_now, tell_of_edits
from tessera.artifacts.edited import first_difference
from tessera.parameters import Params

REFINE = {
    "refine_decoder.name": "objective",
    "refine_decoder.objective.adversarial.discriminator.name": "patch",
    "refine_decoder.objective.adversarial.discriminator.projected": {"matching": 0.0},
}


def published(params: Params) -> Any:
    """A pipeline with a refined decoder, as these parameters make it."""
    config, section, prior = params.stage1_vqvae.model(), params.refine_decoder, params.stage2_prior
    network = config["network"]
    if section.added_blocks:
        sizes = network[network["name"]] | {"added_blocks": section.added_blocks}
        network = network | {network["name"]: sizes}
    return SimpleNamespace(
        vqvae=SimpleNamespace(config=config),
        decoder=SimpleNamespace(config=config | {"network": network, "objective": section.objective.values()}),
        prior=SimpleNamespace(name=prior.name, params=prior.config()["params"]),
    )


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("refine_decoder.added_blocks", 1, 0),
        ("refine_decoder.added_blocks", 0, 2),
        ("refine_decoder.objective.adversarial.weight", 0.3, 0.2),
    ],
)
def test_an_edit_of_the_refined_decoder_is_seen(
    params: Callable[..., Params], capsys: pytest.CaptureFixture[str], path: str, old: float, new: float
) -> None:
    pipeline = published(made := params(REFINE | {path: old}))
    tell_of_edits(pipeline, made)
    assert capsys.readouterr().err == ""
    now = params(REFINE | {path: new})
    found = [first_difference(*each[2:]) for each in made_and_now(pipeline, now)]
    assert [each for each in found if each] == [(path, old, new)]
    tell_of_edits(pipeline, now)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: models/decoders/refined was made with {path} {old!r}, params.yaml says {new!r}")
