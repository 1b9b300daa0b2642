"""Values of params.yaml that do not fit one another are refused in one line that says what does not fit."""

from __future__ import annotations

import pytest

from tessera.errors import UserError


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data.height": 9}, ["data.height", "9", "divisible by 2", "stage1_vqvae.network.conv"]),
        (
            {"data.height": 8, "data.width": 10, "stage1_vqvae.network.conv.strides": [2, 2]},
            ["data.width", "10", "divisible by 4", "multiple of 4"],
        ),
        (
            {"stage1_vqvae.quantizer.codebook_size": [32, 64]},
            ["stage1_vqvae.quantizer.vq", "2 codebook sizes for 1 levels"],
        ),
        (
            {
                "stage1_vqvae.quantizer.name": "residual",
                "stage1_vqvae.quantizer.residual.quantizer.codebook_size": [16, 32],
            },
            ["stage1_vqvae.quantizer.residual", "2 codebook sizes for 1 levels"],
        ),
        (
            {"stage1_vqvae.quantizer.fsq.levels": [2, 8]},
            ["stage1_vqvae.quantizer.fsq.levels", "greater than or equal to 3"],
        ),
        ({"stage1_vqvae.quantizer.fsq.levels": [4096, 8192]}, ["stage1_vqvae.quantizer.fsq.levels", "2**24"]),
        (
            {
                "stage1_vqvae.training.weight_ema_decay": 0.99,
                "stage1_vqvae.quantizer.vq.codebook_update": "gradient",
                "stage1_vqvae.quantizer.gradient_estimator": "diveq",
                "stage1_vqvae.quantizer.vq.codebook_cost": 0.0,
            },
            ["stage1_vqvae.training.weight_ema_decay", "revived in its place"],
        ),
        (
            {
                "data.height": 24,
                "data.width": 20,
                "stage1_vqvae.network.name": "resnet",
                "stage1_vqvae.network.resnet.multipliers": [1, 1, 2, 2],
            },
            ["data.width", "20", "stage1_vqvae.network.resnet", "multiple of 8"],
        ),
        (
            {"stage1_vqvae.network.name": "vit", "stage1_vqvae.network.vit.patch": 3},
            ["data.height", "8", "stage1_vqvae.network.vit", "multiple of 3"],
        ),
        (  # levels are the chosen network's, whatever the others' strides
            {
                "stage1_vqvae.network.name": "resnet",
                "stage1_vqvae.network.conv.strides": [2, 2],
                "stage1_vqvae.quantizer.codebook_size": [32, 64],
            },
            ["stage1_vqvae.quantizer.vq", "2 codebook sizes for 1 levels"],
        ),
        (
            {"stage1_vqvae.network.name": "resnet", "stage1_vqvae.network.resnet.groups": 6},
            ["stage1_vqvae.network.resnet", "groups 6 must divide channels 32"],
        ),
        (  # every multiple of channels would do, and the first convolution's width not
            {
                "stage1_vqvae.network.name": "resnet",
                "stage1_vqvae.network.resnet.channels": 4,
                "stage1_vqvae.network.resnet.multipliers": [2, 4],
            },
            ["stage1_vqvae.network.resnet", "groups 8 must divide channels 4"],
        ),
        (
            {"stage1_vqvae.network.name": "resnet", "stage1_vqvae.network.resnet.attention_factors": [2, 4]},
            ["stage1_vqvae.network.resnet", "attention_factors", "4", "[1, 2]"],
        ),
        (
            {"stage1_vqvae.network.name": "vit", "stage1_vqvae.network.vit.heads": 3},
            ["stage1_vqvae.network.vit", "width 64", "heads 3"],
        ),
        (
            {"stage2_prior.name": "pixelsnail", "stage2_prior.pixelsnail.heads": 6},
            ["stage2_prior.pixelsnail", "64 channels", "heads 6"],
        ),
        (
            {"stage2_prior.name": "chain", "stage1_vqvae.network.conv.strides": [2, 2]},
            ["stage2_prior.chain.links", "1 priors for 2 levels"],
        ),
        (
            {"stage2_prior.name": "chain", "stage2_prior.chain.links": [{"name": "transformer", "heads": 3}]},
            ["stage2_prior.chain.links.0.transformer", "width 128", "heads 3"],
        ),
        (
            {"stage2_prior.chain.links": [{"name": "chain"}]},
            ["stage2_prior.chain.links.0.name", "chain cannot be here"],
        ),
        (
            {"stage2_prior.chain.links": [{"name": "counts", "counts": {"largest": 3}}]},
            ["stage2_prior.chain.links.0.counts.largest: unknown parameter; did you mean `largest_softmax`?"],
        ),
        ({"sampling.temperature": [0.5, "1"]}, ["sampling.temperature.1", "number", "'1'"]),
        ({"sampling.temperature": [0.5, 1.0]}, ["sampling.temperature", "2 values for 1 levels"]),
        ({"sampling.top_k": 65}, ["sampling.top_k", "65", "64", "null"]),
        (  # a level's own, where each has one
            {
                "stage1_vqvae.network.conv.strides": [2, 2],
                "stage1_vqvae.quantizer.codebook_size": [32, 64],
                "sampling.top_k": [33, 64],
            },
            ["sampling.top_k", "33", "32", "null"],
        ),
        (
            {"stage2_prior.training.label_dropout": 0.0},
            ["sampling.guidance_scale: 2", "stage2_prior's training.label_dropout is 0"],
        ),
        (
            {"sampling.precision": "bf16", "sampling.batch_size": None},
            ["sampling", "batch_size", "bf16", "give a number"],
        ),
        ({"extract_codes.shift": 3}, ["extract_codes.shift: 3", "8x8", "49 passes", "at most 2"]),
        ({"stage1_vqvae.augmentation.shift": 8}, ["stage1_vqvae.augmentation.shift: 8", "8x8"]),
        (
            {"stage1_vqvae.quantizer.codebook_size": 94, "stage2_prior.largest_softmax": 46},
            ["stage2_prior.largest_softmax: 46", "94 codes", "raise it to 47"],
        ),
        (  # of a chain's link, which splits the codes of the coarser levels too
            {
                "stage1_vqvae.network.conv.strides": [2, 2],
                "stage1_vqvae.quantizer.codebook_size": [17, 16],
                "stage2_prior.name": "chain",
                "stage2_prior.chain.links": [{"name": "counts"}, {"name": "counts", "counts": {"largest_softmax": 16}}],
            },
            ["stage2_prior.chain.links.1.largest_softmax: 16", "17 codes", "raise it to 17"],
        ),
        ({"data.grey_range": [5, 5]}, ["data.grey_range", "black", "white", "[5.0, 5.0]"]),
        ({"stage1_vqvae.training.warmup_steps": 1200}, ["stage1_vqvae.training.warmup_steps", "1200"]),
        ({"classifier.training.warmup_steps": 500}, ["classifier.training.warmup_steps", "classifier.training.steps"]),
        (
            {"stage2_prior.name": "pixelcnn", "stage2_prior.pixelcnn.training": {"warmup_steps": 1500}},
            ["stage2_prior.training.warmup_steps: 1500"],
        ),
        ({"stage2_prior.heads": 3}, ["stage2_prior.transformer", "width 128", "heads 3"]),
        ({"stage2_prior.pixelcnn.kernel_size": 4}, ["stage2_prior.pixelcnn.kernel_size", "must be odd", "4"]),
    ],
)
def test_impossible_combination_says_what_does_not_fit(params, changes, named):
    with pytest.raises(UserError) as caught:
        params(changes)
    message = str(caught.value)
    assert all(word in message for word in named), message
    assert "\n" not in message


