"""A parameter is in the fingerprints of exactly the stages that use it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
from stage_fingerprints import CHOICES, MODULES, PACKAGES, STAGES, leaves_that_matter, used_by, with_change

from tessera.cli.preset import leaves
from tessera.parameters import Params, validate
from tessera.parameters.parts import options, parameters_of

# Which stage uses what; `runtime` is used by none.
STAGE_OF = {
    "data": "prepare",
    "stage1_vqvae": "train_vqvae",
    "refine_decoder": "refine_decoder",
    "extract_codes": "extract_codes",
    "stage2_prior": "train_prior",
    "classifier": "train_classifier",
    "sampling": "sample",
    "evaluation": "evaluate",
}


def parameters_used_by(params: Params) -> dict[str, dict[str, Any]]:
    """The parameters in the fingerprint of every stage."""
    return {name: {path: params.used(path) for path in import_module(module).USES} for name, module in MODULES.items()}


def stages_changed(before: dict[str, Any], params: Params) -> set[str]:
    """The stages whose parameters are others than before, but `report`: it shows whatever another stage uses."""
    after = parameters_used_by(params)
    changed = {stage for stage in STAGES if after[stage] != before[stage]}
    assert ("report" in changed) == (changed > {"report"}) and changed != {"report"}
    return changed - {"report"}


def expected_stages(leaf: str, raw: dict[str, Any]) -> set[str]:
    """The stages that use a leaf, told by its place and the chosen options' fields."""
    section = leaf.split(".")[0]
    if section == "runtime":
        return set()
    drawn_by = {"masked": ("decoding_steps", "choice_temperature"), "any_order": ("order",)}  # no link of a chain here
    special = {f"sampling.{name}" for names in drawn_by.values() for name in names}
    if leaf in special and leaf.removeprefix("sampling.") not in drawn_by.get(raw["stage2_prior"]["name"], ()):
        return set()
    if section == "refine_decoder":
        return set()  # it is switched off
    if leaf.startswith("stage1_vqvae.objective.") and not (leaf.endswith(".weight") and leaf.count(".") == 3):
        return set()  # of a term that is off
    if leaf.startswith("stage1_vqvae.scales.") and leaf != "stage1_vqvae.scales.sides":
        return set()  # there are no scales
    found = {STAGE_OF[section]}
    for choice in CHOICES:
        rest = leaf.removeprefix(f"{choice}.")
        if rest == leaf:
            continue
        node = raw
        for key in choice.split("."):
            node = node[key]
        part, name = rest.split(".")[0], node["name"]
        if part in options(PACKAGES[choice]):
            found = found if part == name else set()
        elif part not in ("name", "training", "shared_by_levels"):  # the last belongs to the choice itself
            found = found if part in parameters_of(PACKAGES[choice], name).model_fields else set()
        elif part == "training":
            found = found if parameters_of(PACKAGES[choice], name).trained else set()
    # What every prior is compared with.
    counts = leaf.startswith("stage2_prior.counts.") or leaf == "stage2_prior.largest_softmax"
    return found | ({"evaluate"} if counts else set())


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"stage2_prior.name": "counts", "stage1_vqvae.quantizer.name": "fsq", "classifier.name": "none"},
        {"stage2_prior.name": "chain", "stage1_vqvae.quantizer.name": "gumbel", "stage1_vqvae.network.name": "vit"},
        pytest.param(
            {"stage2_prior.name": "masked", "stage1_vqvae.likelihood.name": "mixture_of_logistics"},
            marks=pytest.mark.slow,
        ),
        pytest.param({"stage2_prior.name": "any_order"}, marks=pytest.mark.slow),
    ],
    ids=lambda chosen: "-".join(chosen.values()) or "as shipped",
)
def test_a_leaf_changes_the_fingerprint_of_exactly_the_stages_that_use_it(raw_params, chosen):
    for path, name in chosen.items():
        node = raw_params
        for key in path.split(".")[:-1]:
            node = node[key]
        node["name"] = name
    raw_params["sampling"]["guidance_scale"] = 1.0  # any prior may be chosen
    before, wrong, unchanged = parameters_used_by(validate(raw_params)), [], []
    for leaf, value in leaves_that_matter(raw_params).items():
        params = with_change(raw_params, leaf, value)
        if params is None:
            unchanged.append(leaf)
            continue
        found = stages_changed(before, params)
        wanted = expected_stages(leaf, raw_params)
        if "chain" in chosen.values() and leaf.startswith("stage2_prior."):  # whose links take what they do not give
            part = leaf.split(".")[1]
            wanted = {"train_prior"} if part in ("pixelsnail", "chain", "training") else wanted
            wanted = wanted | ({"train_prior"} if part in ("layers", "width", "heads", "dropout") else set())
        if found != wanted:
            wrong.append(f"{leaf}: changes {sorted(found)}, should change {sorted(wanted)}")
    assert not wrong, "\n".join(wrong)
    quantizer = raw_params["stage1_vqvae"]["quantizer"]["name"]
    # What has no other value: gumbel has no scales, others can only have 0 draws, and there is no refined decoder.
    scales = ["stage1_vqvae.scales.sides"] if quantizer == "gumbel" else []
    draws = [] if quantizer in ("gumbel", "soft_em") else ["extract_codes.draws"]
    assert unchanged == [*scales, *draws, "sampling.decoder"]


