"""Stray variables of a launcher are refused in one line, before any library waits for processes that do not exist."""

from __future__ import annotations

import pytest

from tessera.errors import UserError
from tessera.launch.processes import number_of_processes, refuse_several
from tessera.launch.threads import number_of_threads

WHOLE = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture
def variables(monkeypatch):
    """`variables({"RANK": "1"})`: these variables of a launcher, and no others."""

    def put(values: dict[str, str]) -> None:
        for name in (*WHOLE, "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set but RANK is not"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE, RANK is set but LOCAL_RANK is not"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "but MASTER_ADDR is not"),
        ({k: v for k, v in WHOLE.items() if k != "MASTER_PORT"}, "but MASTER_PORT is not"),
        ({"RANK": "1"}, "RANK is set but WORLD_SIZE is not"),
        ({"LOCAL_RANK": "3"}, "LOCAL_RANK is set but WORLD_SIZE is not"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', no number"),
        ({"RANK": "-1"}, "RANK is '-1', no number"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is '', no number"),
        (WHOLE | {"RANK": "2"}, "RANK 2 and LOCAL_RANK 1 do not fit WORLD_SIZE 2"),
        ({"WORLD_SIZE": "1", "LOCAL_RANK": "1"}, "RANK 0 and LOCAL_RANK 1 do not fit WORLD_SIZE 1"),
        ({"LOCAL_WORLD_SIZE": "x"}, "LOCAL_WORLD_SIZE is 'x', no number"),
        ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE 0 does not fit WORLD_SIZE 1"),
        (WHOLE | {"LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE 3 does not fit WORLD_SIZE 2"),
    ],
)
@pytest.mark.parametrize("first", [number_of_processes, number_of_threads])  # whichever an entry point asks first
def test_variables_that_no_launcher_sets_are_refused(variables, values, fault, first):
    variables(values)
    with pytest.raises(UserError, match="the environment variables of a launcher are not whole") as caught:
        first(None)
    assert fault in str(caught.value) and "unset " in str(caught.value) and "\n" not in str(caught.value)


def test_a_stage_of_one_process_refuses_them_too(variables):
    variables({"RANK": "1"})
    with pytest.raises(UserError, match="RANK is set but WORLD_SIZE is not"):
        refuse_several("stage.module")


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"WORLD_SIZE": "1"},
        {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"},
        WHOLE,
        WHOLE | {"LOCAL_WORLD_SIZE": "2"},
        WHOLE | {"LOCAL_WORLD_SIZE": "1"},
    ],
)
def test_whole_ones_are_taken(variables, values):
    variables(values)
    assert number_of_processes(1) == 1


def test_an_entry_point_refuses_them_in_one_line(variables, in_tmp, write_params, capsys):
    from sampling import sample

    write_params({"runtime.threads": None, "runtime.processes": None})
    variables({"LOCAL_WORLD_SIZE": "x"})
    assert sample.main([]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: the environment variables of a launcher") and said.count("\n") == 1
