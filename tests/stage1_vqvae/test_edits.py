"""A stage that is run by hand says which parameters of its inputs were edited."""

from __future__ import annotations

from types import SimpleNamespace

from stage1_vqvae.edits import tell_of_edits


def test_a_stage_by_hand_says_that_scales_were_switched_on_or_off(params, capsys) -> None:
    without, scaled = params({}), params({"stage1_vqvae.scales.sides": [1, 2, 4]})
    for made, now in ((without, scaled), (scaled, without)):
        prepared = SimpleNamespace(stats=SimpleNamespace(preparation=made.data.preparation()))
        tell_of_edits(prepared, SimpleNamespace(config=made.stage1_vqvae.model()), now)
        assert "stage1_vqvae.scales" in capsys.readouterr().err
