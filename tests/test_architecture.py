"""Who may import whom (docs/architecture.md), and what no product file does."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tessera.parameters.parts import options

STAGES = {"stage0_images", "stage1_vqvae", "stage2_prior"}
ALLOWED = {
    "tessera": {"tessera"},
    **{stage: {"tessera", stage} for stage in STAGES},
    "sampling": {"tessera", "sampling"} | STAGES,
    "evaluation": {"tessera", "sampling", "evaluation"} | STAGES,
}
ROOMS = set(ALLOWED)
MATHS = (
    "stage1_vqvae/discriminators/",
    "stage1_vqvae/likelihoods/",
    "stage1_vqvae/networks/",
    "stage1_vqvae/objectives/",
    "stage1_vqvae/quantizers/",
    "stage2_prior/priors/",
    "tessera/features/",
    "sampling/choose.py",
)
ARITHMETIC = {"torch", "numpy", "scipy", "pydantic"}  # pydantic: an option's file holds its parameters' class
RUNS_JOBS = {"subprocess", "multiprocessing", "threading", "concurrent", "signal", "socket", "argparse"}
JOBS = ("tessera/training/", "tessera/launch", "tessera/entry.py", "tessera/cli/")
COMMANDS = "tessera/cli/"  # which may import everything: they are about the whole
NAMED = "tessera/training/trackers.py"  # which the training loop finds by its name
OPTIONS = (
    "stage1_vqvae.networks",
    "stage1_vqvae.quantizers",
    "stage1_vqvae.likelihoods",
    "stage1_vqvae.objectives",
    "stage1_vqvae.discriminators",
    "stage2_prior.priors",
    "tessera.features.classifiers",
    "tessera.features.networks",
)


def package(file: str) -> str:
    return file.split("/")[0]


def defines_main(file: Path) -> bool:
    """Whether a file is an entry point: it runs when started with `python -m`."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return any(isinstance(node, ast.If) and "__name__" in ast.unparse(node.test) for node in tree.body)


def test_packages_import_only_what_they_may(imports):
    wrong = [
        f"{file} imports {other}"
        for file, seen in imports.items()
        for other in seen.own
        if package(other) not in ALLOWED[package(file)] and not file.startswith(COMMANDS)
    ]
    assert not wrong, "\n".join(wrong)


def test_nobody_imports_an_entry_point(imports, repository):
    entry_points = {file for file in imports if defines_main(repository / file)}
    wrong = [f"{file} imports {other}" for file, seen in imports.items() for other in seen.own & entry_points]
    assert not wrong, "\n".join(wrong)


def test_maths_imports_torch_and_nothing_that_runs_a_job(imports):
    wrong = []
    for file, seen in imports.items():
        if not file.startswith(MATHS):
            continue
        allowed = ARITHMETIC | set(sys.stdlib_module_names) - RUNS_JOBS
        if file.startswith("stage2_prior/priors/"):
            allowed |= {"transformers"}
        if file.startswith("tessera/features/networks/"):
            allowed |= {"torchvision", "safetensors"}  # architectures, and files of weights
        wrong += [
            f"{file} imports {other}"
            for other in sorted(seen.outer - allowed | {own for own in seen.own if own.startswith(JOBS)})
        ]
    assert not wrong, "\n".join(wrong)


def test_no_product_file_opens_a_pickle(imports, repository):
    banned = {"torch.load", "torch.save", "pd.read_pickle", "pandas.read_pickle"}
    wrong = []
    for file, seen in imports.items():
        nodes = list(ast.walk(ast.parse((repository / file).read_text(encoding="utf-8"))))
        names = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
        wrong += [f"{file}: {name}" for name in sorted(names & banned)]
        keywords = {ast.unparse(node) for node in nodes if isinstance(node, ast.keyword)}
        wrong += [f"{file}: allow_pickle=True" for word in keywords if word == "allow_pickle=True"]
        wrong += [f"{file} imports {name}" for name in seen.outer & {"pickle", "dill", "cloudpickle", "joblib"}]
    assert not wrong, "\n".join(wrong)


