"""Our decoding of gpt2 and llama against the library's forward pass, on the same weights."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from stage2_prior.priors import backbone, decoders
from stage2_prior.priors.decoders import decoder

SIZE = {"layers": 3, "width": 24, "heads": 3, "dropout": 0.0, "length": 11}


def make(architecture: str, extra: dict | None = None) -> torch.nn.Module:
    torch.manual_seed(0)
    model = backbone.build(backbone.configure(architecture, **SIZE, extra=extra or {}), SIZE["length"]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


@pytest.mark.parametrize(
    ("architecture", "extra"),
    [
        ("gpt2", {}),
        ("gpt2", {"activation_function": "relu", "n_inner": 40}),
        ("llama", {}),
        ("llama", {"num_key_value_heads": 1}),
        (
            "llama",
            {
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "attention_bias": True,
                "mlp_bias": True,
                "head_dim": 6,
                "rope_parameters": {"rope_type": "default", "rope_theta": 9.0},
            },
        ),
    ],
)
@pytest.mark.parametrize("at_once", [0, 1, 5, 11])
@pytest.mark.parametrize("batch", [1, 4, 6])
@torch.no_grad()
def test_hidden_states_are_those_of_the_forward_pass(architecture, extra, at_once, batch):
    model = make(architecture, extra)
    inputs = torch.randn(batch, SIZE["length"], SIZE["width"])
    expected = backbone.hidden_states(model, inputs)
    ours = decoder(model, batch, SIZE["length"])
    parts = [ours.extend(inputs[:, :at_once])] if at_once else []
    parts += [ours.extend(inputs[:, i : i + 1]) for i in range(at_once, SIZE["length"])]
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("batch", [1, 4])
@torch.no_grad()
def test_few_sequences_in_bf16_are_decoded_in_fp32_with_the_rounded_weights(architecture, batch, monkeypatch):
    rounded = make(architecture).bfloat16()
    inputs = torch.randn(batch, SIZE["length"], SIZE["width"]).bfloat16()
    expected = backbone.hidden_states(deepcopy(rounded).float(), inputs.float())
    ours = decoder(rounded, batch, SIZE["length"])
    found = torch.cat([ours.extend(inputs[:, i : i + 1]) for i in range(SIZE["length"])], 1)
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-5)
    many = inputs[:1].expand(5, -1, -1)
    assert decoder(rounded, 5, SIZE["length"]).extend(many[:, :1]).dtype == torch.bfloat16
    monkeypatch.setattr(decoders, "CACHED", 10)
    assert decoder(rounded, batch, SIZE["length"]).extend(inputs[:, :1]).dtype == torch.bfloat16
    assert {p.dtype for p in rounded.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("architecture", "extra"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("gpt2", {"scale_attn_weights": False}),
        ("gpt_neox", {}),
    ],
)
@torch.no_grad()
def test_what_our_decoders_do_not_know_goes_through_the_library(architecture, extra):
    model = make(architecture, extra)
    assert decoder(model, 4, SIZE["length"]) is None
    inputs = torch.randn(4, SIZE["length"], SIZE["width"])
    cache = backbone.Cache(model, 4, SIZE["length"])
    steps = torch.cat([cache.extend(inputs[:, i : i + 1]) for i in range(SIZE["length"])], 1)
    torch.testing.assert_close(steps, backbone.hidden_states(model, inputs), rtol=2e-4, atol=2e-5)
