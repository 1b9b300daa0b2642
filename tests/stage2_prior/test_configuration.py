"""A configuration of transformers, from params.yaml or from a file, never reaches for code elsewhere."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

from stage2_prior.priors import backbone
from stage2_prior.priors.build import load_prior, prior_config
from stage2_prior.priors.configuration import refused
from tessera.artifacts.files import json_text
from tessera.artifacts.models import save_model
from tessera.artifacts.publishing import publishing
from tessera.codes.layout import CodeLayout, Level
from tessera.errors import UserError

LAYOUT = CodeLayout((1, 8, 8), (Level(3, 4, 1, 5),))
REACHING = [
    ("attn_implementation", "owner/kernel"),
    ("attn_implementation", "flash_attention_2"),  # without the package, transformers takes a kernel from the Hub
    ("_attn_implementation", "kernels-community/flash-attn2"),
    ("_attn_implementation_internal", "eager"),
    ("experts_implementation", {"": "owner/kernel"}),
    ("auto_map", {"AutoModel": "owner/name--module.Class"}),
    ("quantization_config", {"quant_method": "bitsandbytes"}),
    ("_name_or_path", "owner/name"),
    ("activation_function", "../../module"),
    ("activation_function", "owner/name"),
    ("rope_parameters", {"rope_type": "owner/name"}),
    ("text_config", {"attn_implementation": "eager"}),
    ("layer_types", ["full_attention", "a:b"]),
    ("a key", 1),
]


@pytest.mark.parametrize(("key", "value"), REACHING)
def test_what_could_reach_out_is_refused_in_params(params, key, value):
    with pytest.raises(UserError, match=r"stage2_prior\.transformer\.extra\.[\w. ]+: .*not allowed") as caught:
        params({"stage2_prior.transformer.extra": {key: value}})
    assert "\n" not in str(caught.value)


def test_an_unknown_key_is_refused_when_params_are_checked(params):
    with pytest.raises(UserError, match=r"transformer\.extra\.resid_prop: unknown to gpt2; did you mean `resid_pdrop`"):
        params({"stage2_prior.transformer.extra": {"resid_prop": 0.1}})
    with pytest.raises(UserError, match=r"transformer\.architecture: 'lama' is not a causal"):
        params({"stage2_prior.transformer.architecture": "lama"})
    changes = {
        "stage2_prior.transformer.architecture": "llama",
        "stage2_prior.transformer.extra": {"attention_dropout": 0},
    }
    params(changes | {"stage2_prior.chain.links": [{"name": "transformer"}]})


def test_the_check_imports_neither_torch_nor_transformers(repository):
    code = (
        "import sys; from pathlib import Path; from tessera.parameters import read_yaml, validate\n"
        "raw = read_yaml(Path('params.yaml')); raw['stage2_prior']['transformer']['extra'] = {'attn_pdrop': 0.0}\n"
        "validate(raw); sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=repository, check=False).returncode == 0


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "mistral", "qwen3", "gemma2", "gpt_neox"])
def test_what_is_published_is_allowed_and_its_keys_are_known_to_the_check(architecture):
    from stage2_prior.priors.architectures import unknown_key

    size = {"layers": 1, "width": 16, "heads": 2, "dropout": 0.1, "length": 8}
    configuration = backbone.configure(architecture, extra={}, **size)
    assert refused(configuration) is None
    unknown = [key for key in configuration if key[0] != "_" and unknown_key(architecture, key)]
    assert unknown == ["model_type"], "which `architecture` sets"


def layout(**changes: int | list[int]) -> dict:
    """A layout of a hostile size, as JSON values."""
    level = {"height": 3, "width": 4, "depth": 1, "codebook_size": 5}
    return {"image_shape": [1, 8, 8], "levels": [level | changes]}


def published(folder, make_fresh, **changes) -> None:
    prior = make_fresh("gpt2", LAYOUT, 2)
    config = json.loads(json_text(prior_config(prior)))
    config["params"]["configuration"] |= changes
    save_model(folder, "prior", config, prior.state_dict(), {})


@pytest.mark.parametrize(("key", "value"), REACHING)
def test_what_could_reach_out_is_refused_in_a_published_prior(tmp_path, make_fresh, monkeypatch, key, value):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("it connects"))
    published(tmp_path / "prior", make_fresh, **{key: value})
    with pytest.raises(UserError, match=r"prior: not a prior that this version can build \(.*not allowed") as caught:
        load_prior(tmp_path / "prior")
    assert "\n" not in str(caught.value)


def test_a_key_that_the_architecture_does_not_know_is_refused_in_a_published_prior(tmp_path, make_fresh):
    published(tmp_path / "prior", make_fresh)
    load_prior(tmp_path / "prior")
    published(tmp_path / "prior", make_fresh, trained_by="nobody")
    with pytest.raises(UserError, match="trained_by: unknown to gpt2"):
        load_prior(tmp_path / "prior")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"extra_key": 1}, "unknown key 'extra_key'"),
        ({"name": "os"}, "unknown prior 'os'"),
        ({"name": "../../tessera/errors"}, "unknown prior"),
        ({"name": ["gpt2"]}, "TypeError"),
        ({"params": []}, ""),
        ({"params": {"module": "os"}}, "TypeError"),
        ({"class_images": [0, 0]}, "no class has an image"),
        ({"class_images": [3, -1]}, "whole numbers, 0 or more"),
        ({"num_classes": 10**7}, "a larger model than its weights"),
        ({"num_classes": 10**11}, "a larger model than its weights"),
        ({"name": "counts", "params": {}, "num_classes": 10**9}, ""),
        ({"name": "uniform", "params": {}, "layout": layout(width=10**8)}, "too large"),
        ({"layout": layout(depth=10**10)}, "too large"),
        ({"layout": layout(codebook_size=10**9)}, "too large"),
        ({"layout": layout(sizes=[10**18]), "params": {"largest_softmax": 10**9}}, "too large"),
        ({"layout": layout(codebook_size=2**24)}, ""),
        ({"layout": layout(height=10**6, width=10**6)}, "too large"),
    ],
)
def test_a_prior_is_built_from_known_keys_and_names_only(tmp_path, make_fresh, change, reason):
    prior = make_fresh("gpt2", LAYOUT, 2)
    save_model(tmp_path / "prior", "prior", {**prior_config(prior), **change}, prior.state_dict(), {})
    with pytest.raises(UserError, match=r"not a prior that this version can build") as caught:
        load_prior(tmp_path / "prior")
    assert reason in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"n_layer": 10**9}, {"n_embd": 10**7}, {"vocab_size": 10**7}])
def test_a_configuration_of_a_huge_model_costs_neither_time_nor_memory(tmp_path, make_fresh, change):
    published(tmp_path / "prior", make_fresh, **change)
    with pytest.raises(UserError, match="a larger model than its weights"):
        load_prior(tmp_path / "prior")


def test_a_configuration_that_is_no_object_is_refused(tmp_path):
    with publishing(tmp_path / "prior", "prior", {}) as staging:
        (staging / "config.json").write_text("[1]")
        (staging / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    with pytest.raises(UserError, match="expected an object, got list"):
        load_prior(tmp_path / "prior")
