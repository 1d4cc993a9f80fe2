"""The trained weights and their form in a checkpoint, which is the same whether or not the weights are sharded."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer


def shard(module: nn.Module, device: torch.device) -> list[nn.Parameter]:
    """Shard the weights of a module among the processes; return the trained weights that stay whole, single numbers.

    During the passes, a block (an element of one of the module's lists) is gathered, used, and freed again. Weights
    outside of lists are gathered together (FSDP, Zhao et al. 2023, arXiv 2304.11277, in torch's second
    implementation).
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    scalars = [weight for weight in module.parameters() if weight.ndim == 0]
    for weight in module.parameters():
        weight.data = weight.data.to(device) if weight.ndim == 0 else weight.data.contiguous()
    blocks = [block for blocks in module.modules() if isinstance(blocks, nn.ModuleList) for block in blocks]
    for part in (*reversed(blocks), module):  # inner modules first
        fully_shard(part, mesh=mesh, ignored_params=set(scalars))
    return [scalar for scalar in scalars if scalar.requires_grad]


class TrainedWeights:
    """The trained weights of a model, by name, as a part of a checkpoint, where they are whole even if sharded here.

    All processes must call `state_dict` together; only the main process gets the tensors of sharded weights.
    """

    def __init__(self, model: nn.Module):
        self.weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}

    def state_dict(self) -> dict[str, Any]:
        return {name: _gather(weight.detach()) for name, weight in self.weights.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(_local_part(state[name], weight))


class Buffers:
    """The buffers of a model, such as batch statistics, as a part of a checkpoint."""

    def __init__(self, model: nn.Module):
        self.buffers = dict(model.named_buffers())

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.buffers)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, buffer in self.buffers.items():
            buffer.copy_(state[name])


class AveragedWeights(TrainedWeights):
    """An exponential moving average of trained weights, which starts from their present values."""

    def __init__(self, trained: TrainedWeights, decay: float):
        self.trained, self.decay = trained, decay
        self.weights = {name: weight.detach().clone() for name, weight in trained.weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        averages: list[Tensor] = list(self.weights.values())
        weights: list[Tensor] = list(self.trained.weights.values())
        torch._foreach_lerp_(averages, weights, 1 - self.decay)  # few kernels for all weights together


class OptimizerState:
    """The state of an optimizer as a part of a checkpoint, where it is whole, as with `TrainedWeights`."""

    def __init__(self, optimizer: Optimizer):
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        state = self.optimizer.state_dict()
        gathered = {
            index: {name: _gather(value) for name, value in values.items()} for index, values in state["state"].items()
        }
        return state | {"state": gathered}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state; raises ValueError for one of an earlier version, whose groups had other weights."""
        sizes, earlier_sizes = (
            [len(group["params"]) for group in groups]
            for groups in (self.optimizer.param_groups, state["param_groups"])
        )
        if sizes != earlier_sizes:
            raise ValueError(
                "the checkpoint is of an earlier version of capsmith, whose weight decay was for other weights; to "
                "train the run's model further, use --model with its folder and another --output"
            )
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        parts = {
            index: {name: _local_part(value, weights[index]) for name, value in values.items()}
            for index, values in state["state"].items()
        }
        self.optimizer.load_state_dict({**state, "state": parts})


def _gather(value: Tensor) -> Tensor | None:
    """Return the whole tensor in main memory, None outside the main process; a tensor that is not sharded as it is."""
    if not isinstance(value, DTensor):
        return value
    gathered = value.full_tensor()  # one tensor at a time, because all of them may not fit on the device
    return gathered.cpu() if torch.distributed.get_rank() == 0 else None


def _local_part(value: Tensor, weight: Tensor) -> Tensor:
    """Return this process's part of a value that belongs to a weight.

    It has the weight's memory layout, which fused optimizer steps require. A value of another shape, such as a count
    of steps, is returned as it is.
    """
    if value.shape != weight.shape:
        return value
    if isinstance(weight, DTensor):
        return distribute_tensor(value.contiguous(), weight.device_mesh, weight.placements, src_data_rank=None)
    return torch.empty_like(weight).copy_(value)
