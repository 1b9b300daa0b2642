"""A prior whose training begins with the weights of a published one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stage2_prior.initial import begin
from stage2_prior.priors.build import build_prior, prior_config
from stage2_prior.priors.labels import LabelEmbedding
from tessera.artifacts.models import save_model
from tessera.codes.layout import CodeLayout, Level
from tessera.errors import UserError
from tessera.parameters.parts import options

LAYOUT = CodeLayout((1, 8, 8), (Level(2, 2, 1, 7),))
LEARNED = [name for name in options("stage2_prior.priors") if name not in ("uniform", "counts", "chain")]


def prior(arguments: Any, name: str = "transformer", classes: tuple[str, ...] = ("a", "b"), **changes: Any) -> Any:
    torch.manual_seed(len(classes))
    config = {
        "name": name,
        "params": arguments(name) | changes,
        "layout": LAYOUT.to_json(),
        "num_classes": len(classes),
    }
    return build_prior(config | {"class_names": classes or None, "class_images": [1] * len(classes) or None})


@pytest.fixture
def published(tmp_path: Path, prior_arguments: Any) -> Any:
    """`published(name)`: the folder of a published prior of the classes a and b."""

    def make(name: str = "transformer", **changes: Any) -> tuple[Path, Any]:
        old, folder = prior(prior_arguments, name, **changes), tmp_path / "old"
        save_model(folder, "prior", prior_config(old), old.state_dict(), {"codes": "c" * 64, "vqvae": "v" * 64})
        return folder, old

    return make


@pytest.mark.parametrize("name", LEARNED)
def test_the_same_codes_and_classes_give_the_same_function(published: Any, prior_arguments: Any, name: str) -> None:
    folder, old = published(name)
    new = prior(prior_arguments, name, classes=("a", "b"))
    for parameter in new.parameters():
        torch.nn.init.normal_(parameter)
    manifest = begin(new, folder, "v" * 64)
    assert manifest.kind == "prior"
    assert all(torch.equal(tensor, new.state_dict()[key]) for key, tensor in old.state_dict().items())


def test_classes_are_found_by_name_and_new_ones_begin_as_no_class(
    published: Any, prior_arguments: Any, capsys: pytest.CaptureFixture
) -> None:
    folder, old = published()
    new = prior(prior_arguments, classes=("z", "b", "a"), dropout=0.3)
    begin(new, folder, "w" * 64)
    (before,) = [part.weight for part in old.modules() if isinstance(part, LabelEmbedding)]
    (after,) = [part.weight for part in new.modules() if isinstance(part, LabelEmbedding)]
    assert torch.equal(after, before[[2, 1, 0, 2]])
    tokens = torch.randint(0, 7, (3, 4))
    names = torch.tensor([0, 1, 2])
    new.eval(), old.eval()
    assert torch.equal(new.nll(tokens, names), old.nll(tokens, torch.tensor([2, 1, 0])))
    said = capsys.readouterr().err
    assert "1 of 3 classes are new to it" in said and "trained on the codes of another VQ-VAE" in said


def test_a_prior_without_labels_begins_one_with_labels(published: Any, prior_arguments: Any) -> None:
    folder, old = published(classes=())
    new = prior(prior_arguments, classes=("a", "b"))
    begin(new, folder, "v" * 64)
    tokens = torch.randint(0, 7, (2, 4))
    new.eval(), old.eval()
    assert torch.equal(new.nll(tokens, torch.tensor([0, 1])), old.nll(tokens, None))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_classes": 50},  # more than its table of labels has rows
        {"num_classes": None},
        {"num_classes": 2, "class_names": 7},
        {"num_classes": "b", "class_names": None},
    ],
)
def test_a_configuration_that_does_not_fit_its_weights_is_refused(
    published: Any, prior_arguments: Any, tmp_path: Path, changes: dict[str, Any]
) -> None:
    _, old = published()
    config = {**prior_config(old), **changes}
    save_model(tmp_path / "bad", "prior", config, old.state_dict(), {})
    with pytest.raises(UserError, match=r"initialise_from: .*bad: its configuration does not fit its weights"):
        begin(prior(prior_arguments, classes=("z", "b", "a")), tmp_path / "bad", "v" * 64)


def chain(arguments: Any, classes: tuple[str, ...] = ("a", "b"), **changes: Any) -> Any:
    """A chain with one link, which has these changes."""
    links = [{"name": "any_order", "params": arguments("any_order") | changes}]
    return prior(lambda name: {"links": links}, "chain", classes)


def test_the_links_of_a_chain_may_have_another_dropout_and_no_other_size(prior_arguments: Any, tmp_path: Path) -> None:
    old = chain(prior_arguments, dropout=0.1)
    save_model(tmp_path / "old", "prior", prior_config(old), old.state_dict(), {"codes": "c" * 64, "vqvae": "v" * 64})
    new = chain(prior_arguments, dropout=0.3)
    begin(new, tmp_path / "old", "v" * 64)
    assert all(torch.equal(tensor, new.state_dict()[key]) for key, tensor in old.state_dict().items())
    with pytest.raises(UserError, match=r"has params\.links\.0\.params\.heads 2, and this training 4"):
        begin(chain(prior_arguments, heads=4), tmp_path / "old", "v" * 64)


def test_another_prior_is_refused_with_the_difference(published: Any, prior_arguments: Any) -> None:
    folder, _ = published()
    with pytest.raises(UserError, match=r"has params\.heads 2, and this training 4"):
        begin(prior(prior_arguments, heads=4), folder, "v" * 64)
    with pytest.raises(UserError, match="has name transformer, and this training masked"):
        begin(prior(prior_arguments, "masked"), folder, "v" * 64)
