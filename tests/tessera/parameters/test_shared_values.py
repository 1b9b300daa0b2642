"""Values that options share, and that a section takes from another: where they stand, and which is stronger."""

from __future__ import annotations

import pytest

from tessera.errors import UserError


def test_an_option_takes_shared_values_and_its_own_are_stronger(params):
    changes = {"stage2_prior.width": 64, "stage2_prior.pixelcnn.width": 32, "stage2_prior.training.steps": 700}
    found = params(changes | {"stage2_prior.pixelcnn.training": {"learning_rate": 1.0}}).stage2_prior
    assert (found.transformer.width, found.pixelcnn.width, found.masked.training.steps) == (64, 32, 700)
    assert (found.pixelcnn.training.steps, found.pixelcnn.training.learning_rate) == (700, 1.0)
    assert found.transformer.training.learning_rate == 2e-3


def test_a_nested_option_takes_what_the_choice_around_it_has(params):
    links = [{"name": "masked", "width": 64, "masked": {"bound_draws": 3}}]
    changes = {"stage2_prior.chain.links": links, "stage2_prior.masked.dropout": 0.5, "stage2_prior.layers": 5}
    link = params(changes).stage2_prior.chain.links[0]
    assert link.values() == {
        "name": "masked",
        "masked": {
            "largest_softmax": 16384, "layers": 5, "width": 64, "dropout": 0.5, "heads": 4, "bound_draws": 3,
        },
    }  # fmt: skip


def test_a_nested_quantizer_takes_the_section_beside_and_overrides_it(params):
    grouped = {"name": "residual", "codebook_dim": 8, "residual": {"depth": 2, "quantizer": {"name": "fsq"}}}
    changes = {"stage1_vqvae.quantizer.grouped.quantizer": grouped, "stage1_vqvae.quantizer.vq.distance": "cosine"}
    quantizer = params(changes | {"stage1_vqvae.quantizer.fsq.levels": [5, 5]}).stage1_vqvae.quantizer
    assert quantizer.grouped.quantizer.chosen.quantizer.chosen.levels == (5, 5)
    assert quantizer.residual.quantizer.chosen.distance == "cosine"


def test_the_nearer_value_is_stronger(params):
    """A value inside a nested choice is stronger than every value around it, the option's own section there too."""
    inner = {"name": "simvq", "gradient_estimator": "straight_through"}
    quantizer = params({"stage1_vqvae.quantizer.residual.quantizer": inner}).stage1_vqvae.quantizer
    assert quantizer.residual.quantizer.chosen.gradient_estimator == "straight_through"
    links = [{"name": "pixelsnail", "width": 64}]
    found = params({"stage2_prior.chain.links": links, "stage2_prior.pixelsnail.width": 256}).stage2_prior
    assert found.chain.links[0].chosen.width == 64 and found.pixelsnail.width == 256


@pytest.mark.parametrize("link", [{"training": {"steps": 5}}, {"layers": "oops"}, {"chain": 5}])
def test_a_nested_choice_refuses_what_it_has_no_use_for(params, link):
    with pytest.raises(UserError, match=r"stage2_prior\.chain\.links\.0\."):
        params({"stage2_prior.chain.links": [{"name": "counts"} | link]})


def test_a_fault_of_a_shared_value_is_told_once_where_it_stands(params):
    with pytest.raises(UserError) as caught:
        params({"stage2_prior.width": 0})
    assert str(caught.value).count("stage2_prior.width") == 1 and "pixelcnn" not in str(caught.value)
    with pytest.raises(UserError) as caught:
        params({"stage2_prior.width": 128, "stage1_vqvae.quantizer.codebook_size": ["a"]})
    assert "gumbel" not in str(caught.value) and "grouped" not in str(caught.value)


def test_a_section_takes_what_it_does_not_give_from_another(params):
    found = params(
        {
            "stage1_vqvae.training.seed": 7,
            "stage1_vqvae.objective.adversarial.start_step": 50,
            "stage1_vqvae.objective.perceptual.features": {"name": "vgg16", "file": None, "side": 32},
            "refine_decoder.objective.adversarial": {"discriminator": {"patch": {"channels": 8}}},
        }
    ).refine_decoder
    assert (found.training.seed, found.training.steps, found.augmentation.shift) == (7, 2500, 1)
    adversarial = found.objective.adversarial
    assert (adversarial.start_step, adversarial.weight) == (50, 0.0)
    assert adversarial.discriminator.patch.values() == {"channels": 8, "layers": 1, "norm": "group"}
    assert found.objective.perceptual.features.vgg16.values() == {"file": None, "side": 32}


def test_a_fault_of_a_value_that_is_taken_is_told_once_where_it_stands(params):
    with pytest.raises(UserError) as caught:
        params({"stage1_vqvae.training.learning_rate": -1.0, "refine_decoder.training": {}})
    assert str(caught.value).count("learning_rate") == 1 and "stage1_vqvae.training.learning_rate" in str(caught.value)


def test_an_empty_section_of_a_nested_option_is_as_if_left_out(params):
    link = {"name": "transformer", "transformer": None}
    assert params({"stage2_prior.chain.links": [link]}).stage2_prior.chain.links[0].chosen.width == 128
