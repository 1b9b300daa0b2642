"""How long a stage took is recorded beside its state, and says nothing of other parameters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tessera import times
from tessera.entry import main
from tessera.errors import UserError
from tessera.launch import threads
from tessera.parameters import Params

USES = ("sampling",)  # this module is a stage of the tests


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(times, "time", made)
    return made


def take(clock: Clock, params: Params, seconds: float, finished: bool = True) -> None:
    with times.measured("stage.of.a.test", USES, params) as outcome:
        clock.now += seconds
        outcome |= {"processes": 1, "finished": finished}


def recorded(params: Params) -> dict | None:
    return times.recorded("stage.of.a.test", USES, params)


def test_interrupted_runs_add_up_and_the_longest_finished_one_counts(clock, params):
    chosen = params()
    assert recorded(chosen) is None
    take(clock, chosen, 5.0, finished=False)
    take(clock, chosen, 7.0, finished=False)
    take(clock, chosen, 60.0)
    take(clock, chosen, 1.5)  # which only published a finished training again
    found = recorded(chosen)
    assert (found["seconds"], found["interrupted"]) == (60.0, 12.0)
    assert found["processes"] == 1 and found["threads"] >= 1 and found["torch"] and found["processor"]
    assert "node" not in found and not set(map(str, found.values())) & {__import__("platform").node()}


def test_a_record_is_of_its_own_parameters(clock, params):
    take(clock, params(), 60.0)
    other = params({"sampling.temperature": 0.5})
    assert recorded(other) is None
    take(clock, other, 3.0)
    assert recorded(other)["seconds"] == 3.0 and recorded(params({"sampling.temperature": 0.9})) is None


def test_a_failure_is_passed_on_and_its_time_kept(clock, params):
    chosen = params()
    with pytest.raises(UserError), times.measured("stage.of.a.test", USES, chosen):
        clock.now += 4.0
        raise UserError("no")
    assert recorded(chosen)["interrupted"] == 4.0 and recorded(chosen)["seconds"] == 0.0


def test_a_damaged_record_or_a_folder_that_cannot_be_written_fails_nothing(clock, params):
    chosen = params()
    times.TIMES.mkdir(parents=True)
    file = times.TIMES / "stage.of.a.test.json"
    file.write_text("{", encoding="utf-8")
    assert recorded(chosen) is None
    take(clock, chosen, 2.0)
    whole = json.loads(file.read_text(encoding="utf-8"))
    for name in whole:
        file.write_text(json.dumps({**whole, name: [1]}), encoding="utf-8")
        assert recorded(chosen) is None, name
    file.write_text(json.dumps(whole), encoding="utf-8")
    assert recorded(chosen)["seconds"] == 2.0
    (times.TIMES / "stage.of.a.test.json").unlink()
    times.TIMES.rmdir()
    times.TIMES.write_text("a file in the way", encoding="utf-8")
    take(clock, chosen, 2.0)
    assert recorded(chosen) is None


def test_every_stage_is_measured_and_a_run_with_other_options_is_not(
    write_params: Callable[..., None], in_tmp: Path
) -> None:
    write_params()
    assert main(_nothing, "", []) == 0
    (file,) = (in_tmp / times.TIMES).iterdir()
    assert json.loads(file.read_text(encoding="utf-8"))["processes"] == 1
    file.unlink()
    assert main(_nothing, "", ["--count", "2"], lambda parser: parser.add_argument("--count", type=int)) == 0
    assert not list((in_tmp / times.TIMES).iterdir())


def test_the_record_of_a_run_under_torchrun_says_how_many_processes_shared_it(
    write_params: Callable[..., None], in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight processes on two machines: the four of one machine divide its cores among them."""
    write_params({"runtime.threads": None})
    names = {"WORLD_SIZE": 8, "LOCAL_WORLD_SIZE": 4, "RANK": 0, "LOCAL_RANK": 0, "MASTER_ADDR": "here"}
    for name, value in (names | {"MASTER_PORT": 1}).items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "available_cores", lambda: 12)
    assert main(_nothing, "", [], parallel=True) == 0
    (file,) = (in_tmp / times.TIMES).iterdir()
    record = json.loads(file.read_text(encoding="utf-8"))
    assert (record["processes"], record["threads"]) == (8, 3)


def _nothing(params: Params, arguments: object) -> None:
    pass
