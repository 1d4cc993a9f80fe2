"""Run as a script: disturbs runs in every way of `FAULTS`, resumes them, and compares with a run that was left alone.

Every run is a fork of this process, which starts no thread of its own: a fork of one that has may hang. What happens when is
drawn from a seed; moments are counted in steps, batches, pictures and bytes, and the undisturbed run says how many there are.
"""

import builtins
import errno
import hashlib
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tarfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pandas  # noqa: F401  (pyarrow imports it at first use: here once, instead of in each fork)
import torch
from conftest import FakeCaptioner, jpeg

import generate.captioning
import generate.engine
from captioners.base import Caption, Captioned
from generate.config import GenerateConfig
from imagetext.shards import read_marker

FORMATS = ("webdataset", "jsonl", "parquet")
AGAIN = 0.3  # share of the runs that are disturbed once more when they are resumed
INTERRUPTED = 130


class Captioner(FakeCaptioner):
    """Captions of which about every third draw is cut, so that there is something to draw anew."""

    def caption(self, images, sampling, *, first_index=0, similarity=False):
        images = iter(images)
        while batch := list(islice(images, self.batch_size)):
            reach("batch")
            for key, pixels in batch:
                digest = hashlib.sha256(pixels + key.encode()).digest()
                yield Captioned(key, tuple(Caption(f"picture {digest.hex()[:6]} no. {i}", -i / 3, digest[i] % 3 == 0)
                                           for i in range(first_index, first_index + sampling.num_captions)))


# --- moments ----------------------------------------------------------------------------------------------------------------


class Moment:
    """The `at`th unit of a kind, at which `strike` is called; `units` are those so far, by kind."""

    def __init__(self, kind: str = "", at: int = 0, strike: Callable[[], None] = lambda: None):
        self.kind, self.at, self.strike, self.units = kind, at, strike, Counter()


moment, hit = Moment(), Path()


def reach(kind: str, units: int = 1) -> bool:
    """Counts units; at the moment, the fault strikes, and where it lets the run go on, the answer is True."""
    before = moment.units[kind]
    moment.units[kind] += units
    if kind != moment.kind or not before < moment.at <= before + units:
        return False
    os.close(os.open(hit, os.O_CREAT))
    moment.strike()
    return True


def counted(kind: str, function: Callable) -> Callable:
    def call(*args, **kwargs):
        reach(kind)
        return function(*args, **kwargs)
    return call


class CountedFile:
    """A file that counts the bytes that are read or written; after the moment, reading stops short."""

    def __init__(self, file: Any):
        self._file, self._short = file, False

    def read(self, size: int = -1):
        data = self._file.read(size)
        if not self._short and data and reach("read", len(data)):
            self._short = True
            return data[:len(data) // 2]
        return data[:0] if self._short else data

    def write(self, data):
        reach("written", len(data))
        return self._file.write(data)

    def __getattr__(self, name: str):
        return getattr(self._file, name)

    def __iter__(self):
        return iter(self._file)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()


def count_all(folders: tuple[str, ...]) -> None:
    """From here on, whatever this process does is counted: to files in the folders, in batches, in pictures decoded."""
    whole = builtins.open

    def opened(file, mode="r", *args, **kwargs):
        found = whole(file, mode, *args, **kwargs)
        return CountedFile(found) if str(file).startswith(folders) else found
    builtins.open = io.open = tarfile.bltn_open = opened
    os.replace, os.fsync = counted("step", os.replace), counted("step", os.fsync)
    generate.engine.ShardWriter.write = counted("step", generate.engine.ShardWriter.write)
    generate.captioning.decode_image = counted("picture", generate.captioning.decode_image)


# --- faults -----------------------------------------------------------------------------------------------------------------


def raising(error: BaseException) -> Callable[[], None]:
    def strike():
        raise error
    return strike


def kill_worker() -> None:
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)


def hang() -> None:
    time.sleep(0.05)
    raise TimeoutError(errno.ETIMEDOUT, "the store does not answer")


