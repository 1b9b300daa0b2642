"""The batch that fits in memory: what is counted, and that it follows what is free."""

from __future__ import annotations

import pytest
import torch

from sampling import memory
from sampling.pipeline import TwoStagePipeline
from stage2_prior.priors.build import build_prior
from stage2_prior.priors.decoding.products import Product
from tessera.codes.layout import CodeLayout, Level
from tessera.footprint import state_bytes

LAYOUT = CodeLayout((1, 16, 16), (Level(4, 4, 1, 11),))
CPU = torch.device("cpu")


@pytest.fixture
def make(prior_arguments):
    """`make("transformer", layers=3)`: a prior without classes, over LAYOUT if no other is given."""

    def prior_of(name: str, layout: CodeLayout = LAYOUT, **changes):
        params = prior_arguments(name, **changes)
        return build_prior({"name": name, "params": params, "layout": layout.to_json(), "num_classes": 0}).eval()

    return prior_of


def decoding_bytes(prior) -> int:
    return prior.decoding_bytes(CPU, memory.BYTES_PER_LOGIT)


def test_a_transformers_keys_and_values_are_counted(make):
    keys_and_values = 3 * 2 * 16 * 16 * 4  # layers, both, tokens, width, bytes
    needed = decoding_bytes(make("transformer", layers=3))
    assert keys_and_values <= needed < 1.5 * keys_and_values


def test_what_serves_all_sequences_is_no_part_of_one_more(make):
    """Not embeddings of places, rotary angles or weights; and bf16 takes half, though few sequences are in fp32."""
    prior = make("transformer", layers=3, architecture="llama")
    whole, lower = (decoding_bytes(p) for p in (prior, prior.lowered(torch.bfloat16)))
    assert whole < 1.5 * 3 * 2 * 16 * 16 * 4
    assert lower < 0.75 * whole


def test_products_are_weights():
    assert state_bytes([Product(torch.randn(8, 8), None, rows) for rows in (1, 4)]) == 0


def test_a_cache_that_grows_is_counted_for_every_token(make):
    neox = make("transformer", layers=3, architecture="gpt_neox")
    ours = decoding_bytes(make("transformer", layers=3))
    assert decoding_bytes(neox) == pytest.approx(ours, rel=0.5)


@pytest.mark.parametrize("name", ["pixelcnn", "pixelsnail"])
def test_the_finest_level_is_what_counts(name, make):
    coarse, fine = Level(2, 2, 1, 11), Level(16, 16, 1, 11)
    needed = []
    for levels in ((coarse, fine), (coarse, coarse), (fine,)):
        prior = make(name, CodeLayout((1, 16, 16), levels))
        needed.append(decoding_bytes(prior))
    assert needed[0] > 4 * needed[1] and needed[0] >= needed[2]


def test_a_tensor_is_counted_once():
    one = torch.zeros(100)
    assert state_bytes({"a": one, "b": [one[:50], (one.view(10, 10),)], "weights": torch.nn.Linear(9, 9)}) == 400


@pytest.mark.parametrize(("free", "expected"), [(0, 1), (10**15, memory.MOST)])
def test_the_batch_follows_what_is_free(tiny_run, monkeypatch, free, expected):
    tiny_run()
    pipeline = TwoStagePipeline.load("models", "cpu")
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    one = memory.image_bytes(pipeline.vqvae, pipeline.prior, pipeline.device)
    assert memory.batch_size(one, pipeline.prior, pipeline.device) == expected
    assert torch.allclose(pipeline.generate(5, seed=1), pipeline.generate(5, seed=1, batch_size=2), atol=1e-5)


def test_what_decoding_keeps_of_the_weights_is_left_free(monkeypatch):
    prior = torch.nn.Linear(100, 10, bias=False)
    device, weights, image = torch.device("cpu"), 4000, 50
    for images in (3, 7):
        free = round((2 * weights + (images + 0.5) * image) / memory.PART)
        monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: free)
        assert memory.batch_size(image, prior, device) == images


def test_processes_of_one_machine_divide_its_memory(monkeypatch):
    prior = torch.nn.Linear(1, 1, bias=False)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 24_000)
    sizes = []
    for processes in (1, 2, 3):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        sizes.append(memory.batch_size(100, prior, torch.device("cpu")))
    assert sizes == [119, 59, 39]
