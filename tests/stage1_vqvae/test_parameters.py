"""Parameters of stage 1 that do not go together are refused with the reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tessera.errors import UserError
from tessera.parameters import Params

REFUSED = {
    ("fsq", "gradient_estimator"): ("fsq.gradient_estimator: does not apply, since rounding passes the gradient"),
    ("lfq", "gradient_estimator"): "lfq.gradient_estimator: does not apply, since a sign passes the gradient",
    ("bsq", "gradient_estimator"): "bsq.gradient_estimator: does not apply, since a sign passes the gradient",
    ("gumbel", "gradient_estimator"): "gumbel.gradient_estimator: does not apply, since the gradient goes through",
    ("ibq", "gradient_estimator"): "ibq.gradient_estimator: does not apply, since the gradient goes through",
    ("soft_em", "gradient_estimator"): "soft_em.gradient_estimator: does not apply, since the decoder gets the mean",
}


@pytest.mark.parametrize(("place", "message"), REFUSED.items())
def test_an_estimator_that_does_not_apply_is_refused_with_the_reason(params, place, message) -> None:
    with pytest.raises(UserError, match=message):
        params({f"stage1_vqvae.quantizer.{place[0]}.{place[1]}": "rotation"})


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("gumbel", {}, "its codes do not approximate vectors"),
        ("ibq", {}, "not the nearest"),
        ("bsq", {}, "the residual of a unit vector is not a unit vector"),
        ("vq", {"distance": "cosine"}, "the residual of a unit vector is not a unit vector"),
        ("vq", {"projection_dim": 2}, "the residual would leave the projection"),
    ],
)
def test_a_residual_that_makes_no_sense_is_refused_with_the_reason(params, name, changes, reason) -> None:
    quantizer = {"name": name, name: changes}
    params({"stage1_vqvae.quantizer.residual.quantizer": quantizer})  # only the chosen quantizer must make sense
    with pytest.raises(UserError, match=rf"stage1_vqvae.quantizer.residual: .*quantizer {name}: .*{reason}"):
        params({"stage1_vqvae.quantizer.name": "residual"})


def test_a_codebook_that_nothing_would_train_is_refused(params) -> None:
    vq = "stage1_vqvae.quantizer.vq."
    learned = {vq + "codebook_update": "gradient", vq + "codebook_cost": 0.0}
    with pytest.raises(
        UserError, match=r"quantizer.vq: nothing would train the codes: rotation passes them no gradient"
    ):
        params({**learned, vq + "gradient_estimator": "rotation"})
    params({**learned, vq + "gradient_estimator": "diveq"})
    params({**learned, vq + "entropy_bonus": 0.1})


@pytest.mark.parametrize(
    ("outer", "name", "remedy"),
    [
        ("residual", "residual", "raise depth"),
        ("residual", "grouped", "inside the groups"),
        ("grouped", "grouped", "raise groups"),
    ],
)
def test_a_nesting_that_another_says_better_is_refused_with_that_other(params, outer, name, remedy) -> None:
    with pytest.raises(UserError, match=rf"stage1_vqvae.quantizer.{outer}.quantizer.name: {name} cannot .*{remedy}"):
        params({f"stage1_vqvae.quantizer.{outer}.quantizer.name": name})


def test_a_quantizer_inside_another_takes_what_it_does_not_give_from_the_sections_around_it(params) -> None:
    quantizer = "stage1_vqvae.quantizer."
    inner = {"name": "vq", "codebook_size": 3, "vq": {"entropy_bonus": 0.5}}
    found = params(
        {
            quantizer + "residual.quantizer": inner,
            quantizer + "vq.codebook_cost": 0.25,
            quantizer + "vq.entropy_bonus": 0.0,
            quantizer + "codebook_size": 7,
            quantizer + "codebook_dim": 5,
        }
    ).stage1_vqvae.quantizer.residual.quantizer.vq
    own_section, own_shared, outer_section, outer_shared = 0.5, 3, 0.25, 5
    values = (found.entropy_bonus, found.codebook_size, found.codebook_cost, found.codebook_dim)
    assert values == (own_section, own_shared, outer_section, outer_shared)


def test_draws_from_a_quantizer_that_draws_nothing_are_refused(params) -> None:
    with pytest.raises(UserError, match=r"extract_codes.draws: 2, .* vq cannot draw codes"):
        params({"extract_codes.draws": 2})


TERMS = "stage1_vqvae.objective."


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {
                TERMS + "adversarial.weight": 1.0,
                TERMS + "adversarial.discriminator.name": "projected",
                TERMS + "adversarial.regulariser.name": "r1",
            },
            r"stage1_vqvae\.objective\.adversarial\.regulariser\.name: r1 needs second derivatives",
        ),
        (
            {TERMS + "adversarial.weight": 1.0, TERMS + "adversarial.discriminator.patch.layers": 3},
            r"adversarial\.discriminator\.patch\.layers: 3 layers need images of at least 24 pixels a side, got 8x8",
        ),
        (
            {TERMS + "perceptual.weight": 1.0, TERMS + "perceptual.part": 9},
            r"stage1_vqvae\.objective\.perceptual\.part: 9 pixels of images of 8x8; give at most 8, or null",
        ),
        (
            {
                TERMS + "adversarial.weight": 1.0,
                TERMS + "adversarial.discriminator.name": "projected",
                TERMS + "adversarial.discriminator.projected.part": 9,
            },
            r"objective\.adversarial\.discriminator\.projected\.part: 9 pixels of images of 8x8; give at most 8",
        ),
        (
            {"refine_decoder.name": "objective", "stage1_vqvae.network.name": "vit"},
            r"refine_decoder\.added_blocks: 1, but stage1_vqvae\.network vit takes no added blocks; set it to 0",
        ),
        (
            {
                TERMS + "adversarial.weight": 1.0,
                TERMS + "adversarial.discriminator.name": "projected",
                TERMS + "adversarial.discriminator.projected.matching": 2.0,
            },
            r"stage1_vqvae\.objective\.adversarial\.adaptive: discriminator projected adds a distance",
        ),
        (
            {
                "refine_decoder.name": "objective",
                "refine_decoder.objective.adversarial.adaptive": True,
            },
            r"refine_decoder\.objective\.adversarial\.adaptive: discriminator projected adds a distance",
        ),
        ({TERMS + "perceptual.features.name": "classifier"}, "stage 1 does not depend on the run's classifier"),
        ({"refine_decoder.name": "objective"}, None),
        (
            {
                "refine_decoder.name": "objective",
                "refine_decoder.objective": {"perceptual": {"weight": 0.0}, "adversarial": {"weight": 0.0}},
            },
            r"refine_decoder\.objective: every term has weight 0",
        ),
        (
            {"refine_decoder.name": "objective", "evaluation.features.name": "efficientnet_lite0"},
            r"efficientnet_lite0 is trained against in refine_decoder\.objective\.adversarial\.discriminator\.proj",
        ),
        (
            {"extract_codes.refine": 5, TERMS + "perceptual.weight": 1.0},
            r"extract_codes\.refine: 5, but stage1_vqvae\.objective has a term",
        ),
        ({"sampling.decoder": "refined"}, r"sampling\.decoder: refined, but refine_decoder\.name is none"),
        (
            {TERMS + "adversarial.weight": 1.0, "stage1_vqvae.training.patience": 4},
            r"stage1_vqvae\.training\.patience: 4, but no validation figure measures .*; set it to null$",
        ),
        (
            {"refine_decoder.name": "objective", "stage1_vqvae.training.patience": 4},
            r"refine_decoder\.training\.patience: 4, but no validation figure measures .*; set it to null$",
        ),
        (
            {
                "refine_decoder.name": "objective",
                "refine_decoder.training.patience": None,
                "stage1_vqvae.training.patience": 4,
            },
            None,
        ),
        ({"refine_decoder.training": {"step": 3}}, r"refine_decoder\.training\.step: unknown parameter"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(params: Callable[..., Params], changes: dict, said: str) -> None:
    if said is None:
        assert set(params(changes).refine_decoder.objective.on) == {"adversarial"}
        return
    with pytest.raises(UserError, match=said):
        params(changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scales.sides": [1, 4, 3]}, r"scales.sides: \[4, 4\] before \[3, 3\], but each scale must be larger"),
        ({"scales.sides": [1, [2, 1], [1, 2], 4]}, r"scales.sides: \[2, 1\] before \[1, 2\]"),
        ({"scales.sides": [2, 2, 4]}, r"scales.sides: \[2, 2\] before \[2, 2\]"),
        ({"scales.sides": [1, 3]}, r"the last is \[3, 3\], but the network's grid is \[4, 4\]"),
        ({"scales.sides": [1, 2], "network.conv.strides": [2, 2]}, r"conv has 2 levels here"),
        ({"scales.sides": [1, 4], "quantizer.name": "ibq"}, r"codes of ibq do not approximate"),
        ({"scales.sides": [1, 4], "quantizer.name": "gumbel"}, r"codes of gumbel do not approximate"),
        ({"scales.sides": [1, 2, 4], "quantizer.codebook_size": [4, 4]}, r"2 codebook sizes for 3 levels"),
        ({"scales.sides": []}, r"scales.sides"),
    ],
)
def test_scales_that_make_no_sense_are_refused(params, changes, message) -> None:
    with pytest.raises(UserError, match=message):
        params({f"stage1_vqvae.{key}": value for key, value in changes.items()})
