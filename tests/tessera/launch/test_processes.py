"""How many processes an entry point starts, and which refuse to be one of several."""

from __future__ import annotations

import pytest
import torch

from sampling import complete, sample
from tessera.errors import UserError
from tessera.launch import parents
from tessera.launch.processes import number_of_processes


@pytest.fixture(autouse=True)
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*parents.LAUNCHER_VARIABLES, parents.DVC_STAGE, "ACCELERATE_USE_CPU", "RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("gpus", "wanted", "expected"), [(0, None, 1), (1, None, 1), (4, None, 4), (4, 2, 2), (4, 1, 1), (0, 3, 3)]
)
def test_parameters_or_the_number_of_gpus_decide(
    monkeypatch: pytest.MonkeyPatch, gpus: int, wanted: int | None, expected: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert number_of_processes(wanted) == expected


def test_more_processes_than_gpus_are_refused_unless_the_cpu_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"runtime\.processes: 3, but a process needs a GPU of its own and there are 2"):
        number_of_processes(3)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert number_of_processes(3) == 3 and number_of_processes(None) == 1


@pytest.mark.parametrize("name", parents.LAUNCHER_VARIABLES)
def test_nothing_is_started_inside_a_launcher(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert number_of_processes(None) == number_of_processes(2) == 1


@pytest.mark.parametrize(
    ("module", "arguments"), [(complete, ["image.png", "--mask", "mask.png"]), (sample, ["--count", "1"])]
)
def test_what_is_no_stage_refuses_to_be_one_of_several(
    in_tmp, write_params, monkeypatch, capsys, module, arguments
) -> None:
    write_params()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert module.main(arguments) == 2
    said = capsys.readouterr().err
    assert said == (
        f"error: {module.__name__}: runs in one process, was started in 2; start it as `python -m {module.__name__}`\n"
    )
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert module.main(arguments) == 2 and capsys.readouterr().err == ""
