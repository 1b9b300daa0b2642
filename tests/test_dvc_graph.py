"""dvc.yaml as DVC resolves it: a stage runs again when what it uses has changed, and not otherwise."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial, reduce
from importlib import import_module
from operator import getitem
from pathlib import Path
from typing import Any

import dvc_projects
import pytest
from dvc.repo import Repo
from dvc_projects import copy_code, copy_wiring
from ruamel.yaml import YAML

from tessera import paths
from tessera import project as code
from tessera.cli.fingerprint import stages as modules
from tessera.cli.preset import edit, leaves
from tessera.errors import UserError
from tessera.fingerprint import fingerprint
from tessera.parameters import Params, read_yaml, validate
from tessera.parameters.parts import options, parameters_of

REPOSITORY = Path(__file__).parent.parent
dvc = partial(dvc_projects.dvc, forked=True)
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
CHOICES = (
    "stage1_vqvae.network",
    "stage1_vqvae.quantizer",
    "stage1_vqvae.likelihood",
    "stage2_prior",
    "classifier",
    "evaluation.features",
)
PACKAGES = {
    "stage1_vqvae.network": "stage1_vqvae.networks",
    "stage1_vqvae.quantizer": "stage1_vqvae.quantizers",
    "stage1_vqvae.likelihood": "stage1_vqvae.likelihoods",
    "stage2_prior": "stage2_prior.priors",
    "classifier": "tessera.features.classifiers",
    "evaluation.features": "tessera.features.networks",
}
MODULES = modules(REPOSITORY / "dvc.yaml")  # each stage's entry point
STAGES = [
    "prepare",
    "train_vqvae",
    "refine_decoder",
    "reconstruct",
    "extract_codes",
    "train_prior",
    "sample",
    "train_classifier",
    "evaluate",
    "report",
]
ARTIFACTS = ("PREPARED", "CODES", "VQVAE", "DECODERS", "PRIOR", "CLASSIFIER", "SAMPLES")
PUBLISHED = {getattr(paths, name).as_posix() for name in ARTIFACTS}
# What follows from each stage's outputs, itself included.
FOLLOWING = {
    "prepare": STAGES,
    "train_vqvae": [stage for stage in STAGES if stage not in ("prepare", "train_classifier")],
    "refine_decoder": ["refine_decoder", "report"],  # and, where sampling.decoder is refined, those that draw with it
    "extract_codes": ["extract_codes", "train_prior", "sample", "evaluate", "report"],
    "train_prior": ["train_prior", "sample", "evaluate", "report"],
    "train_classifier": ["train_classifier", "evaluate", "report"],
    "sample": ["sample", "evaluate", "report"],
    "evaluate": ["evaluate", "report"],
}


@pytest.fixture
def project(tmp_path: Path, repository: Path) -> Path:
    """A copy of the wiring that a test may change."""
    return copy_wiring(repository, tmp_path / "project")


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The stages as DVC resolves them with the repository's own params.yaml."""
    return resolved(copy_wiring(Path(__file__).parent.parent, tmp_path_factory.mktemp("wiring") / "project"))


def resolved(folder: Path) -> dict[str, dict[str, Any]]:
    """Each stage as DVC resolves it: `cmd`, `deps` and `outs`, in dvc.yaml's order."""
    with Repo(str(folder)) as repo:
        return {
            stage.name: {
                "cmd": stage.cmd,
                "deps": [dep.def_path for dep in stage.deps],
                "outs": [out.def_path for out in stage.outs],
            }
            for stage in repo.index.stages
        }


def used_by(params: Params) -> dict[str, dict[str, Any]]:
    """The fingerprint of every stage."""
    return {name: fingerprint(module, import_module(module).USES, params) for name, module in MODULES.items()}


def parameters_used_by(params: Params) -> dict[str, dict[str, Any]]:
    """The parameters in the fingerprint of every stage."""
    return {name: {path: params.used(path) for path in import_module(module).USES} for name, module in MODULES.items()}


