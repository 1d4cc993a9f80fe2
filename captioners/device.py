"""The device that a command computes on: the one that was asked for, or an error before any work."""

import torch


def devices() -> list[str]:
    """The devices that torch can compute on here: the CPU, and each GPU by its number."""
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return ["cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]


def check_device(asked: str | None, local_rank: int = 0) -> str:
    """The device that `--device` names: cpu, cuda:0, …; unless given, a GPU where there is one, else the CPU.

    "cuda" is the GPU of this process, which is number `local_rank` of those on this machine.
    Raises ValueError where there is no such device.
    """
    gpus = torch.cuda.device_count()
    name = asked or ("cuda" if gpus else "cpu")
    device = f"cuda:{local_rank % gpus}" if name == "cuda" and gpus else name
    if device not in devices():
        raise ValueError(f"--device {name!r}: there is no such device; torch finds {', '.join(devices())}")
    return device


def choose_device(asked: str | None, local_rank: int = 0) -> str:
    """As `check_device`; a GPU becomes the current device of this thread, where kernels are launched and graphs captured."""
    device = check_device(asked, local_rank)
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
        torch.backends.cuda.enable_cudnn_sdp(False)  # it builds a plan for each new shape, half a second each
    return device
