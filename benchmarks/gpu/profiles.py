"""A profile of sixteen steps of decoding: waits of the host, kernels, copies, captures, allocations. All of it in profile.txt."""

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
    """Sixteen steps of the large CoCa in bf16 with many pictures in flight, and with few."""
    scale = bench.scale
    captioner = bench.captioner(scale.large, "bf16")
    tokens = scale.tokens if bench.rehearse else STEPS + 2  # the start token, and an end token that is not looked for
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
            yield {"case": name, "seconds": seconds, **observed(bench, work, file, tokens - 2)}


def observed(bench: Bench, work: Callable[[], None], file: io.TextIOBase, count: int) -> dict:
    """What was seen of a run of so many steps; the particulars are written into the file."""
    waits = waits_of(bench, work)
    allocated = memory_events(bench)
    work()
    now = memory_events(bench)
    with profile(activities=[ProfilerActivity.CUDA if bench.card else ProfilerActivity.CPU]) as seen:
        work()
        if bench.card:
            torch.cuda.synchronize()
    averages = seen.key_averages()
    kernels = (
        [one for one in averages if one.device_type == DeviceType.CUDA]
        if bench.card
        else [one for one in averages if one.key.startswith("aten::")]
    )  # a CPU has operators in the place of kernels
    spent = {one.key: (one.self_device_time_total if bench.card else one.self_cpu_time_total) / 1e6 for one in kernels}
    calls = Counter(
        {one.key: one.count for one in averages if one.key.startswith("cu") and one.device_type == DeviceType.CPU}
    )
    copies = [one for one in kernels if one.key.startswith("Memcpy")]
    host = cProfile.Profile()
    host.runcall(work)
    write(file, kernels, spent, calls, waits, host, count)
    return {
        "kernels_per_step": sum(one.count for one in kernels) / count,
        "kernel_seconds": sum(spent.values()),
        "waits": sum(waits.values()),
        "wait_calls": sum(calls[name] for name in WAITS),
        "copies": sum(one.count for one in copies),
        "captures": calls["cudaStreamBeginCapture"] + calls["cudaStreamBeginCapture_v10000"],
        "graph_launches": calls["cudaGraphLaunch"],
        "mallocs": now["segment"] - allocated["segment"],
        "allocations": now["allocation"] - allocated["allocation"],
        "top": [
            [name[:100], round(seconds, 5)] for name, seconds in sorted(spent.items(), key=lambda pair: -pair[1])[:8]
        ],
        "waited_at": dict(waits.most_common(12)),
        **({"note": "of a CPU: operators, no waits"} if bench.rehearse else {}),
    }


def waits_of(bench: Bench, work: Callable[[], None]) -> Counter[str]:
    """Where the host waited for the card, by file and line, and how often; a CPU knows no waits."""
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
        f"{one.filename.rpartition('/')[2]}:{one.lineno}" for one in raised if "synchroniz" in str(one.message)
    )


def memory_events(bench: Bench) -> dict[str, int]:
    """Blocks and segments (cudaMalloc) that the allocator has given out so far."""
    stats = torch.cuda.memory_stats() if bench.card else {}
    return {name: stats.get(f"{name}.all.allocated", 0) for name in ("allocation", "segment")}


def write(
    file: io.TextIOBase, kernels: list, spent: dict, calls: Counter, waits: Counter, host: cProfile.Profile, count: int
) -> None:
    file.write(f"{'seconds':>9} {'count':>7} {'a step':>7}  kernel\n")
    for one in sorted(kernels, key=lambda one: -spent[one.key])[:SHOWN]:
        file.write(f"{spent[one.key]:9.5f} {one.count:7} {one.count / count:7.1f}  {one.key[:160]}\n")
    file.write(
        "\ncalls of CUDA: " + (", ".join(f"{name} {times}" for name, times in calls.most_common()) or "none") + "\n"
    )
    file.write(
        "the host waited at: "
        + (", ".join(f"{where} {times}" for where, times in waits.most_common()) or "nowhere")
        + "\n\n"
    )
    with io.StringIO() as text:
        pstats.Stats(host, stream=text).sort_stats("tottime").print_stats(SHOWN)
        file.write(text.getvalue() + "\n")
