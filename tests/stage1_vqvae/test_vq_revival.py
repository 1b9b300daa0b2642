"""The revival of unused codes of the vector quantizer: which codes move, and where to."""

from __future__ import annotations

import torch

from stage1_vqvae.quantizers.search import nearest


def test_revival_resets_code_count_and_sum_of_the_dead_alone(make_vq) -> None:
    alive = make_vq(codebook_size=4, codebook_dim=2)
    vq = make_vq(codebook_size=4, codebook_dim=2, revival_threshold=0.3)
    with torch.no_grad():
        for each in (alive, vq):
            each.codebook.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0], [50.0, 50.0], [60.0, 60.0]]))
            each.ema_count.copy_(torch.tensor([5.0, 5.0, 0.1, 0.1]))
            each.ema_sum.copy_(each.codebook * each.ema_count[:, None])
    z = torch.rand(30, 2)
    for each in (alive, vq):
        each(z)
        each.update(3, seed=0)
    even = alive.ema_count.sum() / 4
    for name in ("codebook", "ema_count", "ema_sum"):
        torch.testing.assert_close(getattr(vq, name)[:2], getattr(alive, name)[:2])
    for dead in (2, 3):
        assert (vq.codebook[dead] == z).all(1).any()  # a vector of the batch
        torch.testing.assert_close(vq.ema_count[dead], even)
        torch.testing.assert_close(vq.ema_sum[dead], vq.codebook[dead] * even)
    assert not torch.equal(vq.codebook[2], vq.codebook[3])


def test_a_revived_code_stays_where_it_was_put(make_vq) -> None:
    vq = make_vq(codebook_size=4, codebook_dim=2, revival_threshold=0.3)
    with torch.no_grad():
        vq.codebook[2:] = 50.0
        vq.ema_count[2:] = 0.01
        vq.ema_sum[2:] = 0.5
    vq(torch.rand(30, 2))
    vq.update(0, seed=0)
    revived = vq.codebook[2].clone()
    vq(vq.codebook[:1].expand(30, 2))  # this batch has no vector for the code, whose mean must not move
    vq.update(1, seed=0)
    torch.testing.assert_close(vq.codebook[2], revived, rtol=1e-3, atol=1e-3)


def test_revival_depends_on_seed_and_step_alone(make_vq) -> None:
    found = []
    for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0)):
        torch.manual_seed(0)
        vq = make_vq(revival_threshold=0.9)
        vq(torch.randn(50, 4) + 5)
        torch.manual_seed(len(found))
        vq.update(step, seed=seed)
        found.append(vq.codebook)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2]) and not torch.equal(found[0], found[3])


def test_revival_recovers_a_collapsed_codebook(make_vq) -> None:
    vq = make_vq(codebook_size=32, codebook_dim=2, revival_threshold=0.1, ema_decay=0.8)
    vq.codebook.add_(100)
    vq.ema_sum.add_(100)
    for step in range(60):
        vq(torch.rand(256, 2))
        vq.update(step, seed=0)
    used = nearest(torch.rand(2000, 2), vq.codebook).unique()
    assert len(used) > 0.9 * 32


def test_revival_works_with_fewer_vectors_than_codes(make_vq) -> None:
    vq = make_vq(revival_threshold=0.9)
    vq(torch.randn(3, 4) + 9)
    vq.update(0, seed=0)
    assert all(tensor.isfinite().all() for tensor in vq.state_dict().values())