class Fault(NamedTuple):
    """What happens, at a moment counted in one of these kinds, and the exit codes that it may lead to."""

    strike: Callable[[], None]
    kinds: tuple[str, ...]
    codes: tuple[int, ...]
    workers: int = 0


ANYWHERE = ("step", "batch", "picture", "read", "written")
FAILED = (1,)
FAULTS = {
    "killed": Fault(lambda: os.kill(os.getpid(), signal.SIGKILL), ANYWHERE, (-signal.SIGKILL,)),
    "killed by the clock": Fault(lambda: None, ("seconds",), (-signal.SIGALRM, 0), workers=1),
    "a worker killed": Fault(kill_worker, ("batch",), (1, 0), workers=2),  # 0: it had handed on all it was asked for
    "interrupted": Fault(raising(KeyboardInterrupt()), ANYWHERE, (INTERRUPTED,)),
    "no space left": Fault(raising(OSError(errno.ENOSPC, "No space left on device")), ("written", "step"), FAILED),
    "file size limit": Fault(lambda: None, ("largest",), FAILED),
    "writing fails": Fault(raising(OSError(errno.EIO, "Input/output error")), ("written", "step"), FAILED),
    "reading fails": Fault(raising(OSError(errno.EIO, "Input/output error")), ("read",), (1, 0)),  # 0: a second try may do
    "reading hangs": Fault(hang, ("read",), (1, 0)),
    "reading stops short": Fault(lambda: None, ("read",), (1, 0)),
    "the model raises": Fault(raising(RuntimeError("an illegal instruction")), ("batch",), FAILED),
    "out of memory": Fault(raising(torch.OutOfMemoryError("injected")), ("batch",), (0,)),
    "out of memory decoding": Fault(raising(MemoryError()), ("picture",), FAILED),
    "a shard cut afterwards": Fault(lambda: None, ("size",), (0,)),
    "a marker cut afterwards": Fault(lambda: None, ("size",), (0,)),
}


