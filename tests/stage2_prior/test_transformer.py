"""The transformer prior: architectures by name, their configuration, and what is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from stage2_prior.priors import backbone
from stage2_prior.priors.build import build_prior, prior_config
from tessera.codes.layout import CodeLayout, Level
from tessera.errors import UserError

LAYOUT = CodeLayout((1, 8, 8), (Level(3, 4, 1, 5),))
ARCHITECTURES = ["gpt2", "llama"]


def configure(architecture: str, **extra: object) -> dict:
    return backbone.configure(architecture, layers=3, width=24, heads=4, dropout=0.25, extra=extra, length=12)


def test_importing_the_priors_does_not_import_transformers():
    code = "import sys, stage2_prior.priors; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("architecture", "inner"), [("gpt2", {}), ("llama", {"intermediate_size": 72})])
def test_sizes_reach_the_configuration_by_its_own_names(architecture, inner):
    values = configure(architecture)
    names = {
        "gpt2": {"n_layer": 3, "n_embd": 24, "n_head": 4, "n_positions": 12, "attn_pdrop": 0.25, "embd_pdrop": 0.0},
        "llama": {"num_hidden_layers": 3, "hidden_size": 24, "num_key_value_heads": 4, "attention_dropout": 0.25},
    }[architecture]
    for name, value in {**names, **inner, "vocab_size": 1}.items():
        assert values[name] == value, name
    assert "transformers_version" not in values


def test_extra_keys_win_under_either_name():
    assert configure("llama", num_key_value_heads=2)["num_key_value_heads"] == 2
    assert configure("gpt2", num_hidden_layers=1)["n_layer"] == 1
    assert configure("gpt2", resid_pdrop=0.5)["resid_pdrop"] == 0.5


def test_an_unknown_extra_key_is_refused_with_the_nearest_one():
    with pytest.raises(UserError, match=r"extra\.resid_prop: unknown to gpt2; did you mean `resid_pdrop`"):
        configure("gpt2", resid_prop=0.5)


def test_the_width_cannot_be_changed_behind_its_back():
    with pytest.raises(UserError, match=r"set the width by transformer\.width"):
        configure("llama", hidden_size=32)


@pytest.mark.parametrize("name", ["gtp2", "vit", "resnet", "no such thing"])
def test_an_unknown_or_unfit_architecture_is_refused_with_the_nearest(name):
    with pytest.raises(UserError, match=rf"architecture: '{name}' is not a causal.*nearest: \w+"):
        configure(name)
    if name == "gtp2":
        with pytest.raises(UserError, match="gpt2"):
            configure(name)


def test_an_architecture_that_looks_ahead_is_refused():
    with pytest.raises(UserError, match="xlnet looks at later tokens"):
        backbone.build(configure("xlnet"), 12)


def test_values_that_the_architecture_refuses_are_one_line():
    with pytest.raises(UserError, match=r"llama cannot be built at this size .*extra") as error:
        backbone.build(configure("llama", hidden_act="no_such_activation"), 12)
    assert "\n" not in str(error.value)


def test_a_context_shorter_than_the_sequence_is_refused():
    with pytest.raises(UserError, match=r"gpt2 cannot be built at this size .*extra"):
        backbone.build(configure("gpt2", n_positions=20), 21)
    backbone.build(configure("gpt2", n_positions=20), 20)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_published_prior_is_rebuilt_from_its_own_configuration(architecture, make_fresh, monkeypatch):
    config = prior_config(make_fresh(architecture, LAYOUT, 2))
    config["params"]["configuration"]["initializer_range"] = 0.5  # as if another release had another default

    def refuse(*_, **__):
        raise AssertionError("the installed defaults were asked for")

    monkeypatch.setattr(backbone, "configure", refuse)
    rebuilt = build_prior(config)
    assert prior_config(rebuilt) == config
    assert max(p.std().item() for p in rebuilt.backbone.parameters() if p.ndim == 2) > 0.3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_same_seed_builds_the_same_weights(architecture, make_fresh):
    weights = []
    for _ in range(2):
        torch.manual_seed(3)
        weights.append(make_fresh(architecture, LAYOUT, 2).state_dict())
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


@pytest.mark.parametrize("architecture", ["mistral", "qwen3", "gpt_neox", "gemma2"])
def test_other_architectures_serve_too(architecture, make_fresh, make_tokens):
    prior = make_fresh("llama", LAYOUT, 2, architecture=architecture).eval()
    tokens, labels = make_tokens(LAYOUT, 3), torch.tensor([0, 1, 2])
    state = prior.start_decoding(labels)
    steps = [prior.next_logits(state, tokens[:, i - 1] if i else None) for i in range(12)]
    torch.testing.assert_close(torch.stack(steps, dim=1), prior.logits(tokens, labels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gpt_neox"])
def test_a_finer_level_is_decoded_from_the_coarser_ones(architecture, make_tokens):
    layout = CodeLayout((1, 8, 8), (Level(1, 3, 1, 4), Level(2, 2, 1, 5)))
    size = {"layers": 2, "width": 16, "heads": 2, "dropout": 0.0, "extra": {}}
    config = {"name": "transformer", "params": size | {"architecture": architecture}}
    prior = build_prior(config | {"layout": layout.to_json(), "num_classes": 2}, first=1).eval()
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens, labels = make_tokens(layout, 3), torch.tensor([0, 1, 2])
    state = prior.start_decoding(labels, tokens[:, :3])
    steps = [prior.next_logits(state, tokens[:, i - 1] if i > 3 else None) for i in range(3, 7)]
    torch.testing.assert_close(torch.stack(steps, dim=1), prior.logits(tokens, labels), rtol=1e-4, atol=1e-4)
