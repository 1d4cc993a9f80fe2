"""`capsmith select`: what is settled over the whole set, then shard by shard what stays; the same command again resumes."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing.synchronize import Event
from typing import Any

from captioners.ranks import Rank
from generate.runs.config import RunConfig
from generate.runs.engines import engine_of
from generate.runs.inputs import hash_of, input_of, lasting
from generate.runs.manifest import (
    ALL_REJECTED,
    DRY_RUN,
    LIMITS,
    REJECTED,
    RULES,
    SELECTION,
    check_own,
    read_run,
    wait_for_run,
)
from generate.runs.processes import launch, own_rank
from generate.runs.protocol import Loaded, Pace, processes_wanted
from generate.runs.start import NAMES_TOLD, begin, prepare
from generate.select.choose import Chosen, choose
from generate.select.config import ORIGINALS, SelectConfig
from generate.select.judge import Judge, look
from generate.select.page import render, told
from generate.select.settle import UNUSABLE, Settled, settle
from imagetext.apart import ANOTHER
from imagetext.columns import TAKEN, is_column
from imagetext.fields import json_object
from imagetext.hashes import sample_hash
from imagetext.lock import FolderLock
from imagetext.outputs import Output, remove, write_file
from imagetext.readers.labels import Labels, read_class_names
from imagetext.sample import Shard
from imagetext.shards import RUN, ShardWriter, read_markers, read_shards
from imagetext.shown import masked, say
from imagetext.sources import read_samples
from imagetext.stores import join, open_file, read_bytes

DAY = 24 * 3600  # seconds that the first of a launcher's processes may take to settle a run
CONFIG = "config.json"  # of a reinforced set: its teachers, which trainers read
DECIDING = (
    set(SelectConfig.model_fields) - set(RunConfig.model_fields) - {"input", "images", "dry_run", "max_error_rate"}
)
REINFORCED = ("embedded_columns", "views", "embeddings", "convert", "text_from_synthetic", "teachers")  # of its run


def run(config: SelectConfig, rank: Rank | None = None, begun: Event | None = None) -> int:
    """Choose from the records of `config.input` into `config.output`, or do this process's share of them.

    `rank` and `begun` come from `launch`, which starts the others once the first has begun the run.
    Returns: 0 done, 1 some shards failed or nothing stays, 3 done but more records are unusable than `max_error_rate` allows.
    Raises: ValueError for a bad input, name or output folder, before anything is written.
    """
    rank = rank or own_rank(config)
    check_own(config.output, "select")  # then not even a lock is written there
    with FolderLock(config.output) as lock:
        return _run(config, rank, begun, lock.job)


def _run(config: SelectConfig, rank: Rank, begun: Event | None, job: str) -> int:
    """The run, of which the folder is locked for this job."""
    if rank.number:
        wait_for_run(config.output, DAY if config.settles else 900)
    names = read_class_names(config.class_names) if config.class_names else None
    labels = Labels(config.label, names) if config.label else None
    shards = read_samples(config.input, config.images, labels=labels, columns=config.table, needs=("captions",))
    if config.dry_run:
        look(shards, config)
        settled = settle(shards, config)
        write_file(join(config.output, DRY_RUN), render(config, *settled))
        say(*told(config, *settled), f"nothing was written but {join(config.output, DRY_RUN)}")
        return 0
    if rank.count == 1 and (processes := processes_wanted(config)) > 1:
        code = launch("select", config, processes, job)
        return code if code == 2 or code and read_run(config.output) is None else finish(config)
    work = Selecting(config, shards)
    with engine_of(config, rank) as engine:
        prepared = prepare(work, engine, shards, rank, begun)
        if prepared.anew:
            remove(join(config.output, CONFIG))
        begin(config.output, prepared, rank, begun)
        engine.do(work, prepared.to_do)
    return finish(config, rank, prepared.shards)


@dataclass
class Selecting:
    """The work of `capsmith select`; all shards are for the process that settles the run over them."""

    config: SelectConfig
    shards: Sequence[Shard]
    settled: Settled = field(default_factory=Settled)
    columns: Sequence[str] = ()
    text_from_synthetic: bool = False
    doing = "selecting"
    unit = "record"
    instead = f"{ANOTHER}: all of the input that stays goes there"

    def load(self, device: str, settled: Mapping[str, Any]) -> Loaded:
        """What the run has settled, or a first pass over all shards; ValueError where these are others than at first."""
        seen = look(self.shards, self.config)
        reinforced, beside = reinforcement(self.shards)
        earlier = settled.get("select") or {"columns": [*filter(_can_be_written, seen)]}
        self.columns = earlier["columns"]
        self.text_from_synthetic = self.config.text_from_synthetic or reinforced.get("text_from_synthetic", False)
        over, lines = inputs_of(self.shards) if self.config.settles else {}, []
        if self.config.settles and earlier.get("over"):
            self.settled = self._settled_before(earlier, over)
        elif self.config.settles:
            self.settled, spread = settle(self.shards, self.config)
            beside |= {LIMITS: self.settled.packed(), SELECTION: render(self.config, self.settled, spread).encode()}
            lines = told(self.config, self.settled, spread)
        now = {
            **self.config.model_dump(mode="json", include=DECIDING),
            "columns": list(self.columns),
            "over": over,
            "threshold": self.settled.threshold and list(self.settled.threshold),
            "limits_sha256": hashlib.sha256(self.settled.packed()).hexdigest() if self.config.settles else "",
        }
        versions = {"capsmith": ".".join(version("capsmith").split(".")[:2])}
        run = {
            "rules": RULES,
            "columns": {},
            "select": now,
            "format": self.config.format,
            **reinforced,
            "versions": versions,
        }
        return Loaded(run, lines, beside)

    def _settled_before(self, earlier: Mapping[str, Any], over: Mapping[str, str]) -> Settled:
        """What stands in the folder, if it is whole and of these inputs; ValueError otherwise."""
        folder = self.config.output
        before = earlier["over"]
        if others := sorted(name for name in before | over if before.get(name) != over.get(name)):
            raise ValueError(
                f"output {folder}: --top and caps were settled over other inputs: {', '.join(others[:NAMES_TOLD])}"
                f"{' and more' * (len(others) > NAMES_TOLD)}; give another folder, or --overwrite to start anew"
            )
        try:
            data = read_bytes(join(folder, LIMITS))
        except FileNotFoundError:
            data = b""
        if hashlib.sha256(data).hexdigest() != earlier["limits_sha256"]:
            raise ValueError(f"{join(folder, LIMITS)}: is not what this run has settled; --overwrite starts anew")
        return Settled.unpacked(data, earlier["threshold"])

    def write(self, shard: Shard, pace: Pace, following: Shard | None = None) -> None:
        """Choose of one shard; what does not stay is listed in a file of its own, before the shard is done."""
        judge, counts, rejected, left_out = Judge(self.config), Counter[str](), Counter[str](), Counter[str]()
        with (
            ShardWriter(
                self.config.output,
                shard.name,
                format=self.config.format,
                columns=self.columns,
                originals=ORIGINALS in self.config.column,
                input=input_of(shard),
            ) as writer,
            closing(Listed(join(self.config.output, shard.name + REJECTED))) as others,
        ):
            for record in shard:
                chosen = choose(record, shard.name, judge, self.settled, text_from_synthetic=self.text_from_synthetic)
                if chosen.record is not None:
                    writer.write(chosen.record, chosen.text)
                else:
                    others.add(record.key, shard.name, chosen)
                    rejected[chosen.kind] += 1
                left_out.update(chosen.left_out)
                counts.update(["read", *["failed_before"] * record.failed_before])
                pace.count(chosen.kind == UNUSABLE)
            others.finish()
            writer.info |= {
                **hash_of(shard),
                "read": counts["read"],
                "failed_before": counts["failed_before"],
                "rejected": dict(sorted(rejected.items())),
                "captions_left_out": dict(sorted(left_out.items())),
            }

    def close(self) -> None:
        pass


class Listed:
    """The records that do not stay, a line each: key, shard, reason."""

    def __init__(self, path: str):
        self.file = Output(path)

    def add(self, key: str, shard: str, chosen: Chosen) -> None:
        line = json.dumps(
            {"key": key, "shard": shard, "kind": chosen.kind, "reason": masked(chosen.reason)}, ensure_ascii=False
        )
        self.file.write(line.encode("utf-8", "replace") + b"\n")

    def finish(self) -> None:
        self.file.finish()
        self.file.commit()

    def close(self) -> None:
        self.file.discard()


def _can_be_written(column: str) -> bool:
    return is_column(column) and not any(part in column for part in TAKEN)


def inputs_of(shards: Sequence[Shard]) -> dict[str, str]:
    """By shard, a hash of the size and a sample of the bytes of its input, wherever that lies."""
    samples = {path: sample_hash(path) for path in {shard.path for shard in shards}}
    return {
        shard.name: hashlib.sha256(
            json.dumps([lasting(shard.stamp), samples[shard.path]], sort_keys=True).encode()
        ).hexdigest()[:16]
        for shard in shards
    }


def reinforcement(shards: Sequence[Shard]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What the runs beside the shards say of views and embeddings, and their `config.json`, which the records are read by.

    Raises: ValueError where the shards of several folders are reinforced by others.
    """
    found: dict[str, tuple[dict[str, Any], bytes | None]] = {}
    for folder in dict.fromkeys(os.path.dirname(shard.path) for shard in shards if shard.stamp):
        try:
            run = json_object(read_bytes(join(folder, RUN)))["fingerprint"]
            of_run = {name: run[name] for name in REINFORCED if name in run} if "embedded_columns" in run else {}
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            of_run = {}
        try:
            config = read_bytes(join(folder, CONFIG))
            config = config if json_object(config).get("teachers") is not None else None
        except (FileNotFoundError, ValueError):
            config = None
        found[folder] = of_run, config
    (first, of_first), *others = found.items() or [("", ({}, None))]
    if differing := [folder for folder, of in others if of != of_first]:
        raise ValueError(
            f"--input: {differing[0]} and {first} are reinforced by others; choose from one of them at a time"
        )
    run, config = of_first
    return run, {} if config is None else {CONFIG: config}


