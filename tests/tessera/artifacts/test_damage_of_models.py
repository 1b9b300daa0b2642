"""Damage anywhere in a published model, in samples, in a record of `fingerprint` or in a saved state is found before it
is used.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from written_parts import write_parts

from tessera.artifacts.models import load_model, save_model
from tessera.artifacts.publishing import publishing
from tessera.errors import UserError
from tessera.images.samples import open_samples, sample_parts, write_description
from tessera.training.checkpoint import StateFolder

WEIGHTS = {"a": torch.arange(300, dtype=torch.float32), "b": torch.ones(3, 5)}
IMAGES = np.random.default_rng(0).integers(0, 256, (9, 3, 8, 8), dtype=np.uint8)


def write_model(folder: Path) -> None:
    save_model(folder, "prior", {"name": "counts", "params": {"x": [1, 2.5, None]}}, WEIGHTS, {"codes": "a" * 64})


def use_model(folder: Path) -> None:
    config, tensors, manifest = load_model(folder, "prior")
    assert config == {"name": "counts", "params": {"x": [1, 2.5, None]}} and manifest.parents == {"codes": "a" * 64}
    assert all(torch.equal(tensors[name], tensor) for name, tensor in WEIGHTS.items())


def write_sampled(folder: Path) -> None:
    with publishing(folder, "samples", {}) as staging:
        write_parts(staging, sample_parts(["default"], 9, 4), IMAGES)
        write_description(staging, ["default"], 9, (3, 8, 8), 3, 4, np.arange(9) % 3)
        (staging / "grid.png").write_bytes(b"a picture")


def use_samples(folder: Path) -> None:
    split = open_samples(folder)["default"]
    assert np.array_equal(split.pixels(np.arange(9)).numpy(), IMAGES)
    assert np.array_equal(split.label_tensor(np.arange(9)).numpy(), np.arange(9) % 3)


def damaged(file: Path, chance: random.Random, flip: bool) -> tuple[bytes, bytes]:
    """The file's bytes as they are, and with a flipped bit or cut."""
    whole = file.read_bytes()
    place = chance.randrange(len(whole))
    if not flip:
        return whole, whole[:place]
    return whole, whole[:place] + bytes([whole[place] ^ 1 << chance.randrange(8)]) + whole[place + 1 :]


@pytest.mark.parametrize(("write", "use"), [(write_model, use_model), (write_sampled, use_samples)])
def test_flips_and_truncations_are_all_found(tmp_path, write: Callable, use: Callable):
    """200 flipped bits and 50 truncations a folder."""
    write(tmp_path / "folder")
    use(tmp_path / "folder")
    chance, files = random.Random(0), sorted(path for path in (tmp_path / "folder").rglob("*") if path.is_file())
    for number in range(250):
        file = chance.choice(files)
        whole, bad = damaged(file, chance, flip=number < 200)
        file.write_bytes(bad)
        with pytest.raises(UserError) as caught:
            use(tmp_path / "folder")
        assert "\n" not in str(caught.value), (file, number)
        file.write_bytes(whole)
    use(tmp_path / "folder")


def test_flips_and_truncations_of_a_saved_state_are_all_found_and_the_one_before_it_is_taken(
    in_tmp, monkeypatch, capsys
):
    """200 flipped bits and 50 truncations, half of them on a file, half on a byte of all files."""
    monkeypatch.delenv("DVC_ROOT", raising=False)
    with StateFolder("train_prior", "0123", exclusive=True) as state:
        for step in (5, 10):
            state.save(step, {"x": torch.full((900,), float(step))}, {"progress": {"at": [step, 2.5]}}, keep=2)

        def taken() -> int:
            tensors, values = state.latest()
            assert values["progress"] == {"at": [values["step"], 2.5]} and (tensors["x"] == values["step"]).all()
            return values["step"]

        assert taken() == 10 and capsys.readouterr().err == ""
        newest = state.folder / "step-000000010"
        chance, files = random.Random(0), sorted(path for path in newest.rglob("*") if path.is_file())
        sizes = [file.stat().st_size for file in files]
        assert len(files) == 3
        for number in range(250):
            file = chance.choice(files) if number % 2 else chance.choices(files, sizes)[0]
            whole, bad = damaged(file, chance, flip=number < 200)
            file.write_bytes(bad)
            assert taken() == 5, (file, number)
            said = capsys.readouterr().err
            assert said.startswith(f"warning: {newest}") and said.count("\n") == 1, said
            file.write_bytes(whole)
        assert taken() == 10


def test_a_damaged_record_of_fingerprint_lets_no_stage_run(in_tmp, repository, write_params, monkeypatch, capsys):
    """A flip in a value, a key or the grammar is found. One between them changes no value."""
    from sampling import sample
    from tessera.artifacts.files import json_text
    from tessera.fingerprint import fingerprint
    from tessera.parameters import load

    write_params()
    record = in_tmp / "results" / "fingerprint" / "sample.json"
    record.parent.mkdir(parents=True)
    record.write_text(json_text(fingerprint("sampling.sample", sample.USES, load(Path("params.yaml")))))
    monkeypatch.setenv("DVC_STAGE", "sample")
    good, chance = json.loads(record.read_text()), random.Random(0)
    found = 0
    for number in range(60):
        whole, bad = damaged(record, chance, flip=number < 50)
        record.write_bytes(bad)
        try:
            harmless = json.loads(bad) == good
        except ValueError:
            harmless = False
        if not harmless:
            found += 1
            assert sample.main([]) == 2
            said = capsys.readouterr().err
            assert said.startswith("error: ") and said.count("\n") == 1
            assert "sample.json" in said or "edited since the stage `fingerprint` ran" in said
        record.write_bytes(whole)
    assert found > 40
