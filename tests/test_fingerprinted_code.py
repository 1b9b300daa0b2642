"""A file of code is in the fingerprints of exactly the stages that use it, without its comments."""

from __future__ import annotations

import pytest
from stage_fingerprints import CHOICES, PACKAGES, STAGES, used_by

from tessera import project as code
from tessera.parameters import validate
from tessera.parameters.parts import options


def test_code_of_one_stage_is_no_code_of_another(params):
    found = used_by(params())
    for stage, rooms in {
        "prepare": {"tessera", "stage0_images"},
        "train_vqvae": {"tessera", "stage1_vqvae"},
        "extract_codes": {"tessera", "stage1_vqvae"},
        "train_prior": {"tessera", "stage2_prior"},
        "sample": {"tessera", "stage1_vqvae", "stage2_prior", "sampling"},
    }.items():
        assert {file.split("/")[0] for file in found[stage]["code"]} == rooms, stage


@pytest.mark.parametrize("choice", CHOICES)
def test_an_option_that_is_not_chosen_is_no_code_of_any_stage(choice, raw_params):
    node = raw_params
    for key in choice.split("."):
        node = node[key]
    found = used_by(validate(raw_params))
    folder = PACKAGES[choice].replace(".", "/")
    users = {stage for stage in STAGES if f"{folder}/{node['name']}.py" in found[stage]["code"]}
    users_of = {"stage2_prior": "train_prior", "classifier": "train_classifier", "evaluation.features": "evaluate"}
    sampled = set() if choice in ("classifier", "evaluation.features") else {"sample"}
    assert users >= {users_of.get(choice, "train_vqvae"), "evaluate"} | sampled
    for option in options(PACKAGES[choice]):
        if option not in (node["name"], "counts"):
            assert not any(f"{folder}/{option}.py" in stage["code"] for stage in found.values()), option


def test_an_option_inside_another_is_code_of_the_stages_that_use_it(params):
    changes = {"stage1_vqvae.quantizer.name": "residual", "stage1_vqvae.quantizer.residual.quantizer": {"name": "fsq"}}
    links = [{"name": "masked"}]
    found = used_by(params(changes | {"stage2_prior.name": "chain", "stage2_prior.chain.links": links}))
    assert {"residual", "fsq"} == chosen_files(found["train_vqvae"]["code"], "stage1_vqvae/quantizers")
    assert {"chain", "masked"} == chosen_files(found["train_prior"]["code"], "stage2_prior/priors")
    assert {"chain", "masked", "counts"} == chosen_files(found["evaluate"]["code"], "stage2_prior/priors")


def chosen_files(files: dict[str, str], folder: str) -> set[str]:
    return {name for name in options(folder.replace("/", ".")) if f"{folder}/{name}.py" in files}


def test_terms_are_code_of_the_stages_that_train_with_them_alone(raw_params):
    off = used_by(validate(raw_params))
    raw_params["refine_decoder"]["name"] = "objective"
    on = used_by(validate(raw_params))
    assert {stage for stage in STAGES if on[stage] != off[stage]} == {"refine_decoder", "report"}
    folder = "stage1_vqvae/objectives/"
    assert {folder + "distance.py", folder + "adversarial.py"} <= on["refine_decoder"]["code"].keys()
    assert folder + "perceptual.py" not in on["refine_decoder"]["code"]
    assert "stage1_vqvae/discriminators/projected.py" in on["refine_decoder"]["code"]
    assert "stage1_vqvae/discriminators/patch.py" not in on["refine_decoder"]["code"]
    assert "tessera/features/networks/efficientnet_lite0.py" in on["refine_decoder"]["code"]
    for stage in STAGES:
        assert not [
            file for file in off[stage]["code"] if file in (folder + "perceptual.py", folder + "adversarial.py")
        ]


def test_comments_docstrings_and_layout_do_nothing():
    for file in code.files():
        text = file.read_text(encoding="utf-8")
        lines = [f"{line}  # why" if line.endswith(":") else line for line in text.splitlines()]
        commented = "\n".join(["# a thought", *lines, ""])
        assert code.syntax(commented) == code.syntax(text), file
        assert code.syntax(text + "\nx = 1\n") != code.syntax(text), file
    one, other = 'def f(x):\n    """One."""\n    return x\n', 'def f(x):\n\n    "Other."\n    return (x)\n'
    assert code.syntax(one) == code.syntax(other) == code.syntax("def f(x): return x")
    assert code.syntax(one) != code.syntax(one.replace("return x", "return -x"))
