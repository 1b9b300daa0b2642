"""The leaderboard's rows and steps: which are taken again, which are measured anew, and the table that they give."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from leaderboard_options import options_of


def test_rows_of_another_budget_are_not_taken_for_those_that_are_asked_for(
    leaderboard: ModuleType, finished: list[tuple], repository: Path
) -> None:
    words = ("--tokenizers", "vq", "--priors", "any_order, annealed")
    budgets = [(), ("-S", "sampling.images=20", "evaluation.images=9"), ("--given", "lower"), ("--completed", "50")]
    for more in [*budgets, ("--steps", "others.json", "--minutes", "2")]:
        for _ in range(2):
            leaderboard.run(options_of(leaderboard, *words, *more))
    rows = leaderboard.read_rows(Path("rows.jsonl"))
    assert len(rows) == len({row["steps"] for row in rows}) + 3 == len(budgets) + 1
    turned = ("-S", "evaluation.images=9", "sampling.images=20")  # the same in another order
    leaderboard.run(options_of(leaderboard, *words, *turned))
    assert len(leaderboard.read_rows(Path("rows.jsonl"))) == len(rows)
    assert leaderboard.rows_of(options_of(leaderboard, *words, *turned)) == [rows[1]]
    eager = rows[0] | {"eager": True}
    shown = leaderboard.tables([rows[0], rows[1], eager, rows[-1]], "total")
    heads = [line for line in shown.splitlines() if line.endswith(":")]
    heads = [head.partition(", threads 1, settings ")[0] + ":" for head in heads]
    small = "8 minutes a prior, fp32, -S evaluation.images=9, -S sampling.images=20:"
    others = ["2 minutes a prior, fp32:", "8 minutes a prior, fp32, --eager:", "8 minutes a prior, fp32:"]
    assert sorted(heads) == sorted([small, *others])
    # The comparison of priors takes the same rows, and those that are older than the options.
    options = options_of(leaderboard)
    options.rows, options.steps, options.minutes = leaderboard.RESULTS / "priors.jsonl", None, 8
    options.precision, options.given, options.completed = None, list(leaderboard.priors.completion.GIVEN), 1000
    assert len(leaderboard.priors.rows_of(options)) == 8
    options.overrides = ["evaluation.images=9"]
    assert leaderboard.priors.rows_of(options) == []


def test_rows_of_other_parameters_or_threads_are_measured_again(
    leaderboard: ModuleType, finished: list[tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--tokenizers", "vq", "--priors", "any_order, annealed"]
    file = Path("rows.jsonl").absolute()

    def rows_after(*more: str) -> int:
        options = options_of(leaderboard, *words, "--folder", f"scratch {len(finished)}", *more)
        for _ in range(2):
            leaderboard.run(options)
        shown = leaderboard.tables(leaderboard.rows_of(options), "total")
        assert shown.count("| vq | any_order, annealed |") == 1
        return len(leaderboard.read_rows(file))

    assert [rows_after(), rows_after("--threads", "2")] == [1, 2]
    with monkeypatch.context() as patch:
        patch.setitem(leaderboard.TOKENIZERS, "vq", {"stage1_vqvae.training.learning_rate": 0.5})
        assert rows_after() == 3
    patched = leaderboard.priors.changes_of
    monkeypatch.setattr(leaderboard.priors, "changes_of", lambda *of: patched(*of) | {"sampling.temperature": 0.8})
    assert rows_after() == 4
    Path("steps.json").unlink()
    assert rows_after() == 5  # other steps are timed


def test_steps_that_were_timed_for_other_minutes_are_refused(leaderboard: ModuleType, finished: list[tuple]) -> None:
    words = ("--tokenizers", "vq", "--priors", "any_order, annealed", "--minutes")
    leaderboard.run(options_of(leaderboard, *words, "2"))
    Path("rows.jsonl").unlink()
    with pytest.raises(SystemExit, match=r"--minutes 3: .*steps.json holds the steps of 2.0 minutes for vq: any_order"):
        leaderboard.run(options_of(leaderboard, *words, "3"))
    with pytest.raises(SystemExit, match=r"--minutes 3: .* for vq: any_order"):  # before any tokenizer is trained
        leaderboard.run(options_of(leaderboard, "--minutes", "3"))
    assert not Path("rows.jsonl").exists() and not Path("scratch/fsq").exists()
    leaderboard.run(options_of(leaderboard, *words, "2"))
    leaderboard.run(options_of(leaderboard, *words[:-1]))
    assert len(leaderboard.read_rows(Path("rows.jsonl"))) == 1


def test_the_table_is_sorted_by_any_column_with_the_best_first(leaderboard: ModuleType, finished: list[tuple]) -> None:
    leaderboard.run(options_of(leaderboard, "--tokenizers", "vq"))
    rows = leaderboard.read_rows(Path("rows.jsonl"))
    assert all(row["processor"] and row["minutes"] == 1.5 and row["gfd"] == 2.0 for row in rows)
    for i, row in enumerate(rows):
        row |= {"gfd": 10.0 - i, "agreement": i / 10}
    rows[0]["gfd"] = None

    def shown(column: str) -> list[str]:
        return [line.split(" | ")[1] for line in leaderboard.tables(rows, column).splitlines()[4:]]

    names = [row["prior"] for row in rows]
    assert shown("gfd") == [*names[:0:-1], names[0]] and shown("agreement") == names[::-1]
    assert shown("prior") == sorted(names)
    assert len(shown("tokenizer")) == len(names)
    bound = next(line for line in leaderboard.tables(rows, "total").splitlines() if "masked" in line)
    assert "≤ 0.5000 | ≤ 4.5000" in bound


def test_a_training_that_went_on_has_no_minutes(
    leaderboard: ModuleType, finished: list[tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = leaderboard.priors.measure
    monkeypatch.setattr(leaderboard.priors, "measure", lambda *words: whole(*words) | {"seconds": None})
    leaderboard.run(options_of(leaderboard, "--tokenizers", "vq", "--priors", "any_order, annealed"))
    rows = leaderboard.read_rows(Path("rows.jsonl"))
    assert [row["minutes"] for row in rows] == [None]
    assert leaderboard.tables(rows, "minutes").splitlines()[4].split(" | ")[-2] == "–"


def test_steps_that_were_added_while_others_were_timed_stay(
    leaderboard: ModuleType, finished: list[tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path("steps.json").absolute()  # a pair is timed in another folder

    def timed(*_: Any) -> int:
        file.write_text(json.dumps({"fsq: masked": {"steps": 24}}), encoding="utf-8")
        return 16

    monkeypatch.setattr(leaderboard.priors, "steps_in", timed)
    leaderboard.run(options_of(leaderboard, "--tokenizers", "vq", "--priors", "any_order, annealed"))
    steps = json.loads(file.read_text(encoding="utf-8"))
    assert {pair: entry["steps"] for pair, entry in steps.items()} == {"fsq: masked": 24, "vq: any_order, annealed": 16}
    assert not list(Path().glob("steps.json.*"))
