"""A prior draws by no setting that its parameters do not name, or `sample` would not run again when it changes."""

from __future__ import annotations

import pytest
import torch

from sampling.generate import BatchSampler, Streams
from sampling.settings import Settings
from stage2_prior.priors.build import build_prior
from stage2_prior.priors.drawing import Part
from tessera.codes.layout import CodeLayout, Level
from tessera.parameters import validate
from tessera.parameters.parts import options

LAYOUT = CodeLayout((1, 8, 8), (Level(2, 2, 1, 6),))
DECLARED = ("decoding_steps", "choice_temperature", "order")


class Watched(BatchSampler):
    """A sampler that notes which of `DECLARED` a prior asks for."""

    def __getattribute__(self, name: str):
        if name in DECLARED:
            super().__getattribute__("asked").add(name)
        return super().__getattribute__(name)

    def __init__(self) -> None:
        self.asked: set[str] = set()
        streams = Streams(0, (0, 1), torch.device("cpu"))
        super().__init__(streams, Settings(), 1, True, lambda share: None)
        self.asked.clear()


@pytest.mark.parametrize("name", options("stage2_prior.priors"))
@torch.inference_mode()
def test_a_prior_draws_by_the_settings_that_it_names(raw_params, prior_arguments, name):
    raw_params["stage2_prior"] |= {"name": name, "layers": 1, "width": 16, "heads": 2}
    raw_params["sampling"]["guidance_scale"] = 1.0
    chosen = validate(raw_params).stage2_prior.chosen
    prior = build_prior(
        {"name": name, "params": chosen.arguments(), "layout": LAYOUT.to_json(), "num_classes": 3}
    ).eval()
    tokens = torch.zeros(4, LAYOUT.num_tokens, dtype=torch.int64)
    prior.fit([(tokens, torch.arange(4) % 3)])
    sampler = Watched()
    prior.decode(sampler, torch.tensor([0, 1]), tokens[:2, :0], torch.full((2, 4), -1), Part())
    assert sampler.asked == chosen.draws_by()