def stages_changed(before: dict[str, Any], params: Params) -> set[str]:
    """The stages whose parameters are others than before, but `report`: it shows whatever another stage uses."""
    after = parameters_used_by(params)
    changed = {stage for stage in STAGES if after[stage] != before[stage]}
    assert ("report" in changed) == (changed > {"report"}) and changed != {"report"}
    return changed - {"report"}


def changed_values(path: str, value: Any) -> Iterator[Any]:
    """Other values of a leaf, of which the first valid one is taken."""
    special = {
        "stage1_vqvae.quantizer.residual.quantizer.name": ["fsq"],
        "stage1_vqvae.quantizer.grouped.quantizer.name": ["fsq"],
        "stage2_prior.chain.links": [[{"name": "counts"}]],
        "stage2_prior.transformer.extra": [{"n_inner": 64}],
        "stage1_vqvae.quantizer.start": ["normal"],
        "stage1_vqvae.quantizer.gradient_estimator": ["rotation"],
        "stage1_vqvae.quantizer.simvq.gradient_estimator": ["diveq"],
        "stage1_vqvae.quantizer.vq.distance": ["cosine"],
        "stage1_vqvae.quantizer.fsq.activation": ["sigmoid"],
        "stage1_vqvae.quantizer.vq.codebook_update": ["gradient"],
        "data.fit": ["stretch"],
        "data.grey_range": [[0, 4095]],
        "sampling.guidance_schedule": ["linear"],
        "sampling.decoder": ["refined"],
        "stage1_vqvae.scales.sides": [[1, 2, 4]],
        "sampling.order": ["random"],
        "runtime.trackers": [["tensorboard"]],
        "stage2_prior.any_order.annealing": [[0.5, 0.75]],
        "stage1_vqvae.objective.adversarial.discriminator.patch.norm": ["batch"],
    }
    yield from special.get(path, ())
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (v for v in (value * 2, value + 2, value / 2, value + 1, 1, 0.5) if v != value)
    elif isinstance(value, list):
        yield from ([2 * item for item in value], [1, *value], [*value, *value], [item - 1 for item in value])
        yield [item / 2 for item in value]
    elif value is None:
        yield from (1, 0.5, "other", 1000)
    elif path.endswith(".name"):
        choice = path.removesuffix(".name")
        yield from (name for name in options(PACKAGES[choice]) if name != value)
    else:
        yield from ("exponential", "bf16", "other", "llama")


def with_change(raw: dict[str, Any], path: str, value: Any) -> Params | None:
    """The parameters with one leaf changed, or None if no change of it is valid."""
    tree = json.loads(json.dumps(raw))
    *sections, key = path.split(".")
    node = tree
    for section in sections:
        node = node[section]
    for other in changed_values(path, value):
        node[key] = other
        try:
            return validate(tree)
        except UserError:
            continue
    return None


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


def entry_file(cmd: str) -> str:
    return cmd.split(" -m ")[1].split()[0].replace(".", "/") + ".py"


def reachable(file: str, imports: dict) -> set[str]:
    seen, queue = {file}, [file]
    while queue:
        new = imports[queue.pop()].own - seen
        seen |= new
        queue += new
    return seen


def test_stages_are_named_in_the_order_they_run(repository, stages):
    assert list(read_yaml(repository / "dvc.yaml")["stages"]) == ["fingerprint", *STAGES]
    assert sorted(stages) == sorted(["fingerprint", *STAGES])


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_depends_on_its_fingerprint_and_on_no_code(stage, stages):
    assert f"results/fingerprint/{stage}.json" in stages[stage]["deps"]
    assert f"results/fingerprint/{stage}.json" in stages["fingerprint"]["outs"]
    assert not [dep for dep in stages[stage]["deps"] if dep.endswith(".py") or dep in code.PACKAGES]


def test_the_fingerprint_is_made_of_all_code_and_parameters(stages):
    assert set(stages["fingerprint"]["deps"]) == {*code.PACKAGES, "params.yaml"}


