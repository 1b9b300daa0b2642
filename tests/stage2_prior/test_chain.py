"""A chain of priors is a prior, whatever its links."""

from __future__ import annotations

import itertools

import pytest
import torch

from stage2_prior.priors.build import build_prior, load_prior, prior_config
from tessera.artifacts import publishing as artifacts
from tessera.codes.layout import CodeLayout, Level
from tessera.errors import UserError

LAYOUT = CodeLayout((1, 8, 8), (Level(1, 1, 1, 4), Level(1, 2, 1, 2), Level(1, 2, 2, 2)))
CNN = {"layers": 1, "channels": 8, "kernel_size": 3, "dropout": 0.0}
SNAIL = {"channels": 8, "hidden_channels": 8, "kernel_size": 3, "blocks": 1, "residuals": 1, "heads": 2}
SNAIL |= {"conditioning_blocks": 1, "dropout": 0.0}
GPT2 = {"architecture": "gpt2", "layers": 1, "width": 16, "heads": 2, "dropout": 0.0, "extra": {}}
RQ = {"layers": 1, "depth_layers": 1, "width": 16, "heads": 2, "dropout": 0.0}
MASKED = {"layers": 1, "width": 16, "heads": 2, "dropout": 0.0, "bound_draws": 8}
LINKS = {
    "uniform": ("uniform", {}),
    "counts": ("counts", {}),
    "pixelcnn": ("pixelcnn", CNN),
    "pixelsnail": ("pixelsnail", SNAIL),
    "transformer": ("transformer", GPT2),
    "rq_transformer": ("rq_transformer", RQ),
    "sub-tokens": ("pixelsnail", SNAIL | {"largest_softmax": 2}),
    "masked": ("masked", MASKED),
}


def make(*names: str, num_classes: int = 2):
    torch.manual_seed(0)
    links = [{"name": LINKS[name][0], "params": LINKS[name][1]} for name in names]
    config = {"name": "chain", "params": {"links": links}, "layout": LAYOUT.to_json(), "num_classes": num_classes}
    prior = build_prior(config)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.normal_(0, 0.5)
    return prior.double().eval()


def every_sequence() -> torch.Tensor:
    return torch.tensor(list(itertools.product(*[range(k) for k in LAYOUT.codebook_sizes.tolist()])))


# Each exact family once as the coarsest, the middle and the finest link.
EXACT = ["uniform", "counts", "pixelcnn", "pixelsnail", "transformer", "rq_transformer"]
CHAINS = [tuple(EXACT[(i + j) % len(EXACT)] for j in range(3)) for i in range(len(EXACT))]


@pytest.mark.parametrize("names", CHAINS, ids="-".join)
def test_probabilities_of_all_sequences_sum_to_one(names):
    prior, tokens = make(*names), every_sequence()
    prior.fit([(tokens[::2], torch.arange(len(tokens[::2])) % 3)])
    assert prior.exact
    for label in range(3):
        nats = prior.nll(tokens, torch.full((len(tokens),), label)).sum(1)
        assert nats.neg().exp().sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("num_classes", [0, 2])
@pytest.mark.parametrize("name", [*EXACT, "sub-tokens"])
def test_a_chain_of_one_kind_is_exact_on_every_layout(layout, name, num_classes):
    torch.manual_seed(0)
    family, params = LINKS[name]
    links = [{"name": family, "params": params} for _ in layout.levels]
    config = {"name": "chain", "params": {"links": links}, "layout": layout.to_json(), "num_classes": num_classes}
    prior = build_prior(config).double().eval()
    for parameter in prior.parameters():
        parameter.data.normal_(0, 0.5)
    tokens = torch.tensor(list(itertools.product(*[range(k) for k in layout.codebook_sizes.tolist()])))
    for label in range(num_classes + 1):
        nats = prior.nll(tokens, torch.full((len(tokens),), label))
        assert nats.sum(1).neg().exp().sum().item() == pytest.approx(1, abs=1e-6)
        for place in range(1, layout.num_tokens):  # no code knows a later one
            same = (tokens[:, :place] == tokens[0, :place]).all(1)
            torch.testing.assert_close(nats[same][:, :place], nats[:1, :place].expand(int(same.sum()), -1))


@pytest.mark.parametrize("names", CHAINS, ids="-".join)
def test_every_link_answers_to_all_coarser_codes(names):
    prior, tokens = make(*names), every_sequence()[:1]
    for link in prior.links[1:]:
        if not link.trained:
            continue
        whole = tokens[:, : link.layout.num_tokens]
        before = link.nll(whole, None)
        for place in range(link.given):
            changed = whole.clone()
            changed[:, place] = 1 - changed[:, place]
            assert (link.nll(changed, None) - before).abs().min() > 1e-9


def test_the_loss_weighs_links_by_their_tokens_and_every_parameter_learns():
    prior, tokens = make("transformer", "pixelsnail", "rq_transformer"), every_sequence()
    loss = prior(tokens, None)
    torch.testing.assert_close(loss, prior.nll(tokens, None).mean())
    loss.backward()
    assert not [name for name, p in prior.named_parameters() if p.requires_grad and p.grad is None]


def test_a_masked_link_makes_the_chain_a_bound_with_its_error():
    prior, tokens = make("pixelcnn", "masked", "masked"), every_sequence()
    nats, variance = prior.estimate(tokens, None)
    assert not prior.exact and torch.equal(nats, prior.nll(tokens, None))
    exact, *masked = prior.links
    assert torch.equal(nats[:, :1], exact.nll(tokens[:, :1], None))
    found = [link.estimate(tokens[:, : link.layout.num_tokens], None) for link in masked]
    assert torch.equal(nats[:, 1:], torch.cat([own for own, _ in found], 1))
    torch.testing.assert_close(variance, found[0][1] + found[1][1])
    assert not torch.equal(prior.estimate(tokens, None, again=1)[0], nats)


def test_a_chain_of_tables_is_not_trained():
    assert not make("uniform", "counts", "counts").trained
    assert make("uniform", "pixelcnn", "counts").trained


@pytest.mark.parametrize("names", [("pixelsnail", "transformer", "masked"), ("sub-tokens", "counts", "rq_transformer")])
def test_a_published_chain_loads_with_the_same_nll(names, tmp_path):
    prior, tokens = make(*names).float(), every_sequence()
    tensors = {key: tensor.contiguous() for key, tensor in prior.state_dict().items()}
    artifacts.save_model(tmp_path / "prior", "prior", prior_config(prior), tensors, {})
    loaded, _ = load_prior(tmp_path / "prior")
    assert prior_config(loaded) == prior_config(prior)
    assert torch.equal(loaded.nll(tokens, None), prior.nll(tokens, None))


def test_another_number_of_links_than_levels_is_refused():
    with pytest.raises(UserError, match=r"2 priors for the 3 levels"):
        make("uniform", "counts")
