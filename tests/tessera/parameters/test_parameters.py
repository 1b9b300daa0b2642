"""params.yaml: every mistake is one line with the dotted path, what came and what is allowed."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, get_origin

import pytest
from pydantic import ValidationError

from tessera.cli.preset import leaves
from tessera.errors import UserError
from tessera.parameters import Params, load, read_yaml, validate
from tessera.parameters.inherit import section_in
from tessera.parameters.parts import class_of, options, parameters_of
from tessera.parameters.root import schema
from tessera.parameters.sections import Choice, Section, choice


def edited(text: str, tmp_path: Path, repository: Path, old: str) -> Path:
    """A copy of params.yaml with the one line that starts with `old` replaced."""
    lines = (repository / "params.yaml").read_text(encoding="utf-8").splitlines()
    found = [i for i, line in enumerate(lines) if line.strip().startswith(old)]
    lines[found[0]] = lines[found[0]].split(old)[0] + text
    file = tmp_path / "params.yaml"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def test_the_repository_params_are_valid(repository):
    assert isinstance(load(repository / "params.yaml"), Params)


def fields(model: type[Section], prefix: str = "", shared: frozenset[str] = frozenset()) -> set[str]:
    """Every dotted leaf that params.yaml must have: of an option, those that options do not share."""
    found = set()
    for name, field in model.model_fields.items():
        path = f"{prefix}.{name}" if prefix else name
        section = None if get_origin(field.annotation) is tuple else section_in(field.annotation)  # a list is one leaf
        if section and issubclass(section, Choice) and section.nested:
            found.add(f"{path}.name")
        elif name in shared or (issubclass(model, Choice) and model.optional and name in model.option_names()):
            continue  # an option whose section may be left out has no value of its own
        elif name in model.takes:
            continue  # what is not given there is that of another section
        elif section:
            option = issubclass(model, Choice) and name in model.option_names()
            found |= fields(section, path, frozenset(model.shared_names()) if option else frozenset()) or {path}
        else:
            found.add(path)
    return found


SIMVQ = "stage1_vqvae.quantizer.simvq"  # has no values of its own
OVERRIDDEN = {f"{SIMVQ}.gradient_estimator"}  # its paper's, whatever the others have


def required(raw: dict[str, Any]) -> set[str]:
    """The leaves that no other value could stand in for."""
    taken = tuple(f"refine_decoder.{name}" for name in schema().model_fields["refine_decoder"].annotation.takes)
    return {leaf for leaf in leaves(raw) if leaf not in OVERRIDDEN and not leaf.startswith(taken)}


def test_every_leaf_is_a_field_and_every_field_a_leaf(raw_params):
    assert fields(schema()) - {SIMVQ} == required(raw_params)


def test_every_missing_leaf_is_named(raw_params):
    for path in required(raw_params):
        *sections, key = path.split(".")
        node = raw_params
        for section in sections:
            node = node[section]
        value = node.pop(key)
        with pytest.raises(UserError, match=rf"{path}: missing"):
            validate(raw_params)
        node[key] = value


def test_unknown_key_is_refused_with_the_nearest_name(raw_params):
    raw_params["stage1_vqvae"]["training"]["learning_rat"] = 1
    with pytest.raises(UserError) as caught:
        validate(raw_params)
    assert str(caught.value) == (
        "params.yaml: stage1_vqvae.training.learning_rat: unknown parameter; did you mean `learning_rate`?"
    )


def test_misspelt_name_of_a_choice_lists_the_options(params):
    with pytest.raises(UserError, match=r"stage2_prior\.name: .*'pixelcnn'.*got 'pixelcn'; did you mean `pixelcnn`\?"):
        params({"stage2_prior.name": "pixelcn"})


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


def test_every_fault_is_in_the_one_line(raw_params):
    raw_params["data"]["height"] = "eight"
    raw_params["sampling"].pop("seed")
    with pytest.raises(UserError) as caught:
        validate(raw_params)
    assert "data.height" in str(caught.value) and "sampling.seed: missing" in str(caught.value)


def test_unquoted_exponent_is_a_number_and_no_is_a_string(tmp_path, repository):
    file = edited("learning_rate: 3e-4", tmp_path, repository, old="learning_rate:")
    assert load(file).stage1_vqvae.training.learning_rate == 3e-4
    file = edited("learning_rate: '3e-4'", tmp_path, repository, old="learning_rate:")
    with pytest.raises(UserError, match=r"learning_rate: .*got '3e-4'"):
        load(file)
    file = edited("use_labels: no", tmp_path, repository, old="use_labels:")
    with pytest.raises(UserError, match=r"data\.use_labels: .*got 'no'"):
        load(file)


def test_levels_and_sizes_come_back_as_tuples(params):
    changed = params({"stage1_vqvae.network.conv.strides": [2, 2], "stage1_vqvae.quantizer.codebook_size": [16, 32]})
    assert changed.stage1_vqvae.network.conv.strides == (2, 2)
    assert changed.stage1_vqvae.quantizer.vq.codebook_size == (16, 32)


def test_parameters_are_frozen(params):
    checked = params()
    with pytest.raises(ValidationError):
        checked.sampling.temperature = 0.5


def test_the_values_of_a_choice_are_the_chosen_options(params):
    assert params({"stage2_prior.name": "uniform"}).stage2_prior.values() == {
        "name": "uniform",
        "uniform": {"largest_softmax": 16384},
    }


@pytest.mark.parametrize(("text", "word"), [("a: [1", "not valid YAML"), ("- 1\n", "mapping"), ("", "empty")])
def test_a_file_that_is_no_mapping_is_one_line(tmp_path, text, word):
    file = tmp_path / "params.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=word) as caught:
        load(file)
    assert "\n" not in str(caught.value)


def test_missing_file_says_where_to_run(tmp_path):
    with pytest.raises(UserError, match=r"no such file; run from the repository's root"):
        read_yaml(tmp_path / "params.yaml")


@pytest.mark.parametrize("section", ["data", "stage1_vqvae", "runtime"])
def test_a_section_that_is_no_mapping_is_named(raw_params, section):
    raw_params[section] = 3
    with pytest.raises(UserError, match=section) as caught:
        validate(raw_params)
    assert "\n" not in str(caught.value)


def check(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tessera", "check", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_command_answers_by_exit_status_and_one_line(tmp_path, repository):
    good = check(cwd=repository)
    assert (good.returncode, good.stderr) == (0, "")
    file = edited("steps: many", tmp_path, repository, old="steps:")
    bad = check(str(file), cwd=repository)
    assert bad.returncode == 2 and bad.stdout == ""
    assert bad.stderr.startswith(f"error: {file}: stage1_vqvae.training.steps: ") and bad.stderr.count("\n") == 1


def test_loading_needs_no_torch(repository):
    code = "import sys; from tessera.parameters import load; from pathlib import Path; load(Path('params.yaml'))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print('torch' in sys.modules)"],
        cwd=repository, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "False"


def test_a_prior_swap_changes_only_the_name(params, raw_params):
    before: Any = params().stage2_prior
    after = params({"stage2_prior.name": "pixelcnn"}).stage2_prior
    assert before.model_copy(update={"name": "pixelcnn"}) == after


# Options share values: they stand once beside the options, and an option's section may override them.


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


@pytest.mark.parametrize("sides", [[[1]], [[1, 2, 3]], [1, [2]], [{}], [[[1]]]])
def test_a_fault_in_a_list_of_pairs_is_one_line_with_its_place(params, sides):
    with pytest.raises(UserError, match=r"stage1_vqvae\.scales\.sides\.[01]") as caught:
        params({"stage1_vqvae.scales.sides": sides})
    assert "\n" not in str(caught.value)


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


def test_a_fault_in_a_list_is_told_once(params):
    with pytest.raises(UserError) as caught:
        params({"stage1_vqvae.quantizer.fsq.levels": [5, 1]})
    assert "at least 1 item" not in str(caught.value)


def test_options_that_are_not_chosen_need_not_fit_the_shared_values(params):
    changes = {"stage2_prior.width": 100, "stage2_prior.heads": 3}  # no transformer has a head of 100 / 3
    assert params(changes | {"stage2_prior.name": "pixelcnn"})
    with pytest.raises(UserError, match=r"stage2_prior\.transformer: width 100 must be a multiple of heads 3"):
        params(changes | {"stage2_prior.name": "transformer"})


def test_a_missing_section_of_an_option_says_what_to_add(raw_params):
    del raw_params["stage2_prior"]["uniform"]
    with pytest.raises(UserError, match=r"stage2_prior\.uniform: missing; add the section, `\{\}` if it has no values"):
        validate(raw_params)


@pytest.mark.parametrize("package", ["stage1_vqvae.quantizers", "stage1_vqvae.networks", "stage2_prior.priors"])
def test_parameters_read_without_the_option_are_those_of_its_file(package):
    """They are executed apart from the modules in the file; the class must be the same."""
    for name in options(package):
        whole = import_module(f"{package}.{name}").Parameters
        assert parameters_of(package, name).model_json_schema() == whole.model_json_schema(), name


# A file beside the options that is no option, and one that is broken.


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of options with one file, `good`, which a test may add to."""
    folder = tmp_path / "some_options"
    folder.mkdir()
    (folder / "__init__.py").write_text("", encoding="utf-8")
    good = "from tessera.parameters.sections import Section\nclass Parameters(Section):\n    size: int\n"
    (folder / "good.py").write_text(good, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    options.cache_clear()
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "some_options"]:
        del sys.modules[name]
    options.cache_clear()
    parameters_of.cache_clear()


