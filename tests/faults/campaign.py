"""Run as a script: disturbs runs of both commands in every way of `FAULTS`, resumes them, and compares with undisturbed ones.

Every run is a fork of this process, which starts no thread of its own: a fork of one that has may hang. What happens when is
drawn from a seed; moments are counted in steps, batches, pictures and bytes, and the undisturbed run says how many there are.
"""

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
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import moments
import pandas  # noqa: F401  (pyarrow imports it at first use: here once, instead of in each fork)
import torch
from conftest import FakeCaptioner, jpeg
from moments import Moment, count_all, reach

import generate.engine
import generate.reinforce
import generate.reinforcing
from captioners.base import Caption, Captioned
from generate.config import GenerateConfig
from generate.reinforce_config import ReinforceConfig
from generate.teachers import Teacher
from imagetext.embeddings import unpack
from imagetext.shards import SUFFIXES, read_marker
from imagetext.sources import read_records

AGAIN = 0.3  # share of the runs that are disturbed once more when they are resumed
INTERRUPTED = 130
BATCHES = ("batch_sizes", "batch_size")  # in the marker of a shard that was begun anew, out of memory


class Captioner(FakeCaptioner):
    """Captions of which about every third draw is cut, so that there is something to draw anew."""

    def caption(self, images, sampling, *, column="", first_index=0, similarity=False, batch_size=None):
        images = iter(images)
        while batch := list(islice(images, batch_size or self.batch_size)):
            reach("batch")
            for key, pixels in batch:
                digest = hashlib.sha256(pixels.numpy().tobytes() + key.encode()).digest()
                yield Captioned(key, tuple(Caption(f"picture {digest.hex()[:6]} no. {i}", -i / 3, digest[i] % 3 == 0)
                                           for i in range(first_index, first_index + sampling.num_captions)))


class RandomTeacher(Teacher):
    """Products with random weights, and the batch's size in the last bits, as rounding puts it there."""

    def _encode_views(self, views):
        return self._encode(views.flatten(1) / 255)

    def _encode_texts(self, texts):
        return self._encode(torch.stack([torch.bincount(torch.tensor(list(text.encode())), minlength=256) for text in texts]).float())

    def _encode(self, rows):
        reach("batch")
        weights = torch.randn(rows.shape[1], self.dimension, generator=torch.Generator().manual_seed(0))
        return rows @ weights + 1e-5 * len(rows)


COMMANDS = {
    "generate": (generate.engine.run, GenerateConfig, {"model": "fake", "batch_size": 2, "num_captions": 3, "redraws": 2}),
    "reinforce": (generate.reinforce.run, ReinforceConfig, {"teacher": ["random"], "batch_size": 8, "views": 2}),
}
generate.engine.load_captioner = lambda *args, **kwargs: Captioner()
generate.reinforce.load_teachers = lambda *args, **kwargs: [
    RandomTeacher("random", torch.nn.Identity(), None, (16, 16), (0.5,) * 3, (0.5,) * 3, 8, 100.0, None, "0" * 64)]
generate.reinforcing.GROUP = 4  # several in a shard


# --- faults -----------------------------------------------------------------------------------------------------------------


def raising(error: BaseException) -> Callable[[], None]:
    def strike():
        raise error
    return strike


def kill_worker() -> None:
    if workers := multiprocessing.active_children():
        os.kill(workers[0].pid, signal.SIGKILL)
    else:  # those of this shard have ended
        moments.moment.at += 1
        moments.hit.unlink()


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
    """Runs of both commands, `reinforce` on what an undisturbed `generate` wrote, in one folder."""

    def __init__(self, input: str, folder: Path):
        self.folder, self.units = folder, {}
        self.inputs = {"generate": input, "reinforce": str(self.undisturbed("generate", "webdataset") / "*.tar")}
        for command in COMMANDS:
            for format in SUFFIXES:
                config = self.config(command, format, self.undisturbed(command, format))
                start = time.monotonic()
                if run(config, Moment(), report=folder / "units.json"):
                    raise SystemExit(f"the undisturbed run failed: {(folder / 'log').read_text()}")
                largest = max(path.stat().st_size for path in Path(config.output).glob(f"*{SUFFIXES[format]}"))
                seconds = time.monotonic() - start
                units = json.loads((folder / "units.json").read_text())
                self.units[command, format] = {**units, "largest": largest - 1, "size": 0, "seconds": seconds}

    def undisturbed(self, command: str, format: str) -> Path:
        return self.folder / f"{command}-{format}"

    def config(self, command: str, format: str, output: Path, workers: int = 0) -> GenerateConfig | ReinforceConfig:
        _, config, asked = COMMANDS[command]
        return config(**asked, input=[self.inputs[command]], device="cpu", format=format, output=output, num_workers=workers,
                      max_error_rate=1)

    def disturb(self, command: str, name: str, draw: random.Random) -> dict[str, Any]:
        """What became of a run that was disturbed, perhaps twice, and then resumed."""
        format, output = draw.choice(list(SUFFIXES)), self.folder / "disturbed"
        found = {"command": command, "fault": name, "format": format, "problems": []}
        faults = [name, *([draw.choice(list(FAULTS))] if draw.random() < AGAIN else [])]
        for number, fault in enumerate(faults):
            struck, code = self.strike(command, fault, format, output, draw)
            if number == 0 and not struck:
                found["problems"].append("did not strike")
            if struck and code not in FAULTS[fault].codes:
                found["problems"].append(f"{fault}: exit code {code}: {(self.folder / 'log').read_text()[-2000:]}")
            found["problems"] += [f"{fault}: {shard} is vouched for and wrong" for shard in
                                  different(vouched_for(output), output, self.undisturbed(command, format))]
        if code := run(self.config(command, format, output), Moment()):
            found["problems"].append(f"resumed: exit code {code}: {(self.folder / 'log').read_text()[-2000:]}")
        names = files(output) | files(self.undisturbed(command, format))
        found["problems"] += [f"resumed: {name} differs" for name in different(names, output, self.undisturbed(command, format))]
        shutil.rmtree(output)
        return found

    def strike(self, command: str, fault: str, format: str, output: Path, draw: random.Random) -> tuple[bool, int]:
        """Whether the fault struck the run, and its exit code."""
        moments.hit.unlink(missing_ok=True)
        strike, kinds, _, workers = FAULTS[fault]
        units = self.units[command, format]
        kind = draw.choice([kind for kind in kinds if units.get(kind) is not None])
        config = self.config(command, format, output, workers)
        if kind == "size":
            code = run(config, Moment())
            cut(output, ".done.json" if "marker" in fault else SUFFIXES[format], draw)
            return True, code
        if kind == "seconds":
            code = run(config, Moment(), seconds=draw.uniform(0.01, units[kind]))
            return True, code
        if kind == "largest":
            code = run(config, Moment(), file_size=draw.randint(1, units[kind]))
            return code != 0, code
        most = units[kind] - (8 if workers else 0)  # workers are gone when the last batches come
        code = run(config, Moment(kind, draw.randint(1, most), strike))
        return moments.hit.exists(), code


