"""How many CPU cores are free for this process. This file does not import torch: see `captioners.ranks`."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath


def free_cores(root: Path = Path("/")) -> int:
    """Return how many cores this process may keep busy: those of its affinity, or fewer if a control group limits it.

    A container with `--cpus 2` on a machine of 64 cores sees all of them, and 64 threads would wait for one another.
    root: the folder of /proc and /sys.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, math.ceil(min(_quotas(root), default=usable))))


def _quotas(root: Path) -> Iterator[float]:
    """Yield the limits of cores that this process's control groups have, of version 1 and of version 2."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            folder = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
            files = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
            for path in (PurePosixPath(group), *PurePosixPath(group).parents):
                with suppress(OSError, ValueError):  # in a container, the groups above its own are not visible
                    numbers = " ".join((folder / str(path).lstrip("/") / name).read_text() for name in files)
                    quota, period = numbers.split()
                    if quota not in ("max", "-1"):  # both mean that there is no limit
                        yield int(quota) / int(period)
