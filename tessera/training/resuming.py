"""The tensors that a training run needs to go on as if it had never stopped."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from tessera.training.optimizer import WeightAverage


@dataclass(frozen=True)
class RunWeights:
    """What of a run is tensors, by name: `model.*`, `best.*`, `average.*`, and `optimizer.*.MOMENT`."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None

    def tensors(self, best: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """All tensors, with the best weights so far."""
        result = {f"model.{n}": t for n, t in self.model.state_dict().items()}
        result |= {f"best.{n}": t for n, t in best.items()}
        if self.average:
            result |= {f"average.{n}": t for n, t in self.average.weights.items()}
        for name, parameter in self.model.named_parameters():  # by name: their order is an accident of the code
            moments = self.optimizer.state.get(parameter, {})
            result |= {f"optimizer.{name}.{moment}": t for moment, t in moments.items()}
        return result

    def misfit(self, tensors: dict[str, torch.Tensor]) -> str | None:
        """The name of a saved tensor that is missing, too many, or of another shape, as after an edit of the code."""
        model = {name: tensor.shape for name, tensor in self.model.state_dict().items()}
        wanted = {f"{part}.{name}": shape for part in ("model", "best") for name, shape in model.items()}
        if self.average:
            wanted |= {f"average.{name}": tensor.shape for name, tensor in self.average.weights.items()}
        found = {name: tensor.shape for name, tensor in tensors.items()}
        trained = {f"optimizer.{name}": p.shape for name, p in self.model.named_parameters() if p.requires_grad}
        for name in [name for name in found if name.startswith("optimizer.")]:
            shape, parameter = found.pop(name), name.rpartition(".")[0]
            if parameter not in trained or shape not in ((), trained[parameter]):
                return name
        return next((name for name in sorted({*wanted, *found}) if wanted.get(name) != found.get(name)), None)

    def restore(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Put tensors that fit back where they came from; returns the best weights."""

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        if self.average:
            for name, tensor in part("average.").items():
                self.average.weights[name].copy_(tensor)
        parameters = dict(self.model.named_parameters())
        for name, tensor in part("optimizer.").items():
            parameter, moment = parameters[name.rpartition(".")[0]], name.rpartition(".")[2]
            like = parameter if tensor.shape == parameter.shape else tensor  # laid out as in an uninterrupted run
            self.optimizer.state[parameter][moment] = torch.empty_like(like, device=parameter.device).copy_(tensor)
        return part("best.")