def finish(config: SelectConfig, rank: Rank = Rank(), shards: Sequence[Shard] = ()) -> int:
    """Print what stays, or of several processes what this one's shards hold; list the rest where all are done; the exit code."""
    there = read_markers(config.output)
    markers = {name: there.get(name) for name in read_shards(config.output) or ()}
    own = list(markers) if rank.count == 1 else [shard.name for shard in rank.share(shards)]
    missing = [name for name in own if markers[name] is None]
    done = [marker for name in own if (marker := markers[name])]
    counts = {name: sum(marker[name] for marker in done) for name in ("rows", "read", "failed_before")}
    rejected, left_out = (
        sum((Counter(one[name]) for one in done), Counter[str]()) for name in ("rejected", "captions_left_out")
    )
    say(
        f"{config.output}: {counts['rows']:,} of {counts['read']:,} records stay, in {len(done):,} {config.format} shards"
    )
    say(*(f"  {count:,} records do not: {kind}" for kind, count in rejected.most_common()))
    say(*(f"  {count:,} captions do not: {kind}" for kind, count in left_out.most_common()))
    if None not in markers.values():
        list_rejected(config.output, list(markers))
        if rejected:
            say(f"each with its reason: {join(config.output, ALL_REJECTED)}")
    if missing:
        say(f"{len(missing)} of {len(own)} shards failed: {', '.join(missing)}; the same command tries them again")
        return 1
    rate = (rejected[UNUSABLE] - counts["failed_before"]) / max(1, counts["read"] - counts["failed_before"])
    if rate > config.max_error_rate:
        say(f"{rate:.1%} of the records cannot be used, more than --max-error-rate {config.max_error_rate:.1%}")
        return 3
    return 0 if counts["rows"] or rank.count > 1 else 1


def list_rejected(folder: str, names: Sequence[str]) -> None:
    """Write rejected.jsonl of what the shards' own lists hold, in their order."""
    with closing(Listed(join(folder, ALL_REJECTED))) as whole:
        for name in names:
            with open_file(join(folder, name + REJECTED)) as part:
                while data := part.read(1 << 20):
                    whole.file.write(data)
        whole.finish()
