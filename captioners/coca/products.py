"""Which library multiplies float32 matrices on a CPU: torch's own, which is usually MKL, or oneDNN.

Which of them is faster depends on the processor, on the number of threads and on the width of the model. So it is
measured with the model's own weights, once on a machine. The result is kept in the user's cache, because the last bits
of a product depend on the library: two runs on a machine use the same one.
"""

import hashlib
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from open_clip.coca_model import CoCa
from torch import Tensor

from captioners.coca import onednn
from captioners.coca.blocks import Linear, Tower

Products = Literal["torch", "onednn"]

ROWS = 80  # rows of a decoding step: 16 pictures with five captions each
BLOCKS = 4  # blocks of the text tower whose products are measured; their weights exceed a core's cache
TURNS = 10  # how often each library is measured, in turns; before that, each warms up
SECONDS = 0.5  # after this time, no further turn is begun
MARGIN = 1.1  # oneDNN is taken if it is faster by this factor, so that noise seldom decides
# What the first lines of /proc/cpuinfo say of a processor's kind, on x86 and on ARM.
KIND = {"model name", "cpu family", "model", "stepping", "flags", "CPU implementer", "CPU part", "Features"}


class Timing(NamedTuple):
    """Milliseconds that the products of a block take with each library on this machine."""

    torch: float
    onednn: float

    @property
    def faster(self) -> Products:
        """The library to use."""
        return "onednn" if MARGIN * self.onednn < self.torch else "torch"


def linear_by(products: Products) -> Linear:
    """Return the linear layer that this library computes."""
    return onednn.linear if products == "onednn" else F.linear


def choose_products(model: CoCa) -> tuple[Products, str]:
    """Return the faster library for a float32 model on this CPU, and the reason in words.

    An earlier measurement is used if processor, version of torch, number of threads and shapes of the weights are the
    same. A cache that cannot be read or written is no error.
    """
    if not torch.backends.mkldnn.is_available():
        return "torch", "this torch has no oneDNN"
    tower: Tower = model.text
    weights = [
        weight
        for block in tower.transformer.resblocks[:BLOCKS]
        for weight in (
            block.attn.in_proj_weight,
            block.attn.out_proj.weight,
            block.mlp.c_fc.weight,
            block.mlp.c_proj.weight,
        )
    ]
    machine = {
        "processor": processor(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "weights": [list(weight.shape) for weight in weights],
    }
    digest = hashlib.sha256(json.dumps(machine).encode()).hexdigest()
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = Path(cache, "capsmith", "products", f"{digest[:16]}.json")
    timing = _read(path) or _keep(path, measure(weights), machine=machine)
    return timing.faster, f"on this machine a block takes {timing.torch:.2g} ms, by oneDNN {timing.onednn:.2g} ms"


@torch.no_grad()
def measure(weights: Sequence[Tensor]) -> Timing:
    """Time products of ROWS rows with the weights by each library; the time of a shape is the shortest of all turns.

    Single products are short, so that some of them are undisturbed even beside other work on the same cores.
    """
    rows = {weight.shape[1]: torch.ones(ROWS, weight.shape[1]) for weight in weights}  # draws no random numbers
    shortest: dict[Products, dict[torch.Size, float]] = {"torch": {}, "onednn": {}}
    start = time.perf_counter()
    for turn in range(1 + TURNS):
        for products, times in shortest.items():
            linear = linear_by(products)
            for weight in weights:
                begun = time.perf_counter()
                linear(rows[weight.shape[1]], weight, None)
                taken = 1000 * (time.perf_counter() - begun)
                times[weight.shape] = taken if turn < 2 else min(taken, times[weight.shape])
        if turn and time.perf_counter() - start > SECONDS:
            break
    return Timing(*(sum(times.values()) for times in shortest.values()))


def processor() -> dict[str, str]:
    """Return what tells this machine's kind of processor: its name, its model and its instruction sets."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:  # not Linux
        return {"name": platform.processor(), "machine": platform.machine()}
    fields = (line.partition(":") for line in first.split("\n"))
    return {name.strip(): value.strip() for name, _, value in fields if name.strip() in KIND}


def _read(path: Path) -> Timing | None:
    """Return the timing in the file, or None if there is none; a damaged file is removed."""
    try:
        record = json.loads(path.read_bytes())
        return Timing(float(record["torch_ms"]), float(record["onednn_ms"]))
    except (KeyError, TypeError, ValueError):
        with suppress(OSError):
            path.unlink()
    except OSError:
        pass
    return None


def _keep(path: Path, timing: Timing, machine: Mapping[str, Any]) -> Timing:
    """Write the timing and return it; if another process was first, return that process's timing."""
    if not path.is_absolute():  # this user has no home
        return timing
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=path.parent, suffix=".capsmith.tmp", encoding="utf-8") as file:
            json.dump({"torch_ms": timing.torch, "onednn_ms": timing.onednn, **machine}, file, indent=1)
            file.flush()
            with suppress(FileExistsError):
                os.link(file.name, path)  # whole at once, and unlike a renaming it replaces nobody's file
    except OSError:
        return timing
    return _read(path) or timing
