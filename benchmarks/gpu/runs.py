"""Whole runs of `capsmith generate`, from tars of JPEGs to tars of records, with the captioner loaded already."""

import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from unittest.mock import patch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.decoding import decode
from captioners.base import SamplingConfig
from captioners.coca.captioner import CoCaCaptioner
from captioners.ranks import Rank
from generate.captions import load as loading
from generate.captions.config import GenerateConfig
from generate.captions.run import Captioning
from generate.runs.protocol import Embedded
from imagetext.sources import read_samples

PROCESSES = 2  # that share the card in `shared_card`


def whole_runs(bench: Bench) -> Iterator[dict]:
    """Captions per second by number of workers, and the share of time the model waited; once with similarities."""
    scale, captioner = bench.scale, warm_captioner(bench)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        yield make_tars(bench, folder)
        for workers, similarity in [*((workers, False) for workers in scale.workers), (scale.workers[0], True)]:
            name = f"{workers} workers{', similarity' if similarity else ''}"
            bench.forget()
            work = loaded(bench, captioner, folder, output=name, num_workers=workers, similarity=similarity)
            yield figures(bench, name, caption(work, Rank())) | {"gigabytes": bench.gigabytes()}


def shared_card(bench: Bench) -> Iterator[dict]:
    """The same by processes that share the card and the workers, from when all have a captioner to the last's end."""
    spawning = multiprocessing.get_context("spawn")
    ready, runs = spawning.Barrier(PROCESSES), spawning.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        make_tars(bench, Path(folder))
        shared = bench.output, bench.rehearse, Path(folder), ready, runs
        processes = [spawning.Process(target=caption_share, args=(number, *shared)) for number in range(PROCESSES)]
        try:
            for process in processes:
                process.start()
            for process in processes:
                process.join()
                if process.exitcode:
                    raise RuntimeError(f"a process ended with {process.exitcode}; log.txt says more")
        finally:
            for process in processes:
                process.kill()
    yield figures(bench, f"{PROCESSES} processes that share the card", *(runs.get() for _ in processes))


def caption_share(
    number: int, output: Path, rehearse: bool, folder: Path, ready: Barrier, runs: "SimpleQueue[tuple]"
) -> None:
    """Caption the share of one process, once all processes have a captioner."""
    bench = Bench(output, rehearse=rehearse)
    workers = bench.scale.workers[0] // PROCESSES
    work = loaded(bench, warm_captioner(bench), folder, output=f"share {number}", num_workers=workers)
    ready.wait()
    runs.put(caption(work, Rank(number, PROCESSES)))


def warm_captioner(bench: Bench) -> CoCaCaptioner:
    """Return the large captioner in bf16, after its first captions."""
    flight, captioner = bench.scale.flights[0], bench.captioner(bench.scale.large, "bf16")
    captioner.batch_size = flight
    decode(bench, captioner, flight, pictures=flight, sampling=sampling_of(bench))
    return captioner


def sampling_of(bench: Bench) -> SamplingConfig:
    tokens = bench.scale.tokens
    return SamplingConfig(num_captions=bench.scale.captions, top_p=0.9, max_length=tokens, min_length=tokens)


def make_tars(bench: Bench, folder: Path) -> dict:
    """Make the input in the folder; return its size."""
    (tars, pictures), (wide, high) = bench.scale.shards, bench.scale.sides
    (folder / "input").mkdir()
    command = [sys.executable, "-m", "benchmarks.gpu.photographs", folder / "input"]
    subprocess.run([*command, *map(str, (tars, pictures, wide, high))], check=True)
    size = sum(path.stat().st_size for path in (folder / "input").iterdir()) / (tars * pictures)
    return {"case": f"{tars} tars of {pictures} JPEGs of {wide} x {high}", "kb_each": size / 1e3}


def loaded(bench: Bench, captioner: CoCaCaptioner, folder: Path, output: str, **settings) -> Captioning:
    """Return the work of captioning the tars with a captioner that is on the card already."""
    config = GenerateConfig(
        input=[str(folder / "input" / "*.tar")],
        output=folder / output,
        model=bench.scale.large,
        column="syn_text_ours",
        device=bench.device,
        redraws=0,
        on_degenerate="keep",
        batch_size=captioner.batch_size,
        **settings,
        **sampling_of(bench).model_dump(exclude_unset=True),
    )
    work = Captioning(config)
    with patch.object(loading, "load_captioner", lambda *_, **__: captioner):
        work.load(bench.device, {})
    return work


def caption(work: Captioning, rank: Rank) -> tuple:
    """Caption a process's share; return when it began and ended, its captions and pictures, and how long it waited."""
    start = time.monotonic()
    pace = Embedded(rank).do(work, rank.share(read_samples(work.config.input)))
    return start, time.monotonic(), pace.captions, pace.pictures, pace.waited


def figures(bench: Bench, name: str, *runs: tuple) -> dict:
    """Return the figures of a whole run from those of its processes. Raises RuntimeError if captions are missing."""
    starts, ends, captions, pictures, waited = zip(*runs, strict=True)
    seconds, expected = max(ends) - min(starts), bench.scale.shards[0] * bench.scale.shards[1]
    if sum(captions) != expected * bench.scale.captions:
        raise RuntimeError(f"{sum(captions)} captions of {expected} pictures were written")
    return {
        "case": f"{bench.scale.large}, bf16, {name}",
        "captions_per_s": sum(captions) / seconds,
        "pictures_per_s": sum(pictures) / seconds,
        "waiting": sum(waited) / seconds / len(runs),
        "seconds": seconds,
    }
