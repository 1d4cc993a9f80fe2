"""The weights that learn, and what a checkpoint holds of them: the same, whether each process has all of them or a part."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer


def shard(module: nn.Module, device: torch.device) -> list[nn.Parameter]:
    """Leaves each process a part of every weight on its device; returns the weights that learn and stay whole, single numbers.

    What is whole at a time, in the passes, is one element of the module's lists of blocks, and all that is in no list
    (Zhao et al. 2023, arXiv 2304.11277; torch's second implementation).
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    numbers = [weight for weight in module.parameters() if weight.ndim == 0]
    for weight in module.parameters():
        weight.data = weight.data.to(device) if weight.ndim == 0 else weight.data.contiguous()
    blocks = [block for blocks in module.modules() if isinstance(blocks, nn.ModuleList) for block in blocks]
    for part in (*reversed(blocks), module):  # from the inside out
        fully_shard(part, mesh=mesh, ignored_params=set(numbers))
    return [number for number in numbers if number.requires_grad]


class TrainedWeights:
    """The weights of a model that learn, by name, as a part of a checkpoint: whole there, even if each process has a part.

    All processes together take the state, of which the main one gets the tensors.
    """

    def __init__(self, model: nn.Module):
        self.weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}

    def state_dict(self) -> dict[str, Any]:
        return {name: _whole(weight.detach()) for name, weight in self.weights.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(_part(state[name], weight))


class Buffers:
    """What a model keeps and does not learn, the statistics of its batches among it, as a part of a checkpoint."""

    def __init__(self, model: nn.Module):
        self.buffers = dict(model.named_buffers())

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.buffers)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, buffer in self.buffers.items():
            buffer.copy_(state[name])


class AveragedWeights(TrainedWeights):
    """An exponential moving average of weights that learn, from what they are now on."""

    def __init__(self, trained: TrainedWeights, decay: float):
        self.trained, self.decay = trained, decay
        self.weights = {name: weight.detach().clone() for name, weight in trained.weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(
            list(self.weights.values()), list(self.trained.weights.values()), 1 - self.decay
        )  # in few kernels


class OptimizerState:
    """An optimizer's state as a part of a checkpoint, as `TrainedWeights` are."""

    def __init__(self, optimizer: Optimizer):
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        state = self.optimizer.state_dict()
        whole = {
            number: {name: _whole(value) for name, value in values.items()}
            for number, values in state["state"].items()
        }
        return state | {"state": whole}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        parts = {
            number: {name: _part(value, weights[number]) for name, value in values.items()}
            for number, values in state["state"].items()
        }
        self.optimizer.load_state_dict({**state, "state": parts})


def _whole(value: Tensor) -> Tensor | None:
    if not isinstance(value, DTensor):
        return value
    whole = value.full_tensor()  # one at a time: all of them may not fit the device
    return whole.cpu() if torch.distributed.get_rank() == 0 else None


def _part(value: Tensor, weight: Tensor) -> Tensor:
    """This process's part of a value that belongs to a weight, stored in the order that the weight is, as fused steps ask for.

    What has another shape, a count of steps, is as it was.
    """
    if value.shape != weight.shape:
        return value
    if isinstance(weight, DTensor):
        return distribute_tensor(value.contiguous(), weight.device_mesh, weight.placements, src_data_rank=None)
    return torch.empty_like(weight).copy_(value)
