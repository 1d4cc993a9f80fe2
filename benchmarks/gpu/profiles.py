"""Profile sixteen decoding steps: waits of the host, kernels, copies, captures and allocations; profile.txt has it
all.
"""

import cProfile
import io
import pstats
import warnings
from collections import Counter
from collections.abc import Callable, Iterator

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.bench import Bench
from benchmarks.side_by_side import seconds_of
from captioners.base import SamplingConfig

STEPS, SHOWN = 16, 25
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def steps(bench: Bench) -> Iterator[dict]:
    """Profile sixteen steps of the large CoCa in bf16, with many pictures at a time and with few."""
    scale = bench.scale
    captioner = bench.captioner(scale.large, "bf16")
    tokens = scale.tokens if bench.rehearse else STEPS + 2  # without the start token and the last one
    sampling = SamplingConfig(num_captions=scale.captions, top_p=0.9, max_length=tokens, min_length=tokens)
    for flight in scale.flights[:2]:
        captioner.batch_size = flight
        pictures = list(bench.pictures(captioner, flight))

        def work() -> None:
            for _ in captioner.caption(iter(pictures), sampling):
                pass

        for _ in range(2):
            seconds = seconds_of(work, bench.device)
        name = f"{scale.large}, bf16, {flight} pictures, {tokens - 2} steps"
        with open(bench.output / "profile.txt", "a", encoding="utf-8") as file:
            file.write(f"# {name}: {seconds:.4f} s\n\n")
            yield {"case": name, "seconds": seconds, **observed(bench, work, file, count=tokens - 2)}


def observed(bench: Bench, work: Callable[[], None], file: io.TextIOBase, *, count: int) -> dict:
    """Profile a run of `count` steps; return the figures, and write the details to the file."""
    waits = waits_of(bench, work)
    events_before = memory_events(bench)
    work()
    events = memory_events(bench)
    with profile(activities=[ProfilerActivity.CUDA if bench.card else ProfilerActivity.CPU]) as profiler:
        work()
        if bench.card:
            torch.cuda.synchronize()
    averages = profiler.key_averages()
    kernels = (
        [event for event in averages if event.device_type == DeviceType.CUDA]
        if bench.card
        else [event for event in averages if event.key.startswith("aten::")]
    )  # a CPU has operators instead of kernels
    spent = {
        event.key: (event.self_device_time_total if bench.card else event.self_cpu_time_total) / 1e6
        for event in kernels
    }
    calls = Counter(
        {
            event.key: event.count
            for event in averages
            if event.key.startswith("cu") and event.device_type == DeviceType.CPU
        }
    )
    copies = [event for event in kernels if event.key.startswith("Memcpy")]
    host = cProfile.Profile()
    host.runcall(work)
    write(file, kernels, spent, calls=calls, waits=waits, host=host, count=count)
    return {
        "kernels_per_step": sum(event.count for event in kernels) / count,
        "kernel_seconds": sum(spent.values()),
        "waits": sum(waits.values()),
        "wait_calls": sum(calls[name] for name in WAITS),
        "copies": sum(event.count for event in copies),
        "captures": calls["cudaStreamBeginCapture"] + calls["cudaStreamBeginCapture_v10000"],
        "graph_launches": calls["cudaGraphLaunch"],
        "mallocs": events["segment"] - events_before["segment"],
        "allocations": events["allocation"] - events_before["allocation"],
        "top": [
            [name[:100], round(seconds, 5)] for name, seconds in sorted(spent.items(), key=lambda pair: -pair[1])[:8]
        ],
        "waited_at": dict(waits.most_common(12)),
        **({"note": "of a CPU: operators, no waits"} if bench.rehearse else {}),
    }


def waits_of(bench: Bench, work: Callable[[], None]) -> Counter[str]:
    """How often the host waited for the card, by file and line; on a CPU there are no waits."""
    if not bench.card:
        return Counter()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return Counter(
        f"{warning.filename.rpartition('/')[2]}:{warning.lineno}"
        for warning in raised
        if "synchroniz" in str(warning.message)
    )


def memory_events(bench: Bench) -> dict[str, int]:
    """How many blocks and segments (cudaMalloc) the allocator has given out so far."""
    stats = torch.cuda.memory_stats() if bench.card else {}
    return {name: stats.get(f"{name}.all.allocated", 0) for name in ("allocation", "segment")}


def write(
    file: io.TextIOBase,
    kernels: list,
    spent: dict,
    *,
    calls: Counter,
    waits: Counter,
    host: cProfile.Profile,
    count: int,
) -> None:
    """Write the tables of kernels, calls and waits, and the profile of the host."""
    file.write(f"{'seconds':>9} {'count':>7} {'a step':>7}  kernel\n")
    for kernel in sorted(kernels, key=lambda kernel: -spent[kernel.key])[:SHOWN]:
        file.write(f"{spent[kernel.key]:9.5f} {kernel.count:7} {kernel.count / count:7.1f}  {kernel.key[:160]}\n")
    file.write(
        "\ncalls of CUDA: " + (", ".join(f"{name} {times}" for name, times in calls.most_common()) or "none") + "\n"
    )
    file.write(
        "the host waited at: "
        + (", ".join(f"{place} {times}" for place, times in waits.most_common()) or "nowhere")
        + "\n\n"
    )
    with io.StringIO() as text:
        pstats.Stats(host, stream=text).sort_stats("tottime").print_stats(SHOWN)
        file.write(text.getvalue() + "\n")
