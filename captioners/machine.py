"""What the machine has for this process: free cores and memory, and what compiles kernels for a GPU.

This file does not import torch: see `captioners.ranks`.
"""

import importlib.util
import math
import os
import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

import psutil


def free_cores(root: Path = Path("/")) -> int:
    """Return how many cores this process may keep busy: those of its affinity, or fewer if a control group limits it.

    A container with `--cpus 2` on a machine of 64 cores sees all of them, and 64 threads would wait for one another.
    root: the folder of /proc and /sys.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, math.ceil(min(_quotas(root), default=usable))))


def free_memory(root: Path = Path("/")) -> int:
    """Return the bytes that this process can still use: those of the machine, or what a control group leaves of them.

    A container with `--memory 4g` sees the whole memory of its machine, and is killed where it uses more than 4 GB.
    root: the folder of /proc and /sys.
    """
    return max(0, min([psutil.virtual_memory().available, *_remaining_bytes(root)]))


def triton_lacks() -> str:
    """Return what Triton lacks here to compile kernels; "" if it can. It compiles and links C for each kernel."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "there is no C compiler such as gcc"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python's headers are missing (the package python3-dev)"
    return ""


def _quotas(root: Path) -> Iterator[float]:
    """Yield the limits of cores that this process's control groups have."""
    for folder, is_first_version in _control_groups(root, "cpu"):
        files = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if is_first_version else ("cpu.max",)
        with suppress(OSError, ValueError):
            quota, period = " ".join((folder / name).read_text() for name in files).split()
            if quota not in ("max", "-1"):  # both mean that there is no limit
                yield int(quota) / int(period)


def _remaining_bytes(root: Path) -> Iterator[int]:
    """Yield what is left of the memory that this process's control groups may use; cached files count as left."""
    for folder, is_first_version in _control_groups(root, "memory"):
        limit, usage = ("limit_in_bytes", "usage_in_bytes") if is_first_version else ("max", "current")
        cached = "total_inactive_file" if is_first_version else "inactive_file"
        with suppress(OSError, ValueError, KeyError):  # a ValueError where the limit is `max`
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            most, used = (int((folder / f"memory.{name}").read_text()) for name in (limit, usage))
            yield most - used + int(statistics[cached])


def _control_groups(root: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """Yield the folders of this process's control groups for a resource, and whether they are of version 1."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            folder = root / "sys/fs/cgroup" / (controller if controllers else "")
            for path in (PurePosixPath(group), *PurePosixPath(group).parents):  # in a container, not all are visible
                yield folder / str(path).lstrip("/"), bool(controllers)
