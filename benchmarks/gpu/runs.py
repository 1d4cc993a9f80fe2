"""Whole runs of `capsmith generate`, from tars of JPEGs to tars of records, with the captioner loaded already."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.decoding import decode
from benchmarks.side_by_side import seconds_of
from captioners.base import SamplingConfig
from captioners.ranks import Rank
from generate.captions import load as loading
from generate.captions.config import GenerateConfig
from generate.captions.run import Captioning
from generate.runs.protocol import Embedded
from imagetext.sources import read_samples


def whole_runs(bench: Bench) -> Iterator[dict]:
    """Captions per second by number of workers, and the share of time the model waited; once with similarities."""
    scale, flight = bench.scale, bench.scale.flights[0]
    captioner = bench.captioner(scale.large, "bf16")
    captioner.batch_size = flight
    tars, pictures = scale.shards
    sampling = SamplingConfig(num_captions=scale.captions, top_p=0.9, max_length=scale.tokens, min_length=scale.tokens)
    decode(bench, captioner, flight, pictures=flight, sampling=sampling)  # warms up
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "input").mkdir()
        subprocess.run(
            [
                sys.executable,
                "-m",
                "benchmarks.gpu.photographs",
                folder / "input",
                *map(str, (tars, pictures, *scale.sides)),
            ],
            check=True,
        )
        size = sum(path.stat().st_size for path in (folder / "input").iterdir()) / (tars * pictures)
        yield {
            "case": f"{tars} tars of {pictures} JPEGs of {scale.sides[0]} x {scale.sides[1]}",
            "kb_each": size / 1e3,
        }
        for workers, similarity in [*((workers, False) for workers in scale.workers), (scale.workers[0], True)]:
            config = GenerateConfig(
                input=[str(folder / "input" / "*.tar")],
                output=folder / f"{workers}-{similarity}",
                model=scale.large,
                column="syn_text_ours",
                device=bench.device,
                redraws=0,
                on_degenerate="keep",
                num_workers=workers,
                similarity=similarity,
                batch_size=flight,
                **sampling.model_dump(exclude_unset=True),
            )
            work = Captioning(config)
            with patch.object(loading, "load_captioner", lambda *_, **__: captioner):  # already built on the card
                work.load(bench.device, {})
            paces = []
            bench.forget()
            seconds = seconds_of(
                lambda: paces.append(Embedded(Rank()).do(work, read_samples(config.input))), bench.device
            )
            if paces[0].captions != tars * pictures * scale.captions:
                raise RuntimeError(f"{paces[0].captions} captions of {tars * pictures} pictures were written")
            yield {
                "case": f"{scale.large}, bf16, {workers} workers{', similarity' if similarity else ''}",
                "captions_per_s": paces[0].captions / seconds,
                "pictures_per_s": paces[0].pictures / seconds,
                "waiting": paces[0].waited / seconds,
                "gigabytes": bench.gigabytes(),
                "seconds": seconds,
            }
