"""The leaderboard: every pair is valid and runs once, with steps that are timed once, after its tokenizer."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from leaderboard_options import options_of


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
    for words in (("--priors", "any_order, annealed"), (), ()):
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
    leaderboard.run(options_of(leaderboard, "--tokenizers", *names, "--priors", "any_order, annealed"))
    runs = [entry for entry in finished if entry[0] == "tokenizer" or len(entry) == 4]
    assert [entry[1] for entry in runs] == [*names, "any_order, annealed", "any_order, annealed", "any_order, annealed"]
    assert [entry[0] for entry in runs[3:]] == list(names)
    assert [entry[-1] for entry in runs] == 2 * [leaderboard.TOKENIZERS[name] for name in names]


def test_a_table_in_less_time_says_what_was_changed(leaderboard: ModuleType, finished: list[tuple]) -> None:
    less = ("-S", "evaluation.images=100", "sampling.images=20", "--given", "lower", "--completed", "50", "--eager")
    options = options_of(leaderboard, "--tokenizers", "vq", "--priors", "any_order, annealed", *less)
    changes = leaderboard.priors.changes_of("any_order, annealed", 80)
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


def test_all_trainings_are_of_one_precision(leaderboard: ModuleType, finished: list[tuple]) -> None:
    for precision, words in (("fp32", ()), ("bf16", ("--precision", "bf16"))):
        options = options_of(leaderboard, *words)
        found = leaderboard.priors.params_of(options, leaderboard.priors.changes_of("masked", 80))
        trainings = [found.stage1_vqvae.training, found.stage2_prior.chosen.training, found.classifier.training]
        assert [training.precision for training in trainings] == 3 * [precision]
        assert found.sampling.precision == "fp32"
    leaderboard.run(options_of(leaderboard, "--tokenizers", "vq", "--priors", "masked"))
    (row,) = leaderboard.read_rows(Path("rows.jsonl"))
    assert row["precision"] == "fp32"
    with pytest.raises(SystemExit, match=r"vq holds other parameters: .*precision: fp32, and now bf16"):
        leaderboard.run(options_of(leaderboard, "--tokenizers", "vq", "--precision", "bf16"))


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
    with pytest.raises(SystemExit, match=r"-S stage1_vqvae.training.precision: the comparison sets it"):
        check("masked", "-S", "stage1_vqvae.training.precision=bf16")
    check("masked", "-S", "stage2_prior.masked.bound_draws=4", "stage1_vqvae.training.steps=700", "sampling.images=20")
    with pytest.raises(SystemExit, match=r"-S stage2_prior.any_order.training.steps: the comparison sets it"):
        leaderboard.import_code(options_of(leaderboard, "-S", "stage2_prior.any_order.training.steps=5"))


def test_a_folder_serves_one_set_of_parameters_before_the_prior(
    leaderboard: ModuleType, finished: list[tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--tokenizers", "vq", "--priors", "any_order, annealed")
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
    monkeypatch.setattr(leaderboard.priors, "images_per_second", partial(leaderboard.priors.images_per_second, count=8))
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
    assert row["steps"] == leaderboard.priors.VALIDATIONS  # the fewest, since hardly any time was allowed
    assert row["total"] == pytest.approx(row["distortion"] + row["rate"]) and row["minutes"] > 0
    assert list(row["completed"]) == ["lower"] and 0 <= row["agreement"] <= 1 and row["rfd"] >= 0
    leaderboard.run(options)
    assert Path("rows.jsonl").read_text(encoding="utf-8") == rows
    Path("rows.jsonl").unlink()
    leaderboard.run(options)
    (again,) = leaderboard.read_rows(Path("rows.jsonl"))
    assert again["minutes"] is None and again["rate"] == row["rate"]
