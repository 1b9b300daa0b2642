"""The leaderboard: every pair is valid, a pair runs once, its steps are timed once, and any column sorts the table."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import sampling.generate  # noqa: F401 (before benchmarks/sampling.py, which would hide the package)


@pytest.fixture
def leaderboard(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    import leaderboard

    return leaderboard


@pytest.fixture
def finished(leaderboard: ModuleType, monkeypatch: pytest.MonkeyPatch, in_tmp: Path) -> list[tuple]:
    """What is asked of the stages, which only leave their folders and some figures."""
    asked: list[tuple] = []

    def run_once(options: Any) -> None:
        asked.append(("tokenizer", Path.cwd().name, dict(options.changes)))
        for part in (leaderboard.paths.PREPARED, leaderboard.paths.CLASSIFIER):
            if not part.exists():
                asked.append((part.name, Path.cwd().name))
                part.mkdir(parents=True)
                (part / "file").write_text(Path.cwd().name, encoding="utf-8")

    def measure(label: str, steps: int, options: Any) -> dict[str, Any]:
        asked.append((Path.cwd().name, label, steps, dict(options.changes)))
        bits = {"distortion": 4.0, "rate_prior": 0.5, "total_prior": 4.5}
        if label == "masked":
            bits["rate_prior_standard_error"] = 0.01
        return {
            **{"bits_per_dim": bits, "classifier": {"sample_agreement": 0.25}, "nats_per_token": {}},
            "frechet_distance": {"reconstructions": 1.0, "default": 2.0, "unguided": 3.0},
            "images_per_second": {"guided": 7.0, "unguided": 9.0},
            **{"seconds": 90.0, "steps": steps, "parameters": 3, "code": "c"},
            **{"completed": dict.fromkeys(options.given, 0.5), "completed_images": options.completed},
        }

    monkeypatch.setattr(leaderboard.priors, "run_once", run_once)
    monkeypatch.setattr(leaderboard.priors, "measure", measure)
    monkeypatch.setattr(leaderboard, "import_code", lambda options: None)
    monkeypatch.setattr(leaderboard.priors, "steps_in", lambda *a: asked.append(("timed", a[1])) or 8 * len(asked))
    monkeypatch.setattr(leaderboard, "tokens_of", lambda: 64)
    return asked


def options_of(leaderboard: ModuleType, *words: str) -> Any:
    Path("dataset").mkdir(exist_ok=True)
    files = ["--folder", "scratch", "--rows", "rows.jsonl", "--steps", "steps.json", "--threads", "1"]
    return leaderboard.parser().parse_args(["dataset", *files, *words])


def test_every_pair_of_the_leaderboard_is_valid(leaderboard: ModuleType, in_tmp: Path) -> None:
    options = options_of(leaderboard)
    for changes in leaderboard.TOKENIZERS.values():
        options.changes = changes
        for prior in leaderboard.PRIORS:
            found = leaderboard.priors.params_of(options, leaderboard.priors.changes_of(prior, 80))
            assert found.stage2_prior.chosen.training.steps == 80
            quantizer = found.stage1_vqvae.quantizer
            assert set(quantizer.chosen.sizes) == {512}
            assert quantizer.name == changes.get("stage1_vqvae.quantizer.name", "vq")


def test_a_pair_runs_once_and_its_steps_are_timed_once(leaderboard: ModuleType, finished: list[tuple]) -> None:
    for words in (("--priors", "any_order"), (), ()):
        leaderboard.run(options_of(leaderboard, "--tokenizers", "vq", "fsq", *words))
    runs = [entry for entry in finished if len(entry) == 4]  # of priors
    assert {entry[:2] for entry in runs} == {(t, p) for t in ("vq", "fsq") for p in leaderboard.PRIORS}
    assert len(runs) == 2 * len(leaderboard.PRIORS) == sum(entry[0] == "timed" for entry in finished)
    assert [entry for entry in finished if entry[0] in ("prepared", "classifier")] == [
        ("prepared", "vq"),
        ("classifier", "vq"),
    ]  # the other tokenizer has copies
    steps = json.loads(Path("steps.json").read_text(encoding="utf-8"))
    assert {pair: entry["steps"] for pair, entry in steps.items()} == {f"{t}: {p}": s for t, p, s, _ in runs}
    assert all(entry["processor"] and entry["threads"] == 1 for entry in steps.values())
    Path("rows.jsonl").unlink()
    finished.clear()
    leaderboard.run(options_of(leaderboard, "--tokenizers", "vq"))
    assert [entry[2] for entry in finished[1:]] == [steps[f"vq: {prior}"]["steps"] for prior in leaderboard.PRIORS]


def test_tokenizers_come_first_and_each_prior_has_its_own(leaderboard: ModuleType, finished: list[tuple]) -> None:
    names = ("vq", "fsq", "multi_scale")
    leaderboard.run(options_of(leaderboard, "--tokenizers", *names, "--priors", "any_order"))
    runs = [entry for entry in finished if entry[0] == "tokenizer" or len(entry) == 4]
    assert [entry[1] for entry in runs] == [*names, "any_order", "any_order", "any_order"]
    assert [entry[0] for entry in runs[3:]] == list(names)
    assert [entry[-1] for entry in runs] == 2 * [leaderboard.TOKENIZERS[name] for name in names]


def test_a_table_in_less_time_says_what_was_changed(leaderboard: ModuleType, finished: list[tuple]) -> None:
    less = ("-S", "evaluation.images=100", "sampling.images=20", "--given", "lower", "--completed", "50", "--eager")
    options = options_of(leaderboard, "--tokenizers", "vq", "--priors", "any_order", *less)
    changes = leaderboard.priors.changes_of("any_order", 80)
    found = leaderboard.priors.params_of(options, changes)
    assert (found.evaluation.images, found.sampling.images) == (100, 20)
    compiled = [found.stage1_vqvae.training, found.stage2_prior.chosen.training, found.classifier.training]
    assert not any(training.compile for training in compiled)
    options.eager = False
    assert leaderboard.priors.params_of(options, changes).stage2_prior.chosen.training.compile
    options.eager = True
    leaderboard.run(options)
    (row,) = leaderboard.read_rows(Path("rows.jsonl"))
    assert row["changes"] == ["evaluation.images=100", "sampling.images=20"] and row["eager"]


def test_what_the_comparison_sets_cannot_be_changed(leaderboard: ModuleType, in_tmp: Path) -> None:
    def check(prior: str, *words: str, changes: dict[str, Any] | None = None) -> None:
        options = options_of(leaderboard, *words)
        options.changes = changes or {}
        leaderboard.priors.params_of(options, leaderboard.priors.changes_of(prior, 80))

    set_by_it = ["stage2_prior.masked.training.steps=5", "stage2_prior.training.steps=5", "stage2_prior.name=counts"]
    for word in [*set_by_it, "stage2_prior.masked={}", "stage2_prior.masked.width=8", "runtime.threads=1"]:
        with pytest.raises(SystemExit, match=f"-S {word.partition('=')[0]}: the comparison sets it"):
            check("masked", "-S", word)
    with pytest.raises(SystemExit, match=r"-S stage1_vqvae.training.compile: the comparison sets it"):
        check("masked", "--eager", "-S", "stage1_vqvae.training.compile=true")
    with pytest.raises(SystemExit, match=r"-S stage1_vqvae.quantizer.name: the comparison sets it"):
        check("masked", "-S", "stage1_vqvae.quantizer.name=bsq", changes=leaderboard.TOKENIZERS["fsq"])
    check("masked", "-S", "stage2_prior.masked.bound_draws=4", "stage1_vqvae.training.steps=700", "sampling.images=20")
    with pytest.raises(SystemExit, match=r"-S stage2_prior.any_order.training.steps: the comparison sets it"):
        leaderboard.import_code(options_of(leaderboard, "-S", "stage2_prior.any_order.training.steps=5"))


def test_a_folder_serves_one_set_of_parameters_before_the_prior(
    leaderboard: ModuleType, finished: list[tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--tokenizers", "vq", "--priors", "any_order")
    leaderboard.run(options_of(leaderboard, *words))
    Path("rows.jsonl").unlink()
    said = r"vq holds other parameters: stage1_vqvae.training.steps: \d+, and now 700; name another --folder"
    with pytest.raises(SystemExit, match=said):
        leaderboard.run(options_of(leaderboard, *words, "-S", "stage1_vqvae.training.steps=700"))
    with pytest.raises(SystemExit, match=r"stage1_vqvae.training.compile: True, and now False; name"):
        leaderboard.run(options_of(leaderboard, *words, "--eager"))
    assert not Path("rows.jsonl").exists()
    leaderboard.run(options_of(leaderboard, *words, "-S", "evaluation.images=100"))  # comes after the prior
    # Another tokenizer takes only what was made with its own parameters.
    finished.clear()
    leaderboard.run(options_of(leaderboard, "--tokenizers", "fsq", *words[2:], "-S", "data.validation_fraction=0.2"))
    assert ("prepared", "fsq") in finished and ("classifier", "fsq") in finished
    Path("scratch/vq/before.json").unlink()
    monkeypatch.chdir("scratch/vq")
    with pytest.raises(SystemExit, match=r"prepared: its parameters are not known; name another --folder"):
        leaderboard.stages.hold(leaderboard.priors.params_of(options_of(leaderboard)))


def test_rows_of_another_budget_are_not_taken_for_those_that_are_asked_for(
    leaderboard: ModuleType, finished: list[tuple], repository: Path
) -> None:
    words = ("--tokenizers", "vq", "--priors", "any_order")
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
    heads = [head.partition(", 1 threads, settings ")[0] + ":" for head in heads]
    small = "8 minutes a prior, -S evaluation.images=9, -S sampling.images=20:"
    assert sorted(heads) == ["2 minutes a prior:", "8 minutes a prior, --eager:", small, "8 minutes a prior:"]
    # The comparison of priors takes the same rows, and those that are older than the options.
    options = options_of(leaderboard)
    options.rows, options.steps, options.minutes = leaderboard.RESULTS / "priors.jsonl", None, 8
    assert len(leaderboard.priors.rows_of(options)) == 8
    options.overrides = ["evaluation.images=9"]
    assert leaderboard.priors.rows_of(options) == []


def test_rows_of_other_parameters_or_threads_are_measured_again(
    leaderboard: ModuleType, finished: list[tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--tokenizers", "vq", "--priors", "any_order"]
    file = Path("rows.jsonl").absolute()

    def rows_after(*more: str) -> int:
        options = options_of(leaderboard, *words, "--folder", f"scratch {len(finished)}", *more)
        for _ in range(2):
            leaderboard.run(options)
        shown = leaderboard.tables(leaderboard.rows_of(options), "total")
        assert shown.count("| vq | any_order |") == 1
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
    words = ("--tokenizers", "vq", "--priors", "any_order", "--minutes")
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


def test_what_every_pair_uses_is_imported_whichever_runs(
    leaderboard: ModuleType, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported: list[str] = []
    monkeypatch.setattr(leaderboard.stages, "import_module", imported.append)
    leaderboard.import_code(options_of(leaderboard, "--tokenizers", "vq", "--priors", "next_scale"))
    lazy = {
        "stage1_vqvae.quantizers.fsq",
        "stage2_prior.priors.any_order",
        "evaluation.measurements",
        "sampling.previews",
        "tessera.training.trackers",
    }
    assert lazy | {"sampling", "stage1_vqvae.scales"} <= set(imported)


def test_a_stage_gets_arguments_as_if_none_were_given(leaderboard: ModuleType) -> None:
    found = leaderboard.stages.nothing()
    assert found.share is None and not leaderboard.stages.sample.asked(found)


@pytest.mark.slow
def test_a_pair_goes_through_all_stages_and_a_finished_training_is_not_repeated(
    leaderboard: ModuleType, repository: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaderboard.priors, "MEASURED_SECONDS", 0.05)
    few = {"steps": 4, "batch_size": 32, "warmup_steps": 1, "validate_every": 2}
    tiny = {f"{part}.training.{name}": n for part in ("stage1_vqvae", "classifier") for name, n in few.items()}
    tiny |= {"stage1_vqvae.training.codebook_images": 64, "evaluation.images": 16, "sampling.images": 20}
    tiny |= {"stage1_vqvae.network.conv.channels": 8, "extract_codes.shift": 0}
    tiny |= {"data.watch": repository / "data" / "embedded.txt", "data.height": 16, "data.width": 16}  # 8x8 codes
    words = ["--tokenizers", "vq", "--priors", "next_scale", "--minutes", "0.0001", "--given", "lower", "--eager"]
    words += ["--completed", "8", "-S", *(f"{path}={value}" for path, value in tiny.items())]
    options = options_of(leaderboard, *words)
    options.preset, options.dataset = "digits", None
    leaderboard.run(options)
    rows = Path("rows.jsonl").read_text(encoding="utf-8")
    (row,) = leaderboard.read_rows(Path("rows.jsonl"))
    assert row["steps"] == 8 and row["total"] == pytest.approx(row["distortion"] + row["rate"]) and row["minutes"] > 0
    assert list(row["completed"]) == ["lower"] and 0 <= row["agreement"] <= 1 and row["rfd"] >= 0
    leaderboard.run(options)
    assert Path("rows.jsonl").read_text(encoding="utf-8") == rows
    Path("rows.jsonl").unlink()
    leaderboard.run(options)
    (again,) = leaderboard.read_rows(Path("rows.jsonl"))
    assert again["minutes"] is None and again["rate"] == row["rate"]


def test_the_table_is_sorted_by_any_column_with_the_best_first(leaderboard: ModuleType, finished: list[tuple]) -> None:
    leaderboard.run(options_of(leaderboard, "--tokenizers", "vq"))
    rows = leaderboard.read_rows(Path("rows.jsonl"))
    assert all(row["processor"] and row["minutes"] == 1.5 and row["gfd"] == 2.0 for row in rows)
    for i, row in enumerate(rows):
        row |= {"gfd": 10.0 - i, "agreement": i / 10}
    rows[0]["gfd"] = None

    def shown(column: str) -> list[str]:
        return [line.split(" | ")[1] for line in leaderboard.table(rows, column).splitlines()[2:]]

    names = [row["prior"] for row in rows]
    assert shown("gfd") == [*names[:0:-1], names[0]] and shown("agreement") == names[::-1]
    assert shown("prior") == sorted(names)
    assert len(shown("tokenizer")) == len(names)
    bound = next(line for line in leaderboard.table(rows, "total").splitlines() if "masked" in line)
    assert "≤ 0.5000 | ≤ 4.5000" in bound


def test_a_training_that_went_on_has_no_minutes(
    leaderboard: ModuleType, finished: list[tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = leaderboard.priors.measure
    monkeypatch.setattr(leaderboard.priors, "measure", lambda *words: whole(*words) | {"seconds": None})
    leaderboard.run(options_of(leaderboard, "--tokenizers", "vq", "--priors", "any_order"))
    rows = leaderboard.read_rows(Path("rows.jsonl"))
    assert [row["minutes"] for row in rows] == [None]
    assert leaderboard.table(rows, "minutes").splitlines()[2].split(" | ")[-2] == "–"


def test_steps_that_were_added_while_others_were_timed_stay(
    leaderboard: ModuleType, finished: list[tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path("steps.json").absolute()  # a pair is timed in another folder

    def timed(*_: Any) -> int:
        file.write_text(json.dumps({"fsq: masked": {"steps": 24}}), encoding="utf-8")
        return 16

    monkeypatch.setattr(leaderboard.priors, "steps_in", timed)
    leaderboard.run(options_of(leaderboard, "--tokenizers", "vq", "--priors", "any_order"))
    steps = json.loads(file.read_text(encoding="utf-8"))
    assert {pair: entry["steps"] for pair, entry in steps.items()} == {"fsq: masked": 24, "vq: any_order": 16}
    assert not list(Path().glob("steps.json.*"))
