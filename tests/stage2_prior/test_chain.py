"""A chain of priors is a prior, whatever its links."""

from __future__ import annotations

import itertools

import pytest
import torch

from stage2_prior.priors.build import build_prior, load_prior, prior_class, prior_config
from tessera.artifacts.models import save_model
from tessera.codes.layout import CodeLayout, Level
from tessera.errors import UserError
from tessera.parameters.parts import options

PACKAGE = "stage2_prior.priors"
LAYOUT = CodeLayout((1, 8, 8), (Level(1, 1, 1, 4), Level(1, 2, 1, 2), Level(1, 2, 2, 2)))
LINKS: dict[str, tuple[str, dict]] = {name: (name, {}) for name in options(PACKAGE) if name != "chain"}
LINKS["masked"] = ("masked", {"bound_draws": 8})
LINKS["sub-tokens"] = ("pixelsnail", {"largest_softmax": 2})
EXACT = [name for name in options(PACKAGE) if name != "chain" and prior_class(name).exact]


@pytest.fixture
def make(prior_arguments):
    """`make("uniform", "counts")`: a chain of these links, its weights random and large, in float64."""

    def chain(*names: str, num_classes: int = 2, layout: CodeLayout = LAYOUT):
        torch.manual_seed(0)
        links = [{"name": LINKS[n][0], "params": prior_arguments(LINKS[n][0], **LINKS[n][1])} for n in names]
        config = {"name": "chain", "params": {"links": links}, "layout": layout.to_json(), "num_classes": num_classes}
        prior = build_prior(config)
        with torch.no_grad():
            for parameter in prior.parameters():
                parameter.normal_(0, 0.5)
        return prior.double().eval()

    return chain


def every_sequence() -> torch.Tensor:
    return torch.tensor(list(itertools.product(*[range(k) for k in LAYOUT.codebook_sizes.tolist()])))


# Each exact family once as the coarsest, the middle and the finest link.
CHAINS = [tuple(EXACT[(i + j) % len(EXACT)] for j in range(3)) for i in range(len(EXACT))]


@pytest.mark.parametrize("names", CHAINS, ids="-".join)
def test_probabilities_of_all_sequences_sum_to_one(names, make):
    prior, tokens = make(*names), every_sequence()
    prior.fit([(tokens[::2], torch.arange(len(tokens[::2])) % 3)])
    assert prior.exact
    for label in range(3):
        nats = prior.nll(tokens, torch.full((len(tokens),), label)).sum(1)
        assert nats.neg().exp().sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("num_classes", [0, 2])
@pytest.mark.parametrize("name", [*EXACT, "sub-tokens"])
def test_a_chain_of_one_kind_is_exact_on_every_layout(layout, name, num_classes, make):
    prior = make(*[name for _ in layout.levels], num_classes=num_classes, layout=layout)
    tokens = torch.tensor(list(itertools.product(*[range(k) for k in layout.codebook_sizes.tolist()])))
    for label in range(num_classes + 1):
        nats = prior.nll(tokens, torch.full((len(tokens),), label))
        assert nats.sum(1).neg().exp().sum().item() == pytest.approx(1, abs=1e-6)
        order = torch.arange(layout.num_tokens)
        if name == "next_scale":  # a depth of all positions, then the next depth
            order = (layout.places[:, 0] * 100 + layout.places[:, 3]).argsort(stable=True)
        for before in (order[:place] for place in range(1, layout.num_tokens)):  # no code knows a later one
            same = (tokens[:, before] == tokens[0, before]).all(1)
            torch.testing.assert_close(nats[same][:, before], nats[:1, before].expand(int(same.sum()), -1))


@pytest.mark.parametrize("names", CHAINS, ids="-".join)
def test_every_link_answers_to_all_coarser_codes(names, make):
    prior, tokens = make(*names), every_sequence()[:1]
    for link in prior.links[1:]:
        if not link.trained:
            continue
        whole = tokens[:, : link.layout.num_tokens]
        before = link.nll(whole, None)
        for place in range(link.given_tokens):
            changed = whole.clone()
            changed[:, place] = 1 - changed[:, place]
            assert (link.nll(changed, None) - before).abs().min() > 1e-9


def test_the_loss_weighs_links_by_their_tokens_and_every_parameter_learns(make):
    prior, tokens = make("transformer", "pixelsnail", "rq_transformer"), every_sequence()
    loss = prior(tokens, None)
    torch.testing.assert_close(loss, prior.nll(tokens, None).mean())
    loss.backward()
    assert not [name for name, p in prior.named_parameters() if p.requires_grad and p.grad is None]


def test_a_masked_link_makes_the_chain_a_bound_with_its_error(make):
    prior, tokens = make("pixelcnn", "masked", "masked"), every_sequence()
    nats, variance = prior.estimate(tokens, None)
    assert not prior.exact and torch.equal(nats, prior.nll(tokens, None))
    exact, *masked = prior.links
    assert torch.equal(nats[:, :1], exact.nll(tokens[:, :1], None))
    found = [link.estimate(tokens[:, : link.layout.num_tokens], None) for link in masked]
    assert torch.equal(nats[:, 1:], torch.cat([own for own, _ in found], 1))
    torch.testing.assert_close(variance, found[0][1] + found[1][1])
    assert not torch.equal(prior.estimate(tokens, None, again=1)[0], nats)


def test_a_chain_of_tables_is_not_trained(make):
    assert not make("uniform", "counts", "counts").trained
    assert make("uniform", "pixelcnn", "counts").trained


@pytest.mark.parametrize("names", [("pixelsnail", "transformer", "masked"), ("sub-tokens", "counts", "rq_transformer")])
def test_a_published_chain_loads_with_the_same_nll(names, tmp_path, make):
    prior, tokens = make(*names).float(), every_sequence()
    tensors = {key: tensor.contiguous() for key, tensor in prior.state_dict().items()}
    save_model(tmp_path / "prior", "prior", prior_config(prior), tensors, {})
    loaded, _ = load_prior(tmp_path / "prior")
    assert prior_config(loaded) == prior_config(prior)
    assert torch.equal(loaded.nll(tokens, None), prior.nll(tokens, None))


def test_another_number_of_links_than_levels_is_refused(make):
    with pytest.raises(UserError, match=r"2 priors for the 3 levels"):
        make("uniform", "counts")
