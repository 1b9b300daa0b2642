"""Every prior learns: its first loss, its gradients, with gradient checkpointing and compiled too."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tessera.codes.layout import CodeLayout, Level
from tessera.errors import UserError

UNEQUAL = CodeLayout((1, 8, 8), (Level(2, 2, 1, 4), Level(2, 3, 2, 8)))
SHALLOW = {"layers": 1, "depth_layers": 1, "residuals": 1}  # a layer has up to twenty kernels in C++


def test_the_first_loss_is_near_that_of_the_uniform_prior(learned, layout, make_fresh, make_tokens):
    prior = make_fresh(learned, layout, 2, width=64)
    tokens = make_tokens(layout, 64)
    assert prior(tokens, torch.arange(64) % 3).item() == pytest.approx(layout.uniform_nats / layout.num_tokens, abs=0.1)


def test_every_trained_parameter_gets_a_gradient(learned, layout, make_fresh, make_tokens):
    prior = make_fresh(learned, layout, 2)
    prior(make_tokens(layout, 8), torch.arange(8) % 3).backward()
    assert not [name for name, p in prior.named_parameters() if p.requires_grad and p.grad is None]


def test_a_batch_can_be_learned_by_heart(learned, make_fresh, make_tokens, layout):
    prior = make_fresh(learned, layout, 4, dropout=0.0, width=32)
    tokens, labels = make_tokens(layout, 4), torch.arange(4)
    optimizer = torch.optim.Adam(prior.parameters(), 3e-3)
    for _ in range(600):  # a few dozen are enough for most; rounding decides when one leaves a plateau
        optimizer.zero_grad()
        loss = prior(tokens, labels)
        if loss.item() < 0.1:
            return
        loss.backward()
        nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
        optimizer.step()
    pytest.fail(f"the loss is still {loss.item():.3f}")


def kept_for_the_backward_pass(loss: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """A loss, and the bytes of what autograd keeps for its gradient."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        return loss(), sum(kept.values())


def test_checkpointed_gradients_are_the_same_and_so_are_the_names(trainable, layout, make_trainable, make_tokens):
    plain = make_trainable(trainable, layout, 2)
    tokens, labels = make_tokens(layout, 64), torch.arange(64) % 3
    noise = torch.rand(64, plain.noise) if plain.noise else None
    saving = copy.deepcopy(plain)
    saving.checkpoint_gradients()
    kept = []
    for prior in (plain, saving):
        loss, size = kept_for_the_backward_pass(lambda prior=prior: prior.train()(tokens, labels, noise))
        loss.backward()
        kept.append(size)
    assert kept[1] < kept[0]
    assert saving.state_dict().keys() == plain.state_dict().keys()
    for (name, one), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(other.grad, one.grad, msg=name)
    lowered = saving.eval().lowered(torch.float32)
    torch.testing.assert_close(lowered.nll(tokens, labels), plain.eval().nll(tokens, labels))


def test_dropout_acts_in_training_only(learned, make_fresh, make_tokens):
    layout = CodeLayout((1, 8, 12), (Level(2, 3, 2, 5),))
    prior, tokens = make_fresh(learned, layout, 2, dropout=0.5), make_tokens(layout, 4)
    assert prior.training
    assert not torch.equal(prior(tokens, None), prior(tokens, None))
    prior.eval()
    assert torch.equal(prior(tokens, None), prior(tokens, None))


def test_an_architecture_that_cannot_checkpoint_says_so(make_fresh, monkeypatch):
    prior = make_fresh("gpt2", CodeLayout((1, 4, 4), (Level(2, 2, 1, 3),)), 2)
    prior.backbone.supports_gradient_checkpointing = False
    with pytest.raises(UserError, match="gpt2 has no gradient checkpointing"):
        prior.checkpoint_gradients()


def assert_compiles(plain, compiled, layout, make_tokens):
    torch.compiler.reset()
    tokens, labels = make_tokens(layout, 6), torch.arange(6) % 3
    noise = torch.rand(6, plain.noise) if plain.noise else None
    compiled.compile(fullgraph=True)
    losses = [prior.train()(tokens, labels, noise) for prior in (plain, compiled)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)
    for loss in losses:
        loss.backward()
    for (name, one), other in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
def test_a_prior_compiles_whole_to_the_same_loss_and_gradients(trainable, make_trainable, make_tokens):
    plain = make_trainable(trainable, UNEQUAL, 2, **SHALLOW)
    assert_compiles(plain, copy.deepcopy(plain), UNEQUAL, make_tokens)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["pixelsnail", "gpt2"])  # our blocks, which all others have, and the library's
def test_a_compiled_prior_can_checkpoint_gradients(family, make_trainable, make_tokens):
    plain = make_trainable(family, UNEQUAL, 2, **SHALLOW)
    compiled = copy.deepcopy(plain)
    compiled.checkpoint_gradients()
    assert_compiles(plain, compiled, UNEQUAL, make_tokens)
