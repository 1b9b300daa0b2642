"""The tensors that a training needs to go on as if it had never stopped."""

from __future__ import annotations

import torch
from torch import nn

from tessera.training.groups import TrainedGroup


class RunTensors:
    """The tensors of a training: the weights, the best weights so far, averages, and the optimizers' moments.

    Their names begin with `model.`, `best.`, `average.` and `optimizer.`; a moment is `optimizer.PARAMETER.MOMENT`.
    """

    def __init__(self, model: nn.Module, groups: list[TrainedGroup]) -> None:
        """`model` must be as it is before the training."""
        self.model, self.groups = model, groups
        # Tables of log probabilities have infinities from the start, for codes that cannot occur.
        self._infinite = {name for name, tensor in model.state_dict().items() if bool(tensor.isinf().any())}

    def _averages(self) -> dict[str, torch.Tensor]:
        """The averaged weights of all groups, by the parameters' names."""
        return {name: t for group in self.groups if group.average for name, t in group.average.weights.items()}

    def tensors(self, best: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """All tensors of a saved state by name: weights, the best so far (`best`), averages and optimizer moments."""
        result = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        result |= {f"best.{name}": tensor for name, tensor in best.items()}
        result |= {f"average.{name}": tensor for name, tensor in self._averages().items()}
        # Moments are saved by name: the order of parameters may differ in the code that goes on.
        for group in self.groups:
            for name, parameter in group.parameters.items():
                moments = group.optimizer.state.get(parameter, {})
                result |= {f"optimizer.{name}.{moment}": tensor for moment, tensor in moments.items()}
        return result

    def result(self, best: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of a finished training, which are published: the best weights, and what no group holds."""
        others = {f"model.{name}": t for name, t in self.model.state_dict().items() if name not in best}
        return others | {f"best.{name}": tensor for name, tensor in best.items()}

    def not_finite(self, tensors: dict[str, torch.Tensor]) -> str | None:
        """The name of a tensor with a NaN or an infinity that it did not have from the start, or None."""
        floating = {name: t for name, t in tensors.items() if t.is_floating_point() and t.numel()}
        found = {
            name: tensor.isnan().any() if name.partition(".")[2] in self._infinite else ~tensor.isfinite().all()
            for name, tensor in floating.items()
        }
        on_gpu = [bad for bad in found.values() if bad.is_cuda]
        if on_gpu and not torch.stack(on_gpu).any():  # one wait for the GPU, not one for each tensor
            found = {name: bad for name, bad in found.items() if not bad.is_cuda}
        return next((name for name, bad in found.items() if bad), None)

    def misfit(self, tensors: dict[str, torch.Tensor], finished: bool) -> str | None:
        """The name of a saved tensor that this training lacks, that was not saved, or that has another shape; or None.

        Such a tensor comes from an edit of the code.

        Args:
            finished: whether the tensors are those of `result`.
        """
        model, owned = self.model.state_dict(), {name for group in self.groups for name in group.state}
        if finished:
            wanted = {f"{'best' if name in owned else 'model'}.{name}": tensor.shape for name, tensor in model.items()}
            found = {name: tensor.shape for name, tensor in tensors.items()}
            return next((name for name in sorted({*wanted, *found}) if wanted.get(name) != found.get(name)), None)
        wanted = {f"model.{name}": tensor.shape for name, tensor in model.items()}
        wanted |= {f"best.{name}": tensor.shape for name, tensor in model.items() if name in owned}
        wanted |= {f"average.{name}": tensor.shape for name, tensor in self._averages().items()}
        found = {name: tensor.shape for name, tensor in tensors.items()}
        trained = {f"optimizer.{name}": p.shape for group in self.groups for name, p in group.parameters.items()}
        for name in [name for name in found if name.startswith("optimizer.")]:
            shape, parameter = found.pop(name), name.rpartition(".")[0]
            if parameter not in trained or shape not in ((), trained[parameter]):
                return name
        return next((name for name in sorted({*wanted, *found}) if wanted.get(name) != found.get(name)), None)

    def restore(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Put tensors that fit back where they came from; returns the best weights.

        Of a finished training only what no group holds is put back: the caller puts the best weights into the model.

        Nothing keeps a view of `tensors`, which may be a mapped file: the training deletes it later, and a process on
        another machine that still read it would be killed.
        """

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

        self.model.load_state_dict(part("model."), strict=False)  # `misfit` has compared the names
        averages = self._averages()
        for name, tensor in part("average.").items():
            averages[name].copy_(tensor)
        owners = {name: group for group in self.groups for name in group.parameters}
        for name, tensor in part("optimizer.").items():
            name, _, moment = name.rpartition(".")
            parameter = owners[name].parameters[name]
            # The memory layout is that of an uninterrupted training, where a moment is laid out as its parameter.
            like = parameter if tensor.shape == parameter.shape else tensor
            restored = torch.empty_like(like, device=parameter.device).copy_(tensor)
            owners[name].optimizer.state[parameter][moment] = restored
        return {name: tensor.clone() for name, tensor in part("best.").items()}
