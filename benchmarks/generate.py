"""Whole captioning runs, from pictures on disk to shards on disk.

Usage: `python -m benchmarks.generate --case b32-coco --peer-python PYTHON`. The last line of the output is a JSON
object.

`b32-coco`: `capsmith generate` on a shard of 32 photographs (those of CAPSMITH_DATA, as JPEGs of 640 x 480), five
captions each. The peer is the captioning stage of ml-mobileclip-dr (apple, commit 418551d) on the same shard, with its
reader and writer. Both have the same random weights of coca_ViT-B-32, the limit of 30 tokens, a top-p of 0.9, 16
pictures at a time, and all cores. As in `decoding.py`, our captions end at lengths drawn from COCO's captions, and the
peer does its 30 tokens. Neither time includes loading models, and the peer's does not include starting Ray. `waiting`
is the share of our time in which the model waited for pictures, and `writing` the share spent in the shard's writer.
`tokens` are the quartiles of the lengths of the written captions.

`two-processes`: the command with `--num-processes 2` on two cores with one thread each, compared with the command with
one process on one core. Start-up is subtracted from each time: the time of the same command on pictures that do not
decode, one per shard. `with_start_up` is the ratio without this subtraction.

PYTHON is an interpreter, prepared by hand, that can import `raygen` of that commit and its `scripts/gen.py` as the
module `gen`, with the pinned versions (torch 2.5.1, open_clip_torch 2.31.0, transformers 4.49.0, ray 2.22.0,
webdataset 0.2.111 and the others). It needs an empty module `notary_client.conductor`, which is imported but not used.
Neither is on PyPI.
"""

import argparse
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from PIL import Image, ImageOps

from benchmarks.decoding import CAPTIONS, DATA, PICTURES, coco_lengths, ending_at
from benchmarks.floor import floor_seconds
from benchmarks.side_by_side import Peer, alternate, bandwidth, product_rate
from captioners.coca.captioner import CoCaCaptioner
from captioners.decoding import batch as draw
from captioners.load import load_captioner
from captioners.ranks import Rank
from captioners.weights import DTYPES
from generate.captions import run as engine
from generate.captions.config import GenerateConfig
from generate.captions.run import Captioning
from generate.runs.protocol import Embedded
from imagetext.shards import ShardWriter, read_markers
from imagetext.sources import read_samples

ARCHITECTURE, LIMIT, TOP_P = "coca_ViT-B-32", 30, 0.9
ROUNDS = 2  # a shard has ROUNDS * PICTURES pictures
# For two-processes. The second process begins after the first has loaded its model, so with few shards it would work
# alone at the end.
SHARDS = 4


def photographs(count: int) -> Iterator[dict[str, bytes]]:
    """Yield `count` samples: the photographs of CAPSMITH_DATA, repeated as needed, as JPEGs of 640 x 480."""
    encoded = []
    for path in sorted((DATA / "gbc_wiki/images/wiki").glob("*.jpg")):
        with Image.open(path) as image, io.BytesIO() as file:
            ImageOps.fit(image.convert("RGB"), (640, 480)).save(file, "JPEG", quality=90)
            encoded.append({"jpg": file.getvalue(), "txt": b"a photograph"})
    return itertools.islice(itertools.cycle(encoded), count)


