"""The search for codes against brute force, with ties, blocks and little memory; k-means."""

from __future__ import annotations

import pytest
import torch
from largest_tensor import LargestTensor

from stage1_vqvae.quantizers import search
from stage1_vqvae.quantizers.search import best, gather_statistics, kmeans, nearest


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("block", [1, 2**10, 2**22])
@pytest.mark.parametrize(("size", "width"), [(1, 3), (63, 4), (64, 4), (65, 4), (200, 2), (1000, 16)])
def test_best_is_the_highest_score_of_brute_force(monkeypatch, block: int, size: int, width: int) -> None:
    monkeypatch.setattr(search, "BLOCK", block)
    vectors, codebook, bias = torch.randn(300, width), torch.randn(size, width), torch.randn(size)
    scores = vectors.double() @ codebook.double().t()
    assert torch.equal(best(vectors, codebook), scores.argmax(1))
    assert torch.equal(best(vectors, codebook, bias), (scores + bias.double()).argmax(1))
    distances = torch.cdist(vectors.double(), codebook.double())
    assert torch.equal(nearest(vectors, codebook), distances.argmin(1))


def test_ties_go_to_the_lowest_index_across_groups() -> None:
    codebook, vectors = torch.randn(50, 4).repeat(4, 1), torch.randn(500, 4)
    assert torch.equal(nearest(vectors, codebook), nearest(vectors, codebook[:50]))
    assert nearest(codebook, codebook).tolist() == list(range(50)) * 4


def test_codes_far_from_the_origin_are_told_apart() -> None:
    codebook = torch.randn(200, 16) * 0.1 + 100
    vectors = torch.randn(500, 16) * 0.1 + 100
    exact = torch.cdist(vectors.double(), codebook.double())
    found = exact.gather(1, nearest(vectors, codebook)[:, None]).squeeze(1)
    assert (found <= exact.amin(1) * (1 + 1e-4)).all()  # float32 rounds 100 by about 1e-5 of the spread


def test_a_code_that_has_run_away_spoils_no_other() -> None:
    codebook, vectors = torch.randn(512, 16), torch.randn(300, 16)
    codebook[7] = 1e8
    exact = torch.cdist(vectors.double(), codebook.double()).argmin(1)
    assert torch.equal(nearest(vectors, codebook), exact)


def test_vectors_that_are_not_finite_get_a_code_all_the_same() -> None:
    vectors = torch.tensor([[float("nan"), 0.0], [float("inf"), 0.0], [0.0, float("-inf")], [1.0, 1.0]])
    found = nearest(vectors, torch.randn(70, 2))
    assert (found >= 0).all() and (found < 70).all()


def test_the_matrix_of_all_distances_never_exists() -> None:
    with LargestTensor() as watched:
        nearest(torch.randn(20_000, 4), torch.randn(4096, 4))
    assert 0 < watched.largest <= search.BLOCK < 20_000 * 4096 / 10


def test_statistics_are_counts_and_sums() -> None:
    vectors, indices = torch.randn(40, 3), torch.randint(5, (40,))
    counts, sums = gather_statistics(vectors, indices, 6)
    for code in range(6):
        assert counts[code] == (indices == code).sum()
        torch.testing.assert_close(sums[code], vectors[indices == code].sum(0))


@pytest.mark.parametrize("size", [10, 100])
def test_kmeans_plus_plus_finds_clusters_that_random_centres_miss(size: int) -> None:
    """Each centre lies in another cluster. Centres drawn at random would leave a third of the clusters without one."""
    centres = torch.randn(size, 8) * 100
    vectors = (centres.repeat(30, 1) + torch.randn(30 * size, 8))[torch.randperm(30 * size)]
    found, counts = kmeans(vectors, size, 0, torch.Generator().manual_seed(1))
    hit = torch.cdist(found, centres).argmin(1).unique().numel() / size
    missed_at_random = 1 - torch.randint(size, (size,)).unique().numel() / size
    assert hit > 0.9 if size <= 64 else hit > 1 - missed_at_random / 2
    assert counts.sum() == len(vectors)


@pytest.mark.parametrize("rounds", [1, 4])
def test_kmeans_rounds_are_lloyds(rounds: int) -> None:
    vectors = torch.randn(400, 3)
    centres = kmeans(vectors, 12, 0, torch.Generator().manual_seed(5))[0].double()
    for _ in range(rounds):
        own = torch.cdist(vectors.double(), centres).argmin(1)
        assert own.unique().numel() == 12  # another test covers empty clusters
        centres = torch.stack([vectors.double()[own == centre].mean(0) for centre in range(12)])
    found, counts = kmeans(vectors, 12, rounds, torch.Generator().manual_seed(5))
    torch.testing.assert_close(found.double(), centres, rtol=1e-4, atol=1e-5)
    own = torch.cdist(vectors.double(), centres).argmin(1)
    assert torch.equal(counts.long(), torch.bincount(own, minlength=12))


def test_an_empty_cluster_starts_again_at_a_vector(monkeypatch) -> None:
    vectors = torch.randn(50, 2)
    away = torch.tensor([[0.0, 0.0], [900.0, 900.0]])
    monkeypatch.setattr(search, "_seeds", lambda vectors, size, random: away)
    centres, counts = kmeans(vectors, 2, 1, torch.Generator().manual_seed(0))
    torch.testing.assert_close(centres[0], vectors.mean(0))
    assert (vectors == centres[1]).all(1).any() and (counts > 0).all()


def test_kmeans_never_ends_above_where_it_began() -> None:
    vectors = torch.randn(600, 4)

    def error(rounds: int) -> float:
        centres, _ = kmeans(vectors, 20, rounds, torch.Generator().manual_seed(2))
        return torch.cdist(vectors, centres).min(1).values.square().mean().item()

    errors = [error(rounds) for rounds in (0, 1, 3, 10)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.9 * errors[0]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_more_centres_than_vectors_lie_beside_them(count: int) -> None:
    vectors = torch.randn(count, 3)
    centres, counts = kmeans(vectors, 9, 2, torch.Generator().manual_seed(0))
    assert centres.shape == (9, 3) and centres.isfinite().all() and counts.sum() == count
    assert torch.cdist(vectors, centres).min(1).values.max() < 0.2
