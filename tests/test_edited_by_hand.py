"""A stage that is started by hand after an edit says which earlier result was made with other parameters."""

from __future__ import annotations

import pytest

from evaluation import evaluate, train_classifier
from sampling import sample
from stage0_images import prepare
from stage1_vqvae import extract, reconstruct
from stage1_vqvae import train as train_vqvae
from stage2_prior import train as train_prior

STAGES = (prepare, train_vqvae, reconstruct, extract, train_prior, train_classifier, sample, evaluate)
SMALL = {
    "classifier.training.steps": 4,
    "classifier.training.warmup_steps": 1,
    "classifier.training.validate_every": 2,
    "sampling.images": 6,
    "sampling.grid_columns": 2,
}
CODES, PRIOR = "stage1_vqvae.quantizer.codebook_size", "stage2_prior.width"


@pytest.mark.slow
def test_edits_between_stages_are_said(in_tmp, write_params, capsys):
    """K, the size of the images and the prior are edited after a whole run; each later stage names what it reads."""
    (in_tmp / "data").mkdir()
    (in_tmp / "data" / "embedded.txt").touch()
    write_params(SMALL)
    for stage in STAGES:
        assert stage.main([]) == 0
        assert "warning:" not in capsys.readouterr().err, stage.__name__
    old = {"data.width": 8, CODES: 8, PRIOR: 16, "stage2_prior.name": "transformer"}
    edits = {
        ("data.width", 16): "data/prepared was made with data.width 8, params.yaml says 16; it is used as it is; "
        "`python -m stage0_images.prepare` makes it anew",
        (CODES, 4): "models/vqvae was made with stage1_vqvae.quantizer.vq.codebook_size 8, params.yaml says 4",
        (PRIOR, 32): "models/prior was made with stage2_prior.transformer.width 16, params.yaml says 32",
        ("stage2_prior.name", "pixelsnail"): "models/prior was made with stage2_prior.name 'transformer'",
    }
    readers = {
        "data.width": {reconstruct},
        CODES: {reconstruct, sample, evaluate},
        PRIOR: {sample, evaluate},
        "stage2_prior.name": {sample, evaluate},
    }
    for (path, value), said in edits.items():
        write_params(SMALL | old | {path: value})
        for stage in (reconstruct, sample, evaluate):
            assert stage.main([]) == 0
            printed = capsys.readouterr().err
            assert (f"warning: {said}" in printed) == (stage in readers[path]), (path, stage.__name__, printed)
            assert printed.count("warning:") == (stage in readers[path])
    write_params(SMALL | old | {"data.width": 16, CODES: 4})
    data, codes = "data/prepared was made with data.width 8", "data/codes was made with codebooks of stage1_vqvae.0 8"
    for stage, said in ((train_prior, codes), (train_classifier, data), (train_vqvae, data)):
        assert stage.main([]) == 0
        assert f"warning: {said}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("made", "now", "expected"),
    [
        ({}, {"a": 1}, None),
        ({"a": 1, "b": [1, 2]}, {"a": 1, "b": [1, 2], "c": 3}, None),
        (
            {"a": {"b": 1, "name": "x", "x": {"k": 1}}},
            {"a": {"b": 2, "name": "y", "y": {"k": 2}}},
            ("a.name", "x", "y"),
        ),
        ({"a": {"b": [1]}}, {"a": {"b": [2]}}, ("a.b.0", 1, 2)),
        ({"a": [1]}, {"a": [1, 2]}, ("a", [1], [1, 2])),
        ({"a": 1}, {"a": {"b": 1}}, ("a", 1, {"b": 1})),
    ],
)
def test_the_first_difference_is_found(made, now, expected):
    from tessera.artifacts.edited import first_difference

    assert first_difference(made, now, "") == expected