def make_input(folder: Path) -> str:
    """Three tars of twelve pictures and one that is none; the pattern that names them."""
    folder.mkdir()
    for shard in range(3):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as archive:
            for number in range(13):
                for suffix, data in {"jpg": b"this is no picture" if number == 7 else jpeg(13 * shard + number), "txt": b"original"}.items():
                    member = tarfile.TarInfo(f"{shard}_{number:03d}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return str(folder / "*.tar")


class Campaign:
    """Runs on one input, in one folder."""

    def __init__(self, input: str, folder: Path):
        self.input, self.folder = input, folder
        self.units, self.expected = {}, {}
        for format in FORMATS:
            config = self.config(format, folder / f"undisturbed-{format}")
            start = time.monotonic()
            if run(config, Moment(), report=folder / "units.json"):
                raise SystemExit(f"the undisturbed run failed: {(folder / 'log').read_text()}")
            units = json.loads((folder / "units.json").read_text())
            self.expected[format] = files(config.output)
            largest = max(len(data) for name, data in self.expected[format].items() if name.endswith((".tar", ".jsonl", ".parquet")))
            self.units[format] = {**units, "seconds": time.monotonic() - start, "largest": largest - 1, "size": 0}

    def config(self, format: str, output: Path, workers: int = 0) -> GenerateConfig:
        return GenerateConfig(input=[self.input], model="fake", device="cpu", batch_size=2, format=format, output=output,
                              num_workers=workers, num_captions=3, redraws=2, max_error_rate=1)

    def disturb(self, name: str, draw: random.Random) -> dict[str, Any]:
        """What became of a run that was disturbed, perhaps twice, and then resumed."""
        format, output = draw.choice(FORMATS), self.folder / "disturbed"
        found = {"fault": name, "format": format, "problems": []}
        faults = [name, *([draw.choice(list(FAULTS))] if draw.random() < AGAIN else [])]
        for number, fault in enumerate(faults):
            struck, code = self.strike(fault, format, output, draw)
            if number == 0 and not struck:
                found["problems"].append("did not strike")
            if struck and code not in FAULTS[fault].codes:
                found["problems"].append(f"{fault}: exit code {code}: {(self.folder / 'log').read_text()[-2000:]}")
            found["problems"] += [f"{fault}: {shard} is vouched for and wrong" for shard in self.wrongly_done(format, output)]
        if code := run(self.config(format, output), Moment()):
            found["problems"].append(f"resumed: exit code {code}: {(self.folder / 'log').read_text()[-2000:]}")
        made = files(output)
        found["problems"] += [f"resumed: {name} differs" for name in made | self.expected[format]
                              if plain(name, made) != plain(name, self.expected[format])]
        shutil.rmtree(output)
        return found

    def strike(self, fault: str, format: str, output: Path, draw: random.Random) -> tuple[bool, int]:
        """Whether the fault struck the run, and its exit code."""
        hit.unlink(missing_ok=True)
        strike, kinds, _, workers = FAULTS[fault]
        kind = draw.choice([kind for kind in kinds if self.units[format].get(kind) is not None])
        config = self.config(format, output, workers)
        if kind == "size":
            code = run(config, Moment())
            cut(output, ".done.json" if "marker" in fault else {"webdataset": ".tar"}.get(format, f".{format}"), draw)
            return True, code
        if kind == "seconds":
            code = run(config, Moment(), seconds=draw.uniform(0.01, self.units[format][kind]))
            return True, code
        if kind == "largest":
            code = run(config, Moment(), file_size=draw.randint(1, self.units[format][kind]))
            return code != 0, code
        most = self.units[format][kind] - (8 if workers else 0)  # workers are gone when the last batches come
        code = run(config, Moment(kind, draw.randint(1, most), strike))
        return hit.exists(), code

    def wrongly_done(self, format: str, output: Path) -> list[str]:
        """Shards that have a valid marker and are not what they should be."""
        found = []
        for path in output.glob("*.done.json"):
            marker = read_marker(output, path.name.removesuffix(".done.json"))
            if marker and (output / marker["file"]).read_bytes() != self.expected[format][marker["file"]]:
                found.append(marker["file"])
        return found


def run(config: GenerateConfig, when: Moment, *, report: Path | None = None, seconds: float = 0, file_size: int = 0) -> int:
    """The exit code of a run that is disturbed at the moment, after some seconds, or by a limit on the size of files."""
    global moment
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        log = os.open(hit.with_name("log"), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        moment = when
        generate.engine.load_captioner = lambda *args, **kwargs: Captioner()
        if not config.num_workers:  # else workers, forks of this process, would count, too
            count_all((config.output, os.path.dirname(config.input[0])))
        if file_size:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        if seconds:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        code = generate.engine.run(config)
        if report:
            report.write_text(json.dumps(moment.units))
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def files(folder: str | Path) -> dict[str, bytes]:
    folder = Path(folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def plain(name: str, made: dict[str, bytes]) -> Any:
    """A file's bytes; of a marker, what it says, but not that the shard was begun anew with smaller batches."""
    if not name.endswith(".done.json") or name not in made:
        return made.get(name)
    return {field: value for field, value in json.loads(made[name]).items() if field != "batch_sizes"}


def cut(folder: Path, suffix: str, draw: random.Random) -> None:
    path = draw.choice(sorted(path for path in folder.iterdir() if path.name.endswith(suffix)))
    with open(path, "r+b") as file:
        file.truncate(draw.randrange(path.stat().st_size))


if __name__ == "__main__":
    folder, count, seed, names = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), list(FAULTS)
    hit = folder / "hit"
    campaign = Campaign(make_input(folder / "in"), folder)
    for number in range(count):
        print(json.dumps(campaign.disturb(names[number % len(names)], random.Random(f"{seed} {number}"))), flush=True)