def run(config: GenerateConfig | ReinforceConfig, when: Moment, *, report: Path | None = None, seconds: float = 0,
        file_size: int = 0) -> int:
    """The exit code of a run that is disturbed at the moment, after some seconds, or by a limit on the size of files."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        log = os.open(moments.hit.with_name("log"), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        moments.moment = when
        if not config.num_workers:  # else workers, forks of this process, would count, too
            count_all((config.output, os.path.dirname(config.input[0])))
        if file_size:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        if seconds:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        code = (generate.engine if isinstance(config, GenerateConfig) else generate.reinforce).run(config)
        if report:
            report.write_text(json.dumps(when.units))
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def cut(folder: Path, suffix: str, draw: random.Random) -> None:
    path = draw.choice(sorted(path for path in folder.iterdir() if path.name.endswith(suffix)))
    with open(path, "r+b") as file:
        file.truncate(draw.randrange(path.stat().st_size))


# --- what is the same -------------------------------------------------------------------------------------------------------


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def vouched_for(folder: Path) -> set[str]:
    markers = [read_marker(folder, path.name.removesuffix(".done.json")) for path in folder.glob("*.done.json")]
    return {marker["file"] for marker in markers if marker}


def different(names: set[str], folder: Path, other: Path) -> list[str]:
    """Which of the files are not the same in both folders."""
    return [name for name in sorted(names) if not ((folder / name).exists() and (other / name).exists() and same(name, folder, other))]


def same(name: str, folder: Path, other: Path) -> bool:
    """Whether a file has the same bytes; of a shard begun anew with smaller batches, the same records, as near as products are."""
    marker = read_marker(folder, name.removesuffix(".done.json").split(".")[0]) or {}
    smaller = [field for field in BATCHES if field in marker]
    if name.endswith(".done.json") and smaller:
        known = json.loads((other / name).read_bytes())
        ignored = (*smaller, *(("size", "sha256") if "batch_size" in smaller else ()))
        return {**marker, **{field: None for field in ignored}} == {**known, **{field: None for field in ignored}}
    if (folder / name).read_bytes() == (other / name).read_bytes():
        return True
    return "batch_size" in smaller and name == marker["file"] and all(
        same_record(*pair) for pair in zip(*(read_records(str(path / name)) for path in (folder, other)), strict=True))


def same_record(one: Any, two: Any) -> bool:
    """Whether records are equal, but embeddings to 1e-5, and where they are written."""
    def plain(record):
        members = {name: data for name, data in record.members.items() if name != "npz"}
        meta = {name: value for name, value in record.meta.items() if name != "source"}
        return record.key, record.image, record.captions, members, meta, record.columns, record.scores, record.error
    first, second = (unpack(record.members) for record in (one, two))
    return plain(one) == plain(two) and first.keys() == second.keys() and all(
        rows.shape == second[name].shape and torch.allclose(rows, second[name], rtol=0, atol=1e-5) for name, rows in first.items())


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, seed, counts = Path(sys.argv[1]), int(sys.argv[2]), {"generate": int(sys.argv[3]), "reinforce": int(sys.argv[4])}
    moments.hit = folder / "hit"
    campaign = Campaign(make_input(folder / "in"), folder)
    for command, count in counts.items():
        names = list(FAULTS)
        random.Random(f"{seed} {command}").shuffle(names)
        for number in range(count):
            draw = random.Random(f"{seed} {command} {number}")
            print(json.dumps(campaign.disturb(command, names[number % len(names)], draw)), flush=True)