def write_shard(path: Path, samples: Iterable[Mapping[str, bytes]]) -> Path:
    """Write the samples' files, which are given by suffix, into a tar."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, files in enumerate(samples):
            for ending, data in files.items():
                member = tarfile.TarInfo(f"{path.stem}-{number:04}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


class TimedWriter(ShardWriter):
    """A ShardWriter that adds up the seconds spent in it."""

    spent = 0.0

    def __enter__(self):
        return self._timed(super().__enter__)

    def write(self, *record):
        self._timed(super().write, *record)

    def __exit__(self, *raised):
        self._timed(super().__exit__, *raised)

    def _timed(self, function, *arguments):
        start = time.perf_counter()
        result = function(*arguments)
        TimedWriter.spent += time.perf_counter() - start
        return result


def quartiles(captioner: CoCaCaptioner, shard: Path, column: str) -> list[float]:
    """Quartiles of the numbers of tokens, with start and end, of the captions in the column."""
    written = [sample.columns[column] for sample in read_samples(str(shard))[0]]
    counts = [len(captioner.encode_text_ids(caption)) for captions in written for caption in captions]
    if len(counts) != ROUNDS * PICTURES * CAPTIONS:
        raise RuntimeError(f"{shard}: {len(counts)} captions")
    return statistics.quantiles(counts, n=4)


def against_the_peer(folder: Path, model: Path, peer_python: Path, *, repeats: int, device: str, dtype: str) -> dict:
    shard = write_shard(folder / "input/pictures.tar", photographs(ROUNDS * PICTURES))
    config = GenerateConfig(
        input=[str(shard)],
        output=folder / "ours",
        model=str(model),
        column="syn_text_ours",
        device=device,
        dtype=dtype,
        num_captions=CAPTIONS,
        max_length=LIMIT,
        min_length=0,
        top_p=TOP_P,
        batch_size=PICTURES,
        redraws=0,
        on_degenerate="keep",
    )
    work = Captioning(config)
    work.load(device, {})
    captioner = work.columns[0].captioner
    lengths = coco_lengths(captioner, LIMIT)
    draw.choose_next, engine.ShardWriter = ending_at(lengths.to(device)), TimedWriter
    shares = []  # for each run, the shares of its time spent waiting and writing

    def ours() -> None:
        TimedWriter.spent, start = 0.0, time.perf_counter()
        pace = Embedded(Rank()).do(work, read_samples(config.input))
        seconds = time.perf_counter() - start
        shares.append((pace.waited / seconds, TimedWriter.spent / seconds))

    rate, memory = product_rate(DTYPES[dtype], device), bandwidth(device)
    captions = ROUNDS * PICTURES * CAPTIONS
    print(
        f"{ARCHITECTURE}, {ROUNDS * PICTURES} x {CAPTIONS} captions of {lengths.float().mean():.1f} tokens; "
        f"this machine: {rate / 1e9:.0f} GFLOP/s, {memory / 1e9:.1f} GB/s",
        flush=True,
    )
    options = {
        "architecture": ARCHITECTURE,
        "weights": str(model / "open_clip_model.safetensors"),
        "shard": str(shard),
        "output": str(folder / "peer"),
        "captions": CAPTIONS,
        "batch": PICTURES,
        "device": device,
    }
    with Peer(peer_python, "generate_peer.py", **options) as peer:
        print(f"the peer: {peer.ready}", flush=True)
        cost, peer_cost = alternate(ours, peer, repeats, device=device)
    waiting, writing = map(statistics.median, zip(*shares[1::2]))  # every other run only warmed up
    return {
        "ratio": round(peer_cost.seconds / cost.seconds, 2),
        "waiting": round(waiting, 4),
        "writing": round(writing, 4),
        "floor_share": round(ROUNDS * floor_seconds(captioner, lengths, rate, bytes_per_s=memory) / cost.seconds, 3),
        "captions_per_s": round(captions / cost.seconds, 2),
        "peer_captions_per_s": round(captions / peer_cost.seconds, 2),
        "tokens": quartiles(captioner, folder / "ours/pictures.tar", "syn_text_ours"),
        "peer_tokens": quartiles(captioner, folder / "peer/pictures.tar", "syn_text_peer"),
    }


def two_processes(folder: Path, model: Path, repeats: int) -> dict:
    for number in range(SHARDS):
        write_shard(folder / "pictures" / f"{number}.tar", photographs(ROUNDS * PICTURES))
        write_shard(folder / "broken" / f"{number}.tar", [{"jpg": b"no picture"}])
    cores = sorted(os.sched_getaffinity(0))[:2]

    def command(pictures: str, processes: int) -> float:
        output = folder / f"{pictures}-{processes}"
        arguments = {
            "model": model,
            "input": folder / pictures / "*.tar",
            "output": output,
            "num-processes": processes,
            "num-workers": 0,
            "max-length": LIMIT,
            "top-p": TOP_P,
            "batch-size": PICTURES,
            "redraws": 0,
            "on-degenerate": "keep",
            "max-error-rate": 1,
            "device": "cpu",
        }
        flags = [str(part) for name, value in arguments.items() for part in (f"--{name}", value)]
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "capsmith", "generate", *flags, "--overwrite"],
            check=True,
            capture_output=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: os.sched_setaffinity(0, cores[:processes]),
        )
        return time.perf_counter() - start

    times = {run: [] for run in itertools.product(("pictures", "broken"), (1, 2))}
    for turn in range(repeats):
        for run, seconds in times.items():
            seconds.append(command(*run))
        print(
            f"turn {turn + 1} of {repeats}: "
            + ", ".join(f"{name} by {count} {seconds[-1]:.1f} s" for (name, count), seconds in times.items()),
            flush=True,
        )
    one_process, both, start_one, start_two = (statistics.median(seconds) for seconds in times.values())
    hashes = [[marker["sha256"] for marker in read_markers(folder / f"pictures-{count}").values()] for count in (1, 2)]
    captions = SHARDS * ROUNDS * PICTURES * CAPTIONS
    return {
        "ratio": round((one_process - start_one) / (both - start_two), 2),
        "with_start_up": round(one_process / both, 2),
        "captions_per_s": round(captions / (both - start_two), 2),
        "of_one": round(captions / (one_process - start_one), 2),
        "start_up_s": [round(start_one, 1), round(start_two, 1)],
        "same_bytes": hashes[0] == hashes[1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=("b32-coco", "two-processes"), required=True)
    parser.add_argument("--peer-python", type=Path, help="for b32-coco: the interpreter described above")
    parser.add_argument("--repeats", type=int, default=3, help="number of turns")
    parser.add_argument("--device", default="cpu", help="device of b32-coco and its peer: cpu, cuda, …")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="our dtype in b32-coco; the peer uses fp32")
    args = parser.parse_args()
    if args.case == "b32-coco" and not args.peer_python:
        parser.error("--peer-python: b32-coco needs an interpreter that has the peer")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        load_captioner(ARCHITECTURE, from_scratch=True).save(folder / "model", "ours")
        if args.case == "b32-coco":
            result = against_the_peer(
                folder,
                folder / "model",
                args.peer_python,
                repeats=args.repeats,
                device=args.device,
                dtype=args.dtype,
            )
        else:
            result = two_processes(folder, folder / "model", args.repeats)
    print(json.dumps({"case": args.case, **result}))


if __name__ == "__main__":
    main()