def test_no_file_has_more_than_300_lines_and_no_function_more_than_60(repository):
    wrong = []
    for file in sorted(repository.rglob("*.py")):
        if ".venv" in file.parts:
            continue
        text = file.read_text(encoding="utf-8")
        wrong += [f"{file}: {len(text.splitlines())} lines"] * (len(text.splitlines()) > 300)
        wrong += [
            f"{file}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 60
        ]
    assert not wrong, "\n".join(wrong)


def test_no_tracked_file_names_a_machine(repository):
    """Product, tests and wiring stand alone: no folder beside the repository, no home directory."""
    patterns = ("**/*.py", "*.yaml", "presets/*.yaml", "Makefile", ".ci/run", ".dvc/config", "constraints.txt")
    banned = ("../" + "shared", "/" + "work/", "/" + "root/", "/" + "home/")
    wrong = [
        f"{file.relative_to(repository)}: {word}"
        for pattern in patterns
        for file in repository.glob(pattern)
        if ".venv" not in file.parts and file.is_file()
        for word in banned
        if word in file.read_text(encoding="utf-8")
    ]
    assert not wrong, "\n".join(wrong)


# Forks a process for each module, with the libraries loaded that every command needs.
HELP = """
import os, runpy, sys
import psutil, pydantic, ruamel.yaml
modules = sys.argv[1:]
for module in modules:
    if os.fork() == 0:
        sys.argv = [module, "--help"]
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit:
            pass
        heavy = sorted({"torch", "datasets", "transformers", "accelerate", "torchvision"} & set(sys.modules))
        print(module, "loads", heavy, flush=True)
        os._exit(0)
    os.wait()
"""


def test_help_needs_neither_torch_nor_datasets(imports, repository):
    modules = [file.removesuffix(".py").replace("/", ".") for file in imports if defines_main(repository / file)]
    command = [sys.executable, "-c", HELP, *modules]
    output = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout
    assert len(modules) > 10
    assert [line for line in output.splitlines() if " loads [" in line] == [f"{module} loads []" for module in modules]


def test_the_ground_floor_holds_only_what_two_rooms_need(imports):
    """`tessera` is no drawer: each file serves at least two rooms, directly or through other files of it."""
    users: dict[str, set[str]] = {}
    for file in imports:
        for other in reachable(file, imports):
            users.setdefault(other, set()).add(package(file))
    wrong = [
        f"{file}: used by {sorted(users.get(file, set()) - {'tessera'})}"
        for file in imports
        if package(file) == "tessera" and Path(file).name not in ("__init__.py", "__main__.py")
        if not file.startswith((COMMANDS, "tessera/features/", NAMED)) and len(users.get(file, set()) - {"tessera"}) < 2
    ]
    assert not wrong, "\n".join(wrong)


def reachable(file: str, imports: dict) -> set[str]:
    """Every file that runs when `file` does, itself excepted."""
    seen, queue = set(), [file]
    while queue:
        new = imports[queue.pop()].own - seen
        seen |= new
        queue += new
    return seen - {file}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_is_named_in_its_own_file_alone(name, imports):
    """A part is one file: nobody else of the product imports it, so that adding or removing it is one file."""
    folder = name.replace(".", "/")
    found = {f"{folder}/{option}.py" for option in options(name)}
    shared = {f"{folder}/soft_em.py": f"{folder}/vq.py"}  # soft EM is a vector quantizer whose draws are averaged
    wrong = [
        f"{file} imports {other}"
        for file, seen in imports.items()
        for other in seen.own & found
        if shared.get(file) != other
    ]
    assert found and not wrong, "\n".join(wrong)


def test_rooms_are_what_is_installed(repository):
    """A wheel puts only the rooms' names on the top level."""
    listed = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"][
        "packages"
    ]
    folders = {file.parent.relative_to(repository) for room in ROOMS for file in (repository / room).rglob("*.py")}
    assert sorted(listed) == sorted(folder.as_posix().replace("/", ".") for folder in folders)


@pytest.mark.parametrize("file", ["README.md", "LICENSE", "Makefile", "dvc.yaml", "params.yaml", ".ci/run"])
def test_the_house_is_complete(file, repository):
    assert (repository / file).is_file()
