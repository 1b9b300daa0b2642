"""A published model is built from known keys and the names of options only, whatever its config.json says."""

from __future__ import annotations

import copy

import pytest

from stage1_vqvae.decoder import load_refined
from stage1_vqvae.model import VQVAE, load_vqvae
from tessera.artifacts.models import save_model
from tessera.errors import UserError
from tessera.features.classifiers.build import build_classifier, load_classifier
from tessera.images.prepared import Stats

STATS = Stats((1, 8, 8), None, {"train": 9}, 0.0, 0.3)
BAD = [
    ("", {"further": 1}, "unknown key 'further'"),
    ("network", {"module": "os"}, "unknown key 'module'"),
    ("network", {"name": "os"}, "unknown option 'os'"),
    ("network", {"name": "base", "base": {}}, "unknown option 'base'"),
    ("network", {"name": "../../x", "../../x": {}}, "unknown option '../../x'"),
    ("network.conv", {"path": "/etc"}, "TypeError"),
    ("network.conv", {"channels": 10**6}, "a larger model than its weights"),
    ("network.conv", {"residual_blocks": 10**9}, "a larger model than its weights"),
    ("quantizer", {"vq2": {}}, "unknown key 'vq2'"),
    ("quantizer.vq", {"make": "os.system"}, "TypeError"),
    ("quantizer.vq", {"codebook_size": 10**8}, "a larger model than its weights"),  # which no parameter shows
    ("quantizer.vq", {"codebook_dim": 10**7}, "a larger model than its weights"),
    ("", {"image_shape": [1, 10**5, 10**5]}, "too large"),
    ("quantizer.vq", {"quantizer": {"name": "vq", "vq": {}}}, "TypeError"),
    ("likelihood", {"name": "gaussian", "gaussian": []}, "TypeError"),
    ("likelihood.gaussian", {"fit": "x"}, "TypeError"),
]


@pytest.mark.parametrize(("place", "change", "reason"), BAD)
def test_a_vqvae_is_built_from_known_keys_and_names_only(tmp_path, params, place, change, reason):
    config = params({"stage1_vqvae.network.conv.channels": 8}).stage1_vqvae.config(STATS)
    weights = VQVAE(config).state_dict()
    save_model(tmp_path / "good", "vqvae", config, weights, {})
    load_vqvae(tmp_path / "good")
    bad = copy.deepcopy(config)
    node = bad
    for key in filter(None, place.split(".")):
        node = node[key]
    if "name" in change:
        node.clear()
    node.update(change)
    save_model(tmp_path / "bad", "vqvae", bad, weights, {})
    with pytest.raises(UserError, match="bad: not a vqvae that this version can build") as caught:
        load_vqvae(tmp_path / "bad")
    assert reason in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"path": "/etc"}, "unknown key 'path'"),
        ({"name": "none"}, "unknown key"),
        ({"name": "build"}, "KeyError"),
        ({"channels": 10**4}, "a larger model than its weights"),
        ({"image_shape": [1, 2**200, 2**200]}, ""),
    ],
)
def test_a_classifier_is_built_from_known_keys_and_names_only(tmp_path, change, reason):
    config = {"name": "conv", "image_shape": [1, 8, 8], "num_classes": 3, "channels": 8, "dropout": 0.0}
    weights = build_classifier(config).state_dict()
    save_model(tmp_path / "good", "classifier", {"available": True, "classifier": config}, weights, {})
    load_classifier(tmp_path / "good")
    save_model(tmp_path / "bad", "classifier", {"available": True, "classifier": config | change}, weights, {})
    with pytest.raises(UserError, match="bad: not a classifier that this version can build") as caught:
        load_classifier(tmp_path / "bad")
    assert reason in str(caught.value) and "\n" not in str(caught.value)
    none = {"available": False, "reason": "none"}
    for changed, reason in (({**none, "more": 1}, "unknown key 'more'"), ({"available": False}, "no reason is given")):
        save_model(tmp_path / "none", "classifier", changed, {}, {})
        with pytest.raises(UserError, match=reason):
            load_classifier(tmp_path / "none")
    save_model(tmp_path / "none", "decoder", {"available": False}, {}, {})
    with pytest.raises(UserError, match="no reason is given"):
        load_refined(tmp_path / "none")
