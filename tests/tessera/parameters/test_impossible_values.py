"""Every value that params.yaml may not have is refused in one line, with its path and what came."""

from __future__ import annotations

import pytest

from tessera.errors import UserError


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("stage1_vqvae.training.learning_rate", "3e-4"),  # a quoted number is a string
        ("stage1_vqvae.training.learning_rate", True),
        ("stage1_vqvae.training.learning_rate", 0),
        ("stage1_vqvae.training.steps", True),
        ("stage1_vqvae.training.steps", 1.5),
        ("stage1_vqvae.training.steps", 0),
        ("stage1_vqvae.training.compile", "no"),
        ("stage1_vqvae.training.compile", 1),
        ("stage1_vqvae.training.betas", [0.9, 1.0]),
        ("stage1_vqvae.network.conv.channels", 0),
        ("stage1_vqvae.likelihood.discretized_logistic.min_log_scale", -95.0),  # would overflow in float32
        ("stage1_vqvae.likelihood.mixture_of_logistics.min_log_scale", 95.0),
        ("stage1_vqvae.likelihood.mixture_of_logistics.components", 0),
        ("stage1_vqvae.network.conv.strides", []),
        ("stage1_vqvae.network.conv.strides", [3]),
        ("stage1_vqvae.network.conv.strides", 4),
        ("stage1_vqvae.network.conv.stem_channels", 0),
        ("stage1_vqvae.network.resnet.multipliers", []),
        ("stage1_vqvae.network.resnet.multipliers", [1, 0]),
        ("stage1_vqvae.network.resnet.residual_blocks", 0),
        ("stage1_vqvae.network.resnet.dropout", 1.0),
        ("stage1_vqvae.network.vit.patch", 0),
        ("stage1_vqvae.network.vit.width", 66),  # sines and cosines of rows and columns
        ("stage1_vqvae.quantizer.codebook_size", 0),
        ("stage1_vqvae.quantizer.codebook_size", []),
        ("stage1_vqvae.quantizer.codebook_size", "64"),
        ("stage1_vqvae.quantizer.revival_threshold", 1.0),
        ("stage1_vqvae.quantizer.vq.codebook_size", 0),  # an option's own
        ("data.channels", 4),
        ("data.background", [255, 255]),
        ("data.background", [255, 255, 256]),
        ("data.source", None),
        ("data.revision", 1),
        ("data.validation_fraction", 0.0),
        ("data.test_fraction", 1.0),
        ("sampling.top_p", 0.0),
        ("sampling.temperature", -0.1),
        ("sampling.guidance_scale", float("nan")),
        ("stage2_prior.heads", None),
        ("stage2_prior.training.steps", 0),
        ("stage2_prior.pixelcnn.training", {"steps": 0}),
        ("runtime.threads", 0),
        ("runtime.threads", 10_000_000_000),
        ("sampling.images", 10**30),
        ("data.split_seed", 2**31),
        ("stage2_prior.largest_softmax", 2**31),
        ("stage2_prior.masked.bound_draws", 2**31),
        ("stage2_prior.pixelcnn.kernel_size", 2**31 + 1),
        ("stage1_vqvae.quantizer.codebook_size", 10**30),
        ("data.grey_range", [0]),
        ("data.grey_range", ["0", 1]),
    ],
)
def test_impossible_value_is_refused_with_its_path_and_value(params, path, value):
    with pytest.raises(UserError) as caught:
        params({path: value})
    message = str(caught.value)
    assert path in message and "\n" not in message
    assert message.startswith("params.yaml: ")


@pytest.mark.parametrize("sides", [[[1]], [[1, 2, 3]], [1, [2]], [{}], [[[1]]]])
def test_a_fault_in_a_list_of_pairs_is_one_line_with_its_place(params, sides):
    with pytest.raises(UserError, match=r"stage1_vqvae\.scales\.sides\.[01]") as caught:
        params({"stage1_vqvae.scales.sides": sides})
    assert "\n" not in str(caught.value)


def test_a_fault_in_a_list_is_told_once(params):
    with pytest.raises(UserError) as caught:
        params({"stage1_vqvae.quantizer.fsq.levels": [5, 1]})
    assert "at least 1 item" not in str(caught.value)
