"""Run as a script: disturb runs of all commands by every fault, resume them, and compare them with undisturbed runs.

Faults and moments are drawn from a seed. Moments are counted in steps, batches, pictures and bytes; the undisturbed
run shows how many there are.
"""

import json
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import moments
import runs
import torch
from commands import import_all, make_commands
from faults import COURSES, FAULTS, applies, courses_of, signalling, strike
from moments import Moment

from imagetext.reinforced.embeddings import unpack
from imagetext.shards import SUFFIXES, read_marker
from imagetext.sources import read_records

AGAIN = 0.3  # share of the runs that are disturbed again when they are resumed
BATCHES = ("batch_sizes", "batch_size")  # fields in the marker of a shard that was started again after memory ran out


class Campaign:
    """Runs of all commands in one folder, each on its own small input or on the output of an undisturbed command."""

    def __init__(self, folder: Path):
        self.folder, self.log, self.units = folder, folder / "log", {}
        moments.hit = folder / "hit"
        self.commands = make_commands(folder)

    def undisturbed(self, name: str, format: str) -> Path:
        """The folder of an undisturbed run, which is made if it does not exist yet."""
        output = self.folder / f"{name}-{format}" / "run"
        if (name, format) not in self.units:
            if self.commands[name].reads or "captioned" in " ".join(self.commands[name].flags):
                self.undisturbed("generate", "webdataset")
            self.commands[name].prepare(output)
            start, report = time.monotonic(), self.folder / "report.json"
            if runs.end_of(
                runs.start(self.commands[name].argv(name, format, output), Moment(), self.log, report=report)
            ):
                raise SystemExit(f"the undisturbed run failed: {self.log.read_text()}")
            seconds, report_fields = time.monotonic() - start, json.loads(report.read_text())
            import_all(report_fields["modules"])
            shards = [
                path for path in output.rglob("*") if path.is_file() and path.name.endswith(SUFFIXES.get(format, ""))
            ]
            self.units[name, format] = {
                **report_fields["units"],
                "largest": max(path.stat().st_size for path in shards),
                "seconds": seconds,
            }
            if (name, format) == ("generate", "webdataset"):
                shutil.copytree(output, self.folder / "captioned")
        return output

    def disturb(self, name: str, fault: str, draw: random.Random) -> dict[str, Any]:
        """Disturb a run, perhaps twice, then resume it, and report the result."""
        trial = Trial(self, name, draw)
        if not trial.disturb(fault):
            trial.problems.append("did not strike")
        if draw.random() < AGAIN:
            trial.disturb(draw.choice(self.faults_of(name)))
        trial.fault = "resumed"
        code = trial.run()
        trial.expect(not code, f"exit code {code}")
        wrong = different(files(trial.output) | files(trial.reference), trial.output, trial.reference)
        trial.expect(not wrong, f"different: {wrong}")
        shutil.rmtree(trial.output)
        return {"command": name, "fault": fault, "format": trial.format, "problems": trial.problems}

    def faults_of(self, name: str) -> list[str]:
        command = self.commands[name]
        self.undisturbed(name, command.formats[0])
        units = self.units[name, command.formats[0]]
        return [*(fault for fault in FAULTS if applies(fault, command, units)), *courses_of(name, command)]


class Trial:
    """A command that runs in a folder and is disturbed there, and the problems that were found."""

    def __init__(self, campaign: Campaign, name: str, draw: random.Random):
        self.campaign, self.name, self.draw, self.command = campaign, name, draw, campaign.commands[name]
        self.format = draw.choice(self.command.formats)
        self.reference, self.output = campaign.undisturbed(name, self.format), campaign.folder / "disturbed" / "run"
        self.units, self.problems, self.fault = campaign.units[name, self.format], [], ""
        self.command.prepare(self.output)

    def disturb(self, fault: str) -> bool:
        """Disturb the run by the fault; return whether it struck."""
        moments.hit.unlink(missing_ok=True)
        self.fault = fault
        struck = strike(self, fault) if fault in FAULTS else COURSES[fault](self)
        wrong = different(vouched_for(self.output), self.output, self.reference)
        self.expect(not wrong, f"vouched for and wrong: {wrong}")
        return struck

    def start(self, *flags: str, when: Moment = Moment(), before: Callable[[], None] = lambda: None) -> int:
        return runs.start(
            [*self.command.argv(self.name, self.format, self.output), *flags], when, self.campaign.log, before=before
        )

    def run(self, *flags: str, when: Moment = Moment(), before: Callable[[], None] = lambda: None) -> int:
        return runs.end_of(self.start(*flags, when=when, before=before))

    def moment(self, number: int) -> Moment:
        """A random moment at which the run gets a signal."""
        kind = self.draw.choice([kind for kind in ("step", "batch", "picture", "written") if self.units.get(kind)])
        return Moment(kind, self.draw.randint(1, self.units[kind]), signalling(number))

    @property
    def printed(self) -> str:
        return self.campaign.log.read_text(errors="replace")

    def expect(self, holds: bool, message: str) -> None:
        if not holds:
            self.problems.append(f"{self.fault}: {message}: {self.printed[-2000:]}")

    def files(self) -> dict[str, bytes]:
        return {name: (self.output / name).read_bytes() for name in files(self.output) if name != ".lock"}

    def snapshot(self) -> dict[str, bytes]:
        return {
            **self.files(),
            **{path.name: path.read_bytes() for path in self.command.input.iterdir() if path.is_file()},
        }


