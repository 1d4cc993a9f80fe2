"""The device that a command computes on: the requested one, or an error before any work."""

import torch

from captioners.machine import free_cores


def devices() -> list[str]:
    """The devices that torch can compute on in this process: the CPU, and each GPU by its number."""
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return ["cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]


def check_device(requested: str | None, local_rank: int = 0) -> str:
    """Return the device that `--device` names (cpu, cuda:0, …); by default a GPU if there is one, otherwise the CPU.

    "cuda" means the GPU of this process, chosen by `local_rank`, this process's number on the machine.
    Raises ValueError if there is no such device.
    """
    gpus = torch.cuda.device_count()
    name = requested or ("cuda" if gpus else "cpu")
    device = f"cuda:{local_rank % gpus}" if name == "cuda" and gpus else name
    if device not in devices():
        raise ValueError(f"--device {name!r}: there is no such device; torch finds {', '.join(devices())}")
    return device


def choose_device(requested: str | None, local_rank: int = 0) -> str:
    """Return the device as `check_device` does, and make a GPU this thread's current device.

    Triton launches kernels and torch captures CUDA graphs on the current device. torch gets no more threads than there
    are free cores; by default it counts cores that a container may not use.
    """
    device = check_device(requested, local_rank)
    if (cores := free_cores()) < torch.get_num_threads():
        torch.set_num_threads(cores)
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
        torch.backends.cuda.enable_cudnn_sdp(False)  # cuDNN would spend half a second on a plan for each new shape
    return device