def test_top_k_of_the_largest_codebook_is_allowed(params):
    changes = {"stage1_vqvae.network.conv.strides": [2, 2], "stage1_vqvae.quantizer.codebook_size": [16, 128]}
    assert params({**changes, "sampling.top_k": 128}).sampling.top_k == 128


def test_no_label_dropout_is_fine_without_guidance_or_labels(params):
    undropped = {"stage2_prior.training.label_dropout": 0.0}
    for change in ({"sampling.guidance_scale": 1.0}, {"data.use_labels": False}, {"stage2_prior.name": "counts"}):
        assert params(undropped | change)


def test_options_that_are_not_chosen_need_not_fit_the_shared_values(params):
    changes = {"stage2_prior.width": 100, "stage2_prior.heads": 3}  # no transformer has a head of 100 / 3
    assert params(changes | {"stage2_prior.name": "pixelcnn"})
    with pytest.raises(UserError, match=r"stage2_prior\.transformer: width 100 must be a multiple of heads 3"):
        params(changes | {"stage2_prior.name": "transformer"})


def test_the_network_that_judges_may_not_be_trained_against(params, monkeypatch):
    """Of whatever section: a features section that is chosen in it counts, at any depth."""
    from stage1_vqvae.parameters import Stage1Params

    own = Stage1Params.values
    params({"evaluation.features.name": "mobilenet_v2"})
    trained = {"objective": {"perceptual": {"features": {"name": "mobilenet_v2", "mobilenet_v2": {}}}}}
    monkeypatch.setattr(Stage1Params, "values", lambda section: own(section) | trained)
    for name in ("efficientnet_lite0", "classifier", "none"):
        params({"evaluation.features.name": name})
    with pytest.raises(UserError) as caught:
        params({"evaluation.features.name": "mobilenet_v2"})
    text = str(caught.value)
    assert "evaluation.features.name: mobilenet_v2" in text and "\n" not in text
    assert "stage1_vqvae.objective.perceptual.features.name" in text
