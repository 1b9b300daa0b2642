"""What the tests of whole runs wait for, they wait for longer on a busy machine."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import whole_runs
from whole_runs import LONGEST, held_up, wait_for


def waited(monkeypatch: pytest.MonkeyPatch, busy: float) -> float:
    """Seconds after which a wait of five seconds is given up, where the machine is busy for a part of the time."""
    now = [100.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr(whole_runs, "time", clock)
    monkeypatch.setattr(whole_runs, "held_up", lambda: busy * now[0])
    with pytest.raises(AssertionError, match="it lives"):
        wait_for(lambda: False, "it lives", seconds=5)
    return now[0] - 100


@pytest.mark.parametrize(("busy", "seconds"), [(0.0, 5), (0.5, 10), (0.8, 25), (1.0, 5 * LONGEST), (1.7, 5 * LONGEST)])
def test_only_seconds_count_in_which_the_machine_was_free(
    monkeypatch: pytest.MonkeyPatch, busy: float, seconds: float
) -> None:
    assert waited(monkeypatch, busy) == pytest.approx(seconds, abs=0.2)


def test_what_holds_the_machine_up_is_told_in_seconds() -> None:
    before, began = held_up(), time.monotonic()
    wait_for(lambda: time.monotonic() > began + 0.05, "time stands still")
    # Waiting for cores, for disks and for the host may go on at the same time, the last on each core.
    assert 0 <= held_up() - before <= 10 * (time.monotonic() - began) + 0.1