@pytest.mark.parametrize("stage", STAGES)
def test_data_a_stage_lists_is_data_it_names(stage, stages, imports, repository):
    """What a stage reads and publishes, by the names of common/paths.py in the code it runs."""
    found = stages[stage]
    names = set()
    for file in reachable(entry_file(found["cmd"]), imports):
        code = (repository / file).read_text(encoding="utf-8")
        names |= set(re.findall(r"\bpaths\.([A-Z]+)\b", code))
    if "MODELS" in names:  # the folder of both models of a pipeline
        names |= {"VQVAE", "PRIOR"}
    wanted = {getattr(paths, name).as_posix() for name in names & set(ARTIFACTS)}
    decoders = paths.DECODERS.as_posix()  # of which a stage depends on the chosen one
    listed = {decoders if path.startswith(decoders) else path for path in found["deps"] + found["outs"]} & PUBLISHED
    assert listed == wanted, f"dvc.yaml, stage {stage}: missing {wanted - listed}, extra {listed - wanted}"


def test_no_command_names_a_machine(stages):
    for name, stage in stages.items():
        for flag in ("num_processes", "num_machines", "mixed_precision", "gpu", "cpu", "precision"):
            assert flag not in stage["cmd"], f"{name}: {flag} would make every other machine train again"


def test_what_a_run_writes_is_ignored_beforehand_or_kept_for_git(project):
    """DVC edits .gitignore for a cached output that Git does not ignore yet; metrics and curves stay visible to Git."""
    with Repo(str(project)) as repo:
        outs = [out for stage in repo.index.stages for out in stage.outs]
        for out in outs:
            assert repo.scm.is_ignored(out.fs_path) == out.use_cache, out.def_path
        assert not repo.scm.is_ignored(str(project / "dvc.lock")), "DVC could not record experiments"
        assert repo.scm.is_ignored(str(project / ".state" / "train_vqvae"))
        assert repo.dvcignore.is_ignored_dir(str(project / ".state"))


def leaves_that_matter(raw: dict[str, Any]) -> dict[str, Any]:
    """Every leaf but `data.watch`, which is a path that DVC itself watches, and names of choices, tested apart."""
    return {path: value for path, value in leaves(raw).items() if not path.endswith(".name") and value != {}}


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


def test_prepare_watches_the_folder_that_params_name(project):
    edit(project / "params.yaml", {"data.watch": "pictures"})
    assert "pictures" in resolved(project)["prepare"]["deps"]


def test_every_plot_reads_what_a_stage_writes(repository, stages):
    outs = {out for stage in stages.values() for out in stage["outs"]}
    for plot in read_yaml(repository / "dvc.yaml")["plots"]:
        files = [plot] if isinstance(plot, str) else list(next(iter(plot.values()))["y"])
        for file in files:
            assert any(file == out or file.startswith(f"{out}/") for out in outs), file


# Through DVC itself, with each command replaced by one that only writes the stage's outputs.

STUB = """
import json, sys, uuid
from pathlib import Path
name, outs = sys.argv[1], json.loads(sys.argv[2])
for out in map(Path, outs):
    out.parent.mkdir(parents=True, exist_ok=True)
    if not out.suffix:
        out.mkdir()
        out = out / "file"
    constant = out.parts[:3] == ("models", "decoders", "likelihood")
    out.write_text(json.dumps({"value": "constant" if constant else str(uuid.uuid4())}))
with open(".git/ran", "a") as log:
    log.write(name + "\\n")
"""


def commit(project: Path, message: str) -> None:
    for key, value in {"user.name": "test", "user.email": "test@example.org"}.items():
        subprocess.run(["git", "config", key, value], cwd=project, check=True)
    subprocess.run(["git", "add", "."], cwd=project, check=True)
    subprocess.run(["git", "commit", "--quiet", "-m", message], cwd=project, check=True)


