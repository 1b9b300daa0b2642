"""How much memory is free, with the limits of containers and jobs."""

from __future__ import annotations

import pytest
import torch

from tessera.launch import memory

CPU = torch.device("cpu")


def test_a_containers_limit_counts(monkeypatch, tmp_path):
    whole = memory.free_bytes(CPU)
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory, "OWN_CGROUP", tmp_path / "own")
    assert memory.free_bytes(CPU) == 3000
    (tmp_path / "memory.stat").write_text("anon 7\nfile 900\ninactive_file 500\n")  # cache, given back on demand
    assert memory.free_bytes(CPU) == 3500
    job = tmp_path / "slurm" / "job"
    job.mkdir(parents=True)
    (job / "memory.max").write_text("2500\n")
    (job / "memory.current").write_text("1500\n")
    (tmp_path / "own").write_text("0::/slurm/job/\n")
    assert memory.free_bytes(CPU) == 1000
    (tmp_path / "own").write_bytes(b"1:name=x:/M\xfcller\n0::/slurm/job/\n")
    assert memory.free_bytes(CPU) == 1000
    (tmp_path / "own").unlink()
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes(CPU) == pytest.approx(whole, rel=0.2)
