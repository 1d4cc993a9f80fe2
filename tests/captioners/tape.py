"""CUDA graphs simulated on a CPU: capturing changes nothing, and a replay runs the same kernels on the same memory."""

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::is_nonzero",
    "aten::equal",
    "aten::unique_consecutive",
    "aten::lift_fresh",
}  # the last is what becomes of a Python number that goes to the device as a tensor


class Tape(TorchDispatchMode):
    """A fake torch.cuda.CUDAGraph that records all operations within it, and undoes their changes at the end."""

    def __init__(self):
        super().__init__()
        self.calls, self.changed, self.replays = [], [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in WAITS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        if func._schema.is_mutable:
            writes = [
                argument.alias_info is not None and argument.alias_info.is_write for argument in func._schema.arguments
            ]
            self.changed += [(each, each.clone()) for each, written in zip(args, writes) if written]
        output = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, output))
        return output

    def __exit__(self, *error):
        super().__exit__(*error)
        for tensor, before in reversed(self.changed):
            tensor.copy_(before)
        self.changed.clear()

    def replay(self):
        self.replays += 1
        for func, args, kwargs, output in self.calls:
            for replayed, recorded in zip(tree_leaves(output), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(replayed, torch.Tensor):
                    replayed.copy_(recorded)


@pytest.fixture
def tapes(monkeypatch) -> list[tuple[Tape, torch.device | None]]:
    """Collects all graphs that are captured from now on, each with the device that was current then."""
    captured, current = [], []

    @contextlib.contextmanager
    def device(tensor):
        current.append(tensor)
        yield
        current.pop()

    def graph(tape, capture_error_mode):
        captured.append((tape, current[-1] if current else None))
        return tape

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Tape)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "device", device)
    return captured