@pytest.fixture
def stubbed(project: Path, repository: Path) -> Path:
    """The project with stub commands for every stage but `fingerprint`, after a first `dvc repro`."""
    copy_code(repository, project)
    stages, yaml = resolved(project), YAML()
    tree = yaml.load((project / "dvc.yaml").read_text(encoding="utf-8"))
    for name, module in modules(project / "dvc.yaml").items():
        outs = json.dumps(stages[name]["outs"])
        tree["stages"][name]["cmd"] = f"{sys.executable} stub.py {name} '{outs}' -m {module}"
    yaml.dump(tree, project / "dvc.yaml")
    (project / "stub.py").write_text(STUB, encoding="utf-8")
    dvc(project, "repro")
    return project


@pytest.fixture
def rerun(stubbed: Path) -> Callable[[dict[str, Any]], list[str]]:
    """Change parameters, `dvc repro`, and tell which stages ran; then change them back."""

    def run(changes: dict[str, Any]) -> list[str]:
        (stubbed / ".git" / "ran").unlink(missing_ok=True)
        edit(stubbed / "params.yaml", changes)
        dvc(stubbed, "repro")
        log = stubbed / ".git" / "ran"
        return log.read_text(encoding="utf-8").split() if log.exists() else []

    return run


@pytest.mark.slow
def test_dvc_reruns_exactly_what_a_change_concerns(rerun, stubbed):
    gitignore = (stubbed / ".gitignore").read_text(encoding="utf-8")
    assert rerun({}) == []
    for nothing in ("stage2_prior.pixelcnn.kernel_size", "runtime.log_every"):
        assert rerun({nothing: 5}) == [], nothing
    assert json.loads(dvc(stubbed, "status", "--json")) == {}
    cases = {
        "sampling.temperature": (0.5, "sample"),
        "stage2_prior.name": ("pixelcnn", "train_prior"),
        "stage2_prior.pixelcnn.kernel_size": (7, "train_prior"),
        "stage2_prior.layers": (3, "train_prior"),
        "extract_codes.shift": (0, "extract_codes"),
        "stage1_vqvae.training.steps": (700, "train_vqvae"),
        "classifier.training.steps": (300, "train_classifier"),
        "data.split_seed": (1, "prepare"),
        "evaluation.images": (100, "evaluate"),
        "evaluation.features.name": ("none", "evaluate"),
        "classifier.name": ("none", "train_classifier"),
        "refine_decoder.name": ("objective", "refine_decoder"),
    }
    for path, (value, stage) in cases.items():
        assert sorted(rerun({path: value})) == sorted(FOLLOWING[stage]), path
    drawing = ["evaluate", "reconstruct", "report", "sample"]
    assert sorted(rerun({"sampling.decoder": "refined"})) == drawing
    assert sorted(rerun({"refine_decoder.training.steps": 600})) == [
        "evaluate",
        "reconstruct",
        "refine_decoder",
        "report",
        "sample",
    ]
    assert (stubbed / ".gitignore").read_text(encoding="utf-8") == gitignore, "DVC edited .gitignore"


