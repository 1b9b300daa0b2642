"""What every prior promises, whatever its family, on every kind of layout."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from stage2_prior.priors import rq_transformer
from stage2_prior.priors.build import build_prior, load_prior, prior_config
from tessera.artifacts.models import save_model
from tessera.codes.layout import CodeLayout, Level
from tessera.errors import UserError


def all_labels(prior: nn.Module) -> range:
    return range(prior.num_classes + 1)  # the null label too


def decode(prior: nn.Module, tokens: Tensor, labels: Tensor) -> Tensor:
    """Logits (B, N, V) by `start_decoding` and `next_logits`, with the tokens given."""
    state = prior.start_decoding(labels)
    steps = [prior.next_logits(state, tokens[:, i - 1] if i else None) for i in range(tokens.shape[1])]
    return torch.stack(steps, dim=1)


def choose(logits: Tensor, uniforms: Tensor | None) -> Tensor:
    """Greedy, or by inverse CDF from uniforms (B,)."""
    if uniforms is None:
        return logits.argmax(-1)
    return (logits.double().softmax(-1).cumsum(-1) < uniforms[:, None]).sum(-1)


def test_probabilities_of_all_sequences_sum_to_one(prior):
    prior.double()
    tokens = torch.tensor(list(itertools.product(*[range(k) for k in prior.layout.codebook_sizes.tolist()])))
    for label in all_labels(prior):
        nats = prior.nll(tokens, torch.full((len(tokens),), label)).sum(1)
        assert nats.dtype == torch.float64
        # A table is float32 before it is double.
        assert nats.neg().exp().sum().item() == pytest.approx(1, abs=1e-9 if prior.trained else 1e-6)


def test_a_later_token_never_changes_an_earlier_tokens_logits(prior, make_tokens):
    prior.double()
    tokens = make_tokens(prior.layout, 1)
    label = torch.tensor([0])
    before = prior.logits(tokens, label)
    for position, size in enumerate(prior.layout.codebook_sizes.tolist()):
        for value in range(size):
            changed = tokens.clone()
            changed[:, position] = value
            after = prior.logits(changed, label)[:, : position + 1]
            torch.testing.assert_close(after, before[:, : position + 1], rtol=0, atol=1e-12)


def test_every_earlier_token_changes_every_later_tokens_logits(learned, layout, make_stirred, make_tokens):
    prior = make_stirred(learned, layout, 2).double()
    tokens = make_tokens(layout, 1)
    before = prior.logits(tokens, None)
    for position, size in enumerate(layout.codebook_sizes.tolist()):
        changed = tokens.clone()
        changed[:, position] = (tokens[:, position] + 1) % size
        difference = (prior.logits(changed, None) - before).nan_to_num(0).abs().amax((0, 2))
        assert (difference[position + 1 :] > 1e-9).all(), (position, difference)


def test_the_label_changes_every_tokens_logits(learned, layout, make_stirred, make_tokens):
    prior = make_stirred(learned, layout, 2)
    tokens = make_tokens(layout, 1).repeat(3, 1)
    logits = prior.logits(tokens, torch.tensor([0, 1, 2])).nan_to_num(neginf=0.0)
    for one, other in itertools.combinations(logits, 2):
        assert ((one - other).abs().amax(-1) > 1e-4).all()


def test_decoding_gives_the_teacher_forced_logits(prior, make_tokens):
    prior.double()
    tokens = make_tokens(prior.layout, 5)
    labels = torch.arange(5) % (prior.num_classes + 1)
    # Llama's norms are float32 in any model: what differs in the last bit of a double may differ in theirs.
    tolerance = 1e-5 if prior.params.get("architecture") == "llama" else 1e-9
    expected = prior.logits(tokens, labels)
    torch.testing.assert_close(decode(prior, tokens, labels), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("pixelcnn", {"kernel_size": 3}),
        ("pixelcnn", {"layers": 3, "kernel_size": 5}),
        ("pixelsnail", {"kernel_size": 3, "heads": 0}),
        ("pixelsnail", {"kernel_size": 5, "conditioning_blocks": 0}),
        ("pixelsnail", {"layers": 1, "hidden": 1.25, "kernel_size": 5}),
        ("gpt2", {}),
        ("llama", {}),
        ("rq_transformer", {}),
    ],
    ids=str,
)
def test_decoding_equals_teacher_forcing_on_large_mixed_grids(family, changes, make_fresh, make_tokens):
    levels = (Level(2, 3, 1, 5), Level(5, 4, 3, 7), Level(6, 7, 1, 4))  # more than two blocks of a KV cache
    layout = CodeLayout((3, 12, 14), levels)
    prior = make_fresh(family, layout, 3, **changes).double().eval()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.normal_(0, 0.3)
    tokens, labels = make_tokens(layout, 2), torch.tensor([1, 3])
    for rows, precision in itertools.product((slice(0, 2), slice(1, 2)), (torch.float64, torch.float32)):
        prior.to(precision)  # float32 is what is laid out for MKL
        tolerance = 2e-2 if precision == torch.float32 else 1e-5 if family == "llama" else 1e-9  # as above
        expected = prior.logits(tokens[rows], labels[rows])
        torch.testing.assert_close(decode(prior, tokens[rows], labels[rows]), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("greedy", [True, False], ids=["greedy", "inverse_cdf"])
def test_cached_decoding_gives_the_tokens_of_full_recomputation(prior, greedy):
    count, length = 6, prior.layout.num_tokens
    labels = torch.arange(count) % (prior.num_classes + 1)
    uniforms = None if greedy else torch.rand(length, count, dtype=torch.float64)
    cached, full = torch.zeros(2, count, length, dtype=torch.int64)
    state, last = prior.start_decoding(labels), None
    for i in range(length):
        u = None if greedy else uniforms[i]
        last = cached[:, i] = choose(prior.next_logits(state, last), u)
        full[:, i] = choose(prior.logits(full, labels)[:, i], u)
    assert torch.equal(cached, full)
    assert (cached < prior.layout.codebook_sizes).all()


def test_nll_is_minus_log_softmax_and_forward_its_mean(prior, make_tokens):
    tokens = make_tokens(prior.layout, 4)
    labels = torch.arange(4) % (prior.num_classes + 1)
    nll = prior.nll(tokens, labels)
    expected = -prior.logits(tokens, labels).log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    torch.testing.assert_close(nll, expected)
    torch.testing.assert_close(prior(tokens, labels), nll.mean())


def test_no_labels_means_the_null_label(prior, make_tokens):
    tokens = make_tokens(prior.layout, 3)
    null = torch.full((3,), prior.num_classes)
    assert torch.equal(prior.logits(tokens, None), prior.logits(tokens, null))


def test_logits_are_float32_under_autocast_and_minus_infinity_beyond_a_codebook(prior, make_tokens):
    tokens = make_tokens(prior.layout, 2)
    with torch.autocast("cpu", torch.bfloat16):
        logits = prior.logits(tokens, None)
    assert logits.dtype == torch.float32
    assert torch.equal(logits.isneginf(), ~prior.layout.allowed.expand_as(logits))
    assert logits[logits.isfinite()].numel() == 2 * prior.layout.allowed.sum()


def test_a_published_prior_loads_with_the_same_logits(prior, make_tokens, tmp_path):
    parents = {"codes": "c", "vqvae": "v"}
    save_model(tmp_path / "prior", "prior", prior_config(prior), prior.state_dict(), parents)
    loaded, manifest = load_prior(tmp_path / "prior")
    tokens = make_tokens(prior.layout, 3)
    assert manifest.parents == parents
    assert not loaded.training
    assert prior_config(loaded) == prior_config(prior)
    assert torch.equal(loaded.logits(tokens, None), prior.logits(tokens, None))


def test_tokens_out_of_order_are_refused(prior, make_tokens):
    tokens = make_tokens(prior.layout, 1)
    labels = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="the first call takes no tokens"):
        prior.next_logits(prior.start_decoding(labels), tokens[:, 0])
    state = prior.start_decoding(labels)
    prior.next_logits(state, None)
    with pytest.raises(ValueError, match="every later one the tokens"):
        prior.next_logits(state, None)
    for i in range(1, prior.layout.num_tokens):
        prior.next_logits(state, tokens[:, i - 1])
    with pytest.raises(ValueError, match="complete"):
        prior.next_logits(state, tokens[:, -1])
    with pytest.raises(ValueError, match=r"coarser levels, \(1, 0\), got \(1, 2\)"):
        prior.start_decoding(labels, torch.zeros(1, 2, dtype=torch.int64))


def test_no_more_sequences_are_measured_at_once_than_their_logits_allow(learned, make_fresh):
    small, large = (CodeLayout((1, 64, 64), (Level(8, 8, 1, size),)) for size in (4, 2**15))
    assert make_fresh(learned, small, 0).measured_at_once(256) == 256
    assert make_fresh(learned, large, 0, largest_softmax=2**15).measured_at_once(256) == 128
    assert make_fresh(learned, large, 0, largest_softmax=256).measured_at_once(256) == 256


def test_positions_go_through_the_depth_transformer_in_parts(layout, make_stirred, make_tokens, monkeypatch):
    prior, tokens = make_stirred("rq_transformer", layout, 2), make_tokens(layout, 5)
    whole = prior.logits(tokens, None)
    monkeypatch.setattr(rq_transformer, "MANY", 3)
    torch.testing.assert_close(prior.logits(tokens, None), whole)


def test_an_unknown_prior_is_refused_with_the_nearest_name(layout):
    with pytest.raises(UserError, match=r"unknown prior 'pixelcn'.*did you mean `pixelcnn`"):
        build_prior({"name": "pixelcn", "params": {}, "layout": layout.to_json(), "num_classes": 0})


def test_weights_of_another_shape_are_refused(layout, make_fresh, tmp_path):
    config = prior_config(make_fresh("pixelcnn", layout, 2))
    weights = make_fresh("pixelcnn", layout, 3).state_dict()
    save_model(tmp_path / "prior", "prior", config, weights, {})
    with pytest.raises(UserError, match="not a prior that this version can build"):
        load_prior(tmp_path / "prior")


def test_the_uniform_prior_costs_log_k_a_token(layout, make_fresh, make_tokens):
    nll = make_fresh("uniform", layout, 2).double().nll(make_tokens(layout, 2), None)
    expected = torch.tensor([math.log(k) for k in layout.codebook_sizes.tolist()], dtype=torch.float64)
    torch.testing.assert_close(nll, expected.expand(2, -1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rows", [6, 1])
def test_a_copy_in_bf16_decodes_near_the_prior_and_leaves_it_alone(learned, layout, rows, make_stirred, make_tokens):
    prior = make_stirred(learned, layout, 2)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.mul_(0.2)  # a network of ordinary weights: rounding is not amplified from layer to layer
    before = {key: tensor.clone() for key, tensor in prior.state_dict().items()}
    copy = prior.lowered(torch.bfloat16)
    tokens, labels = make_tokens(layout, rows), torch.arange(rows) % 3
    found, expected = decode(copy, tokens, labels), decode(prior, tokens, labels)
    assert found.dtype == torch.float32 and any(p.dtype == torch.bfloat16 for p in copy.parameters())
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    assert not torch.equal(found, expected)
    assert all(torch.equal(tensor, before[key]) for key, tensor in prior.state_dict().items())