def test_files_that_cannot_be_imported_are_no_options(package):
    (package / ".#good.py").symlink_to("nobody@nowhere.1")  # an editor's lock
    (package / "._good.py").write_bytes(b"\0\5\xff")
    (package / "good copy.py").write_bytes((package / "good.py").read_bytes())
    (package / "folder.py").mkdir()
    assert list(options("some_options")) == ["good"]
    assert list(parameters_of("some_options", "good").model_fields) == ["size"]


@pytest.mark.parametrize("text", ["class Parameters(Section):  (((", "class Parameters(Nowhere):\n    size: int\n"])
def test_an_option_that_is_being_written_is_one_line_with_its_file(package, text):
    (package / "half.py").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"half\.py: its class Parameters cannot be read") as caught:
        parameters_of("some_options", "half")
    assert "\n" not in str(caught.value)


def test_an_option_without_its_class_says_what_is_missing(package):
    with pytest.raises(UserError, match=r"good\.py: expected one public subclass of Choice, found none"):
        class_of("some_options", "good", Choice)


def test_an_option_cannot_have_the_name_of_a_shared_value(package):
    (package / "width.py").write_bytes((package / "good.py").read_bytes())
    base = type("Base", (Choice,), {"__module__": __name__, "__annotations__": {"width": int}})
    base.package = "some_options"
    with pytest.raises(UserError, match=r"width\.py: an option cannot be called `width`"):
        choice(base)


def test_an_empty_section_of_a_nested_option_is_as_if_left_out(params):
    link = {"name": "transformer", "transformer": None}
    assert params({"stage2_prior.chain.links": [link]}).stage2_prior.chain.links[0].chosen.width == 128


def test_an_empty_file_says_how_to_write_it_anew(tmp_path):
    (tmp_path / "params.yaml").write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(UserError, match="empty; write it anew with `python -m tessera preset digits`"):
        load(tmp_path / "params.yaml")


@pytest.mark.parametrize("key", ["2020-01-01", "[1, 2]"])
def test_a_key_that_is_no_text_is_one_line(tmp_path, repository, key):
    text = (repository / "params.yaml").read_text(encoding="utf-8").replace("data:\n", f"data:\n  {key}: 2\n", 1)
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="is no text; put it between quotes"):
        load(tmp_path / "params.yaml")


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