@pytest.mark.slow
def test_dvc_reruns_exactly_what_an_edit_of_code_concerns(rerun, stubbed):
    for file in sorted(file for room in code.PACKAGES for file in (stubbed / room).rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        file.write_text(f"# a thought\n{text}\n# another\n", encoding="utf-8")
    assert rerun({}) == []
    edits = {
        "stage1_vqvae/quantizers/fsq.py": [],  # not chosen
        "stage2_prior/priors/pixelcnn.py": [],
        "sampling/complete.py": [],  # no stage
        "evaluation/metrics.py": FOLLOWING["evaluate"],
        "evaluation/report_charts.py": ["report"],
        "evaluation/train_classifier.py": FOLLOWING["train_classifier"],
        "sampling/sample.py": FOLLOWING["sample"],
        "stage1_vqvae/reconstruct.py": ["reconstruct", "report"],
        "stage1_vqvae/extract.py": FOLLOWING["extract_codes"],
        "stage1_vqvae/quantizers/vq.py": FOLLOWING["train_vqvae"],
        "stage0_images/pixels.py": FOLLOWING["prepare"],
    }
    for file, expected in edits.items():
        text = (stubbed / file).read_text(encoding="utf-8")
        (stubbed / file).write_text(f"{text}\nADDED = 1\n", encoding="utf-8")
        assert sorted(rerun({})) == sorted(expected), file


@pytest.mark.slow
def test_a_typo_anywhere_stops_before_anything_is_deleted(stubbed):
    before = {path: path.read_bytes() for path in stubbed.rglob("*") if path.is_file() and ".git" not in path.parts}
    for section in ("stage2_prior.chain", "stage1_vqvae.quantizer.residual", "runtime", "sampling"):
        text = (stubbed / "params.yaml").read_text(encoding="utf-8")
        tree = YAML().load(text)  # and no `edit`, which refuses an unknown parameter
        reduce(getitem, section.split("."), tree)["typo"] = 1
        YAML().dump(tree, stubbed / "params.yaml")
        failed = dvc(stubbed, "repro", fails=True)
        assert f"{section}.typo: unknown parameter" in failed and "Running stage 'fingerprint'" in failed
        (stubbed / "params.yaml").write_text(text, encoding="utf-8")
        gone = [path for path, content in before.items() if not path.is_file() or path.read_bytes() != content]
        assert not [path for path in gone if "fingerprint" not in path.parts and ".dvc" not in path.parts]


@pytest.mark.slow
def test_an_experiment_swaps_the_prior_and_leaves_the_rest(stubbed):
    commit(stubbed, "first run")
    (stubbed / ".git" / "ran").unlink()
    dvc(stubbed, "exp", "run", "-S", "stage2_prior.name=counts")
    assert sorted((stubbed / ".git" / "ran").read_text(encoding="utf-8").split()) == sorted(FOLLOWING["train_prior"])
    shown = json.loads(dvc(stubbed, "exp", "show", "--json"))
    assert "counts" in json.dumps(shown)
    assert list(json.loads(dvc(stubbed, "metrics", "diff", "--json"))) == ["results/evaluate/headlines.json"]
    assert json.loads(dvc(stubbed, "params", "diff", "--json"))["params.yaml"] == {
        "stage2_prior.name": {"old": "transformer", "new": "counts"}
    }


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default pipeline, run with the uniform prior, every training a few steps short."""
    project = tmp_path_factory.mktemp("digits") / "project"
    copy_wiring(REPOSITORY, project)
    copy_code(REPOSITORY, project)
    changes = {"stage2_prior.name": "uniform", "sampling.images": 20, "sampling.grid_columns": 2}
    for section in ("stage1_vqvae", "classifier", "stage2_prior"):
        few = {"steps": 20, "warmup_steps": 2, "validate_every": 10}
        changes |= {f"{section}.training.{key}": value for key, value in few.items()}
    edit(project / "params.yaml", changes)
    dvc(project, "repro")
    commit(project, "first run")
    return project


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in options("stage2_prior.priors") if name != "uniform"]
)  # which is there at first
def test_every_prior_is_one_experiment_that_leaves_stage_1_alone(digits, name):
    vqvae = (digits / "models" / "vqvae" / "manifest.json").read_bytes()
    said = dvc(digits, "exp", "run", "-S", f"stage2_prior.name={name}")
    assert re.findall(r"Running stage '(\w+)'", said) == [
        "fingerprint",
        "train_prior",
        "sample",
        "evaluate",
        "report",
    ]
    assert (digits / "models" / "vqvae" / "manifest.json").read_bytes() == vqvae
    assert json.loads((digits / "models" / "prior" / "config.json").read_text(encoding="utf-8"))["name"] == name
    bits = json.loads((digits / "results" / "evaluate" / "metrics.json").read_text(encoding="utf-8"))["bits_per_dim"]
    assert bits["total_prior"] == pytest.approx(bits["distortion"] + bits["rate_prior"])
    assert (digits / "results" / "sample" / "grid.png").is_file()


@pytest.mark.slow
def test_dvc_shows_few_figures_of_an_experiment_and_compare_finds_it_by_its_name(digits):
    dvc(digits, "exp", "run", "-n", "by-counts", "-S", "stage2_prior.name=counts")
    shown = next(csv.reader(dvc(digits, "exp", "show", "--only-changed", "--csv").splitlines()))
    assert len(shown) < 40, shown
    figures = json.loads(dvc(digits, "metrics", "show", "--json"))[""]["data"]
    assert list(figures) == ["results/evaluate/headlines.json"]
    assert len(leaves(figures["results/evaluate/headlines.json"]["data"])) == 12
    command = [sys.executable, "-m", "tessera", "compare", "HEAD", "by-counts", "--csv", "compared.csv"]
    done = subprocess.run(command, cwd=digits, capture_output=True, text=True, check=True)
    assert max(map(len, done.stdout.splitlines())) <= 120
    with (digits / "compared.csv").open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert (rows["stage2_prior.name"]["HEAD"], rows["stage2_prior.name"]["by-counts"]) == ("uniform", "counts")
    rate = json.loads((digits / "results" / "evaluate" / "metrics.json").read_text())["bits_per_dim"]["rate_prior"]
    assert float(rows["evaluate:bits_per_dim.rate_prior"]["by-counts"]) == rate
    (digits / "compared.csv").unlink()


@pytest.mark.slow
def test_fingerprints_do_not_depend_on_the_order_of_sets(repository, tmp_path):
    """The tests above share one order, as their commands are forked from one process."""
    project, found = copy_wiring(repository, tmp_path / "project"), []
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONPATH": str(repository), "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-m", "tessera", "fingerprint"], cwd=project, env=environment, check=True)
        found.append({path.name: path.read_bytes() for path in (project / "results/fingerprint").iterdir()})
    assert found[0] == found[1] and len(found[0]) > 5


def test_dvc_has_few_plots_to_show(repository):
    assert len(read_yaml(repository / "dvc.yaml")["plots"]) <= 12


def described_files() -> dict[str, str]:
    """The files that docs/add_your_own.md tells a reader to write, and the lines of params.yaml, by section."""
    page = (REPOSITORY / "docs" / "add_your_own.md").read_text(encoding="utf-8")
    return dict(re.findall(r"(?m)^`([^`]+)`:\n\n```\w+\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE))


@pytest.mark.slow
def test_a_part_is_one_file_and_one_section(digits):
    """The page on adding parts, followed to the letter: nothing runs again, and what was added trains."""
    found = described_files()
    files = {name: text for name, text in found.items() if name.endswith(".py")}
    sections = {name: text for name, text in found.items() if name not in files}
    assert sorted(files) == ["stage1_vqvae/quantizers/scalar.py", "stage2_prior/priors/histogram.py"]
    for name, text in files.items():
        (digits / name).write_text(text, encoding="utf-8")
    params = (digits / "params.yaml").read_text(encoding="utf-8")
    for name, text in sections.items():
        kind = name.split(".")[-1]
        params = re.sub(
            rf"(?m)^( *){kind}:$", lambda found, text=text: f"{found[0]}\n{indented(text, found[1])}", params
        )
    (digits / "params.yaml").write_text(params, encoding="utf-8")
    assert re.findall(r"Running stage '(\w+)'", dvc(digits, "repro")) == ["fingerprint"]

    yaml = YAML()  # and no `edit`, which knows the options of this checkout alone
    tree = yaml.load((digits / "params.yaml").read_text(encoding="utf-8"))
    tree["stage1_vqvae"]["quantizer"]["name"], tree["stage2_prior"]["name"] = "scalar", "histogram"
    yaml.dump(tree, digits / "params.yaml")
    dvc(digits, "repro")
    for model, part, name in (("vqvae", "quantizer", "scalar"), ("prior", None, "histogram")):
        config = json.loads((digits / "models" / model / "config.json").read_text(encoding="utf-8"))
        assert (config[part] if part else config)["name"] == name
    assert "Running stage" not in dvc(digits, "repro")


def indented(text: str, outer: str) -> str:
    """Lines as they stand below a key that is indented by `outer`."""
    return "\n".join(f"{outer}  {line}" for line in text.rstrip().splitlines())