# --- comparing files ------------------------------------------------------------------------------------------------


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def vouched_for(folder: Path) -> set[str]:
    markers = [read_marker(folder, path.name.removesuffix(".done.json")) for path in folder.glob("*.done.json")]
    return {marker["file"] for marker in markers if marker}


def different(names: set[str], folder: Path, other: Path) -> list[str]:
    """The names of the files that are not the same in both folders."""
    return [
        name
        for name in sorted(names)
        if not ((folder / name).exists() and (other / name).exists() and same(name, folder, other))
    ]


def same(name: str, folder: Path, other: Path) -> bool:
    """Whether a file has the same bytes in both folders.

    For a shard that was started again with smaller batches: whether it has the same records, up to rounding.
    """
    marker = read_marker(folder, name.removesuffix(".done.json").split(".")[0]) or {}
    smaller = [field for field in BATCHES if field in marker]
    if name.endswith(".done.json") and smaller:
        reference = json.loads((other / name).read_bytes())
        ignored = (*smaller, *(("size", "sha256") if "batch_size" in smaller else ()))
        return {**marker, **{field: None for field in ignored}} == {**reference, **{field: None for field in ignored}}
    if (folder / name).read_bytes() == (other / name).read_bytes():
        return True
    if name.endswith(".pt"):  # compare the content, which may be written in different bytes
        try:
            return equal(*(torch.load(path / name, weights_only=True) for path in (folder, other)))
        except RuntimeError:  # the file is not a checkpoint
            return False
    return (
        "batch_size" in smaller
        and name == marker["file"]
        and all(
            same_record(*pair)
            for pair in zip(*(read_records(str(path / name)) for path in (folder, other)), strict=True)
        )
    )


def equal(value: Any, other: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return torch.equal(value, other)
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(equal(value[name], other[name]) for name in value)
    return (
        len(value) == len(other) and all(map(equal, value, other))
        if isinstance(value, list | tuple)
        else value == other
    )


def same_record(actual: Any, expected: Any) -> bool:
    """Whether records are equal, with embeddings within 1e-5, and apart from the place where they are written."""

    def plain(record):
        members = {name: data for name, data in record.members.items() if name != "npz"}
        meta = {name: value for name, value in record.meta.items() if name != "source"}
        return record.key, record.image, record.captions, members, meta, record.columns, record.scores, record.error

    first, second = (unpack(record.members) for record in (actual, expected))
    return (
        plain(actual) == plain(expected)
        and first.keys() == second.keys()
        and all(
            rows.shape == second[name].shape and torch.allclose(rows, second[name], rtol=0, atol=1e-5)
            for name, rows in first.items()
        )
    )


if __name__ == "__main__":
    folder, seed, counts = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    campaign, names = Campaign(folder), {}
    for name in counts:
        names[name] = campaign.faults_of(name)
        random.Random(f"{seed} {name}").shuffle(names[name])
    draws = sorted((number / count, name, number) for name, count in counts.items() for number in range(count))
    for _, name, number in draws:  # in an order in which a campaign that is cut short has some of all kinds
        fault = names[name][number % len(names[name])]
        print(
            json.dumps({"number": number} | campaign.disturb(name, fault, random.Random(f"{seed} {name} {number}"))),
            flush=True,
        )
