"""Our decoding of gpt2 and llama against the library's forward pass, on the same weights."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from stage2_prior.priors import backbone
from stage2_prior.priors.blocks import Blocks
from stage2_prior.priors.decoding import engine
from stage2_prior.priors.decoding.engine import Decoder
from stage2_prior.priors.decoding.model import LibraryDecoder, ModelDecoding
from tessera.codes.layout import CodeLayout, Level

SIZE = {"layers": 3, "width": 24, "heads": 3, "dropout": 0.0, "length": 11}


def make(architecture: str, extra: dict | None = None) -> torch.nn.Module:
    torch.manual_seed(0)
    model = backbone.build(backbone.configure(architecture, **SIZE, extra=extra or {}), SIZE["length"]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


def decode(decoder: Decoder | LibraryDecoder, inputs: torch.Tensor) -> torch.Tensor:
    """Hidden states of a whole sequence, one token after another."""
    return torch.cat([decoder.extend(inputs[:, i : i + 1]) for i in range(inputs.shape[1])], 1)


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
    ours = ModelDecoding(model).decoder(batch, SIZE["length"])
    assert isinstance(ours, Decoder)
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
    ours = ModelDecoding(rounded).decoder(batch, SIZE["length"])
    found = torch.cat([ours.extend(inputs[:, i : i + 1]) for i in range(SIZE["length"])], 1)
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-5)
    many = inputs[:1].expand(5, -1, -1)
    assert ModelDecoding(rounded).decoder(5, SIZE["length"]).extend(many[:, :1]).dtype == torch.bfloat16
    monkeypatch.setattr(engine, "CACHED_WEIGHTS", 10)
    assert ModelDecoding(rounded).decoder(batch, SIZE["length"]).extend(inputs[:, :1]).dtype == torch.bfloat16
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
    library = ModelDecoding(model).decoder(4, SIZE["length"])
    assert isinstance(library, LibraryDecoder)
    inputs = torch.randn(4, SIZE["length"], SIZE["width"])
    found = decode(library, inputs)
    torch.testing.assert_close(found, backbone.hidden_states(model, inputs), rtol=2e-4, atol=2e-5)


class Renamed(torch.nn.Module):
    """A layer of the library whose attribute has another name, as after a release that renames it."""

    def __init__(self, layer: torch.nn.Module, name: str) -> None:
        super().__init__()
        self.layer, self.name, self.renamed = layer, name, getattr(layer, name)
        delattr(layer, name)

    def forward(self, *arguments, **keywords):
        setattr(self.layer, self.name, self.renamed)
        try:
            return self.layer(*arguments, **keywords)
        finally:
            delattr(self.layer, self.name)


class Doubled(torch.nn.Module):
    """A layer norm that does something else than its attributes say."""

    def __init__(self, norm: torch.nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def __getattr__(self, name: str):
        return super().__getattr__(name) if name == "norm" else getattr(self.norm, name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.norm(x)


def renamed(model: torch.nn.Module, architecture: str) -> None:
    if architecture == "gpt2":
        model.h[1].attn = Renamed(model.h[1].attn, "c_proj")
    else:
        model.layers[1].self_attn = Renamed(model.layers[1].self_attn, "o_proj")


def doubled(model: torch.nn.Module, architecture: str) -> None:
    if architecture == "gpt2":
        model.h[1].ln_1 = Doubled(model.h[1].ln_1)
    else:
        model.layers[1].input_layernorm = Doubled(model.layers[1].input_layernorm)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize(
    ("change", "said"),
    [(renamed, "AttributeError"), (doubled, "hidden states differ by"), (None, "NotImplementedError")],
)
@torch.no_grad()
def test_a_library_that_has_changed_decodes_itself_and_says_so_once(architecture, change, said, monkeypatch, capsys):
    model = make(architecture)
    if change is None:  # an operator that this torch lacks

        def missing(*arguments):
            raise NotImplementedError("no such operator")

        monkeypatch.setattr(engine, "_split", missing)
    else:
        change(model, architecture)
    inputs = torch.randn(4, SIZE["length"], SIZE["width"])
    decoding = ModelDecoding(model)
    for _ in range(2):
        library = decoding.decoder(4, SIZE["length"])
        assert isinstance(library, LibraryDecoder)
        expected = backbone.hidden_states(model, inputs)
        torch.testing.assert_close(decode(library, inputs), expected, rtol=2e-4, atol=2e-5)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{architecture} is decoded by transformers" in error and said in error


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_decoder_is_compared_once_and_silently_where_it_fits(architecture, monkeypatch, capsys):
    decoding, compared = ModelDecoding(make(architecture)), []
    fault = decoding._fault
    monkeypatch.setattr(decoding, "_fault", lambda *a: compared.append(a) or fault(*a))
    for batch in (4, 4, 64, 65):
        assert isinstance(decoding.decoder(batch, SIZE["length"]), Decoder)
    assert len(compared) == 2 and capsys.readouterr().err == ""


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_prior_whose_decoder_does_not_fit_samples_the_same_codes(architecture, make_stirred, make_tokens, capsys):
    layout = CodeLayout((1, 8, 8), (Level(2, 3, 1, 5),))
    prior, tokens = make_stirred(architecture, layout, 2), make_tokens(layout, 3)
    renamed(prior.backbone, architecture)
    decoding = prior.start_decoding(torch.arange(3))
    found = [prior.next_logits(decoding, tokens[:, i - 1] if i else None) for i in range(6)]
    torch.testing.assert_close(torch.stack(found, 1), prior.logits(tokens, torch.arange(3)), rtol=1e-3, atol=1e-3)
    assert "is decoded by transformers" in capsys.readouterr().err


@pytest.mark.parametrize("batch", [1, 4, 6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@torch.no_grad()
def test_positions_that_are_taken_back_leave_no_trace_and_several_see_what_they_may(batch, dtype):
    torch.manual_seed(0)
    model = Blocks(3, 24, 3, 0.0, causal=True).to(dtype).eval()
    for parameter in model.parameters():
        parameter.normal_(0, 0.2)
    one, other = torch.randn(2, batch, 9, 24).to(dtype)
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 0.1, "atol": 0.1}
    decoder = model.decoder(batch, 9)
    decoder.extend(one[:, :3])
    causal = torch.ones(4, 7, dtype=torch.bool).tril(3)
    found = decoder.extend(one[:, 3:7], causal).to(dtype)
    torch.testing.assert_close(found, model(one)[:, 3:7], **tolerance)
    decoder.forget(3)
    assert decoder.length == 4
    mixed = torch.cat([one[:, :4], other[:, 4:]], 1)
    parts = [decoder.extend(mixed[:, i : i + 1]).to(dtype) for i in range(4, 9)]
    torch.testing.assert_close(torch.cat(parts, 1), model(mixed)[:, 4:], **tolerance)
    decoder.forget(5)
    apart = torch.tensor([[True] * 4 + [True, False], [True] * 4 + [False, True]])  # the two do not see each other
    found = decoder.extend(mixed[:, 4:6], apart).to(dtype)
    for i in (0, 1):
        alone = torch.cat([mixed[:, :4], mixed[:, 4 + i : 5 + i]], 1)
        torch.testing.assert_close(found[:, i], model(alone)[:, 4], **tolerance)