TERMS = "stage1_vqvae.objective."


@pytest.mark.parametrize(
    ("on", "leaf", "stages"),
    [
        ("", TERMS + "perceptual.weight", {"train_vqvae"}),
        ("", TERMS + "perceptual.depth_factor", set()),
        ("", TERMS + "perceptual.features.side", set()),
        ("", TERMS + "adversarial.adaptive", set()),
        ("", "refine_decoder.objective.perceptual.weight", set()),
        ("", "stage1_vqvae.training.seed", {"train_vqvae"}),
        ("term", TERMS + "adversarial.adaptive", {"train_vqvae"}),
        ("term", TERMS + "adversarial.discriminator.patch.channels", {"train_vqvae"}),
        ("term", TERMS + "adversarial.discriminator.projected.channels", set()),
        ("term", TERMS + "perceptual.features.side", set()),
        ("stage", TERMS + "perceptual.weight", {"train_vqvae"}),  # the stage has its own
        ("stage", TERMS + "perceptual.depth_factor", set()),
        ("", TERMS + "perceptual.part", set()),
        ("stage", TERMS + "perceptual.part", set()),
        ("stage", TERMS + "adversarial.discriminator.patch.channels", set()),
        ("stage", "refine_decoder.added_blocks", {"refine_decoder"}),
        ("", "refine_decoder.added_blocks", set()),
        ("stage", TERMS + "perceptual.features.side", set()),
        ("stage", TERMS + "adversarial.discriminator.projected.channels", {"refine_decoder"}),  # what it does not give
        ("stage", TERMS + "adversarial.discriminator.projected.part", {"refine_decoder"}),
        ("stage", TERMS + "adversarial.discriminator.projected.matching", set()),
        ("stage", TERMS + "adversarial.discriminator.projected.features.side", {"refine_decoder"}),
        ("stage", "refine_decoder.objective.adversarial.ramp_steps", {"refine_decoder"}),
        ("stage", "refine_decoder.training.steps", {"refine_decoder"}),
        ("stage", "stage1_vqvae.training.steps", {"train_vqvae"}),
        ("stage", "stage1_vqvae.training.seed", {"train_vqvae", "refine_decoder"}),
        ("stage", "sampling.decoder", {"reconstruct", "sample", "evaluate"}),
    ],
)
def test_terms_and_the_refined_decoder_concern_their_own_stages(raw_params, on, leaf, stages):
    """`on`: what is switched on: the adversarial term of train_vqvae, or the stage refine_decoder."""
    if on == "term":
        raw_params["stage1_vqvae"]["objective"]["adversarial"]["weight"] = 0.5
    elif on == "stage":
        raw_params["refine_decoder"]["name"] = "objective"
    before, params = parameters_used_by(validate(raw_params)), with_change(raw_params, leaf, leaves(raw_params)[leaf])
    assert stages_changed(before, params) == stages


def test_what_only_a_masked_prior_samples_by_counts_where_a_link_of_a_chain_is_masked(params):
    for links, used in ((["masked"], True), (["pixelcnn"], False)):
        changes = {"stage2_prior.name": "chain", "stage2_prior.chain.links": [{"name": name} for name in links]}
        found = used_by(params(changes))["sample"]["parameters"]["sampling"]
        assert ("decoding_steps" in found) == ("choice_temperature" in found) == used
        assert "temperature" in found


def test_the_passes_of_an_any_order_prior_count_where_it_draws_in_parallel(params):
    for order, used in (("layout", False), ("random", False), ("parallel", True)):
        found = used_by(params({"stage2_prior.name": "any_order", "sampling.order": order}))["sample"]["parameters"]
        assert found["sampling"]["order"] == order and ("decoding_steps" in found["sampling"]) == used
        assert "choice_temperature" not in found["sampling"]
