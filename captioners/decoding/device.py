"""Work of a device that the host does not wait for: CUDA graphs, and copies between host and device.

Dimensions: M pictures.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


class Graphed:
    """Runs a function of tensors, without a result, as one CUDA graph on a GPU.

    The first call runs the function without a graph, because it may initialise libraries, which a capture must not,
    and then captures the graph. Later calls, with the same function, launch the graph and do not wait.

    The function is not kept. If it is a method of the object that has this one, each would keep the other, and their
    memory would stay in use until Python looks for such cycles.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: tuple[Tensor, ...] = ()  # the tensors that the graph reads

    def __call__(self, function: Callable[..., None], *inputs: Tensor) -> None:
        if self.device.type != "cuda":
            return function(*inputs)
        with torch.cuda.device(self.device):  # a graph is captured on a stream of the current device
            if self.graph is None or any(
                target.shape != source.shape or target.dtype != source.dtype
                for target, source in zip(self.inputs, inputs)
            ):
                self._capture(function, inputs)
                return
            for target, source in zip(self.inputs, inputs, strict=True):
                target.copy_(source)
            self.graph.replay()

    def _capture(self, function: Callable[..., None], inputs: tuple[Tensor, ...]) -> None:
        """Run the function once with these inputs, and capture its graph."""
        self.inputs = tuple(tensor.clone() for tensor in inputs)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function(*self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # other threads may pin memory
            function(*self.inputs)


class Fetched:
    """Copies of tensors to the host that may still be under way."""

    def __init__(self, *tensors: Tensor):
        self.event = None
        self.tensors = tensors
        if tensors[0].is_cuda:
            self.tensors = [
                torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
                for tensor in tensors
            ]
            self.event = torch.cuda.Event()
            self.event.record(torch.cuda.current_stream(tensors[0].device))

    def is_ready(self) -> bool:
        """Whether `get` would not wait."""
        return self.event is None or self.event.query()

    def get(self) -> Sequence[Tensor]:
        """Wait until the tensors are on the host; return them."""
        if self.event is not None:
            self.event.synchronize()
        return self.tensors


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the host to the device, without waiting for a GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def stack(pictures: Sequence[Tensor], device: torch.device) -> Tensor:
    """Stack pictures (3, H, W) into one tensor (M, 3, H, W) on the device, without waiting for a GPU."""
    stacked = torch.empty(
        (len(pictures), *pictures[0].shape), dtype=pictures[0].dtype, pin_memory=device.type == "cuda"
    )
    # by numpy, because torch's threads would wait for cores that prepare the next pictures
    np.stack([picture.numpy() for picture in pictures], out=stacked.numpy())
    return stacked.to(device, non_blocking=True)
