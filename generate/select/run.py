"""`capsmith select`: settles limits over the whole set, then chooses shard by shard; the same command resumes."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from captioners.ranks import Rank
from generate.runs.config import RunConfig
from generate.runs.engines import engine_of
from generate.runs.failures import say_missing
from generate.runs.inputs import hash_of, input_of, lasting
from generate.runs.manifest import (
    ALL_REJECTED,
    CONFIG,
    DRY_RUN,
    LIMITS,
    REJECTED,
    RULES,
    SELECTION,
    check_own,
    minor_versions,
    read_own_markers,
    read_run,
    wait_for_run,
)
from generate.runs.processes import launch, own_rank
from generate.runs.protocol import Loaded, Pace, processes_wanted
from generate.runs.set_card import write_set_card
from generate.runs.start import begin, first_names, prepare
from generate.select.choose import Chosen, choose
from generate.select.config import ORIGINALS, SelectConfig
from generate.select.judge import Judge, check_first_records
from generate.select.page import render, summary
from generate.select.settle import UNUSABLE, Selection, SettledLimits, read_selection, settle
from imagetext.apart import ANOTHER
from imagetext.columns import can_be_written
from imagetext.fields import json_object
from imagetext.hashes import sample_hash
from imagetext.lock import FolderLock
from imagetext.outputs import Output, remove, write_file
from imagetext.readers.labels import Labels, read_class_names
from imagetext.sample import Shard
from imagetext.shards import RUN, ShardWriter, read_shards
from imagetext.shown import counted, masked, say
from imagetext.sources import check_table_flags, read_samples
from imagetext.stores import join, open_file, read_bytes

DAY = 24 * 3600  # seconds that the first of a launcher's processes may take to settle a run
# The settings that decide which records are kept.
DECIDING = (
    set(SelectConfig.model_fields) - set(RunConfig.model_fields) - {"input", "images", "dry_run", "max_error_rate"}
)
# Fields of a reinforced set's fingerprint that a selection from it keeps.
REINFORCED = ("embedded_columns", "views", "embeddings", "convert", "text_from_synthetic", "teachers")


def run(config: SelectConfig, rank: Rank | None = None, on_begun: Callable[[], None] | None = None) -> int:
    """Choose from the records of `config.input` into `config.output`, or do this process's share of them.

    `rank` and `on_begun` come from `launch`, which starts the other processes once the first has begun the run.
    Returns: 0 done, 1 some shards failed or nothing is kept, 3 done but more records are unusable than
    `max_error_rate` allows.
    Raises: ValueError for a bad input, name or output folder, before anything is written.
    """
    rank = rank or own_rank(config)
    if rank.number:
        wait_for_run(config.output, DAY if config.settles else 900)
    check_own(config.output, "select")  # before the lock, so that nothing is written to another command's folder
    with FolderLock(config.output) as lock:
        return _run(config, rank, on_begun, job=lock.job)


def _run(config: SelectConfig, rank: Rank, on_begun: Callable[[], None] | None, *, job: str) -> int:
    """Do the run. job: the job that has locked the output folder."""
    names = read_class_names(config.class_names) if config.class_names else None
    labels = Labels(config.label, names) if config.label else None
    shards = read_samples(config.input, config.images, labels=labels, columns=config.table, needs=("captions",))
    check_table_flags(shards, config.table)
    if config.dry_run:
        check_first_records(shards, config)
        settled, histogram = settle(shards, config)
        write_file(join(config.output, DRY_RUN), render(config, settled, histogram))
        say(*summary(config, settled, histogram), f"nothing was written but {join(config.output, DRY_RUN)}")
        return 0
    if rank.count == 1 and (processes := processes_wanted(config)) > 1:
        code = launch("select", config, processes, job=job)
        was_never_begun = code and read_run(config.output) is None
        return code if code == 2 or was_never_begun else finish(config)
    work = Selecting(config, shards)
    with engine_of(config, rank) as engine:
        prepared = prepare(work, engine, shards, rank=rank, on_begun=on_begun)
        if prepared.anew:
            remove(join(config.output, CONFIG))
        begin(config.output, prepared, rank, on_begun=on_begun)
        engine.do(work, prepared.to_do)
    return finish(config, rank, prepared.shards)


@dataclass
class Selecting:
    """The work of `capsmith select`, as `generate.runs.protocol.Work` describes it.

    shards: all shards of the input; the process that settles the limits reads them all.
    columns: names of the columns that the output may have.
    """

    config: SelectConfig
    shards: Sequence[Shard]
    settled: SettledLimits = field(default_factory=SettledLimits)
    columns: Sequence[str] = ()
    text_from_synthetic: bool = False
    doing = "selecting"
    unit = "record"
    instead = f"{ANOTHER}: everything of the input that is kept is written there"

    def load(self, device: str, settled: Mapping[str, Any]) -> Loaded:
        """Read what the run has settled, or settle it in a first pass over all shards.

        Raises: ValueError where the inputs are not those that the limits were settled over.
        """
        columns_in_input = check_first_records(self.shards, self.config)
        reinforced, beside = reinforcement(self.shards)
        where = f"output {self.config.output}: its {RUN} is not one of ours"
        earlier = read_selection(settled["select"], where) if settled else None
        self.columns = earlier.columns if earlier else [*filter(can_be_written, columns_in_input)]
        self.text_from_synthetic = self.config.text_from_synthetic or reinforced.get("text_from_synthetic", False)
        inputs, lines, limits = {}, [], b""
        if self.config.settles:
            inputs = inputs_of(self.shards)
            if earlier and earlier.over:
                self.settled = self._read_settled(earlier, inputs)
                limits = self.settled.packed()
            else:
                self.settled, histogram = settle(self.shards, self.config)
                limits = self.settled.packed()
                page = render(self.config, self.settled, histogram)
                beside |= {LIMITS: limits, SELECTION: page.encode()}
                lines = summary(self.config, self.settled, histogram)
        selection = {
            **self.config.model_dump(mode="json", include=DECIDING),
            "columns": list(self.columns),
            "over": inputs,
            "threshold": self.settled.threshold and list(self.settled.threshold),
            "limits_sha256": hashlib.sha256(limits).hexdigest() if limits else "",
        }
        fingerprint = {
            "rules": RULES,
            "columns": {},
            "select": selection,
            "format": self.config.format,
            **reinforced,
            "versions": minor_versions("capsmith"),
        }
        return Loaded(fingerprint, lines, beside)

    def _read_settled(self, earlier: Selection, inputs: Mapping[str, str]) -> SettledLimits:
        """Return the limits that are in the output folder.

        inputs: the present ones, as `inputs_of` gives them.
        Raises: ValueError where the limits were settled over other inputs, or their file has changed.
        """
        folder = self.config.output
        earlier_inputs = earlier.over
        names = sorted({*earlier_inputs, *inputs})
        if changed := [name for name in names if earlier_inputs.get(name) != inputs.get(name)]:
            raise ValueError(
                f"output {folder}: --top and limits were settled over other inputs: {first_names(changed)}; give "
                "another folder, or --overwrite to start anew"
            )
        try:
            data = read_bytes(join(folder, LIMITS))
        except FileNotFoundError:
            data = b""
        if hashlib.sha256(data).hexdigest() != earlier.limits_sha256:
            raise ValueError(
                f"{join(folder, LIMITS)}: is not what this run has settled; use --overwrite to start anew"
            )
        return SettledLimits.unpacked(data, earlier.threshold)

    def write(self, shard: Shard, pace: Pace, following: Shard | None = None) -> None:
        """Choose from one shard; before its marker, a file of its own lists the records that are left out."""
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
            closing(RejectedList(join(self.config.output, shard.name + REJECTED))) as rejected_list,
        ):
            for record in shard:
                chosen = choose(
                    record,
                    shard.name,
                    judge,
                    settled=self.settled,
                    text_from_synthetic=self.text_from_synthetic,
                )
                if chosen.record is not None:
                    writer.write(chosen.record, chosen.text)
                else:
                    rejected_list.add(record.key, shard.name, chosen)
                    rejected[chosen.kind] += 1
                left_out.update(chosen.left_out)
                counts.update(["read", *["failed_before"] * record.failed_before])
                pace.count(chosen.kind == UNUSABLE)
            rejected_list.finish()
            writer.info |= {
                **hash_of(shard),
                "read": counts["read"],
                "failed_before": counts["failed_before"],
                "rejected": dict(sorted(rejected.items())),
                "captions_left_out": dict(sorted(left_out.items())),
            }

    def close(self) -> None:
        pass


class RejectedList:
    """A file that lists the records that are left out: a line of JSON for each, with key, shard, kind and reason."""

    def __init__(self, path: str):
        self.file = Output(path)

    def add(self, key: str, shard: str, chosen: Chosen) -> None:
        line = json.dumps(
            {"key": key, "shard": shard, "kind": chosen.kind, "reason": masked(chosen.reason)}, ensure_ascii=False
        )
        self.file.write(line.encode("utf-8", "replace") + b"\n")

    def finish(self) -> None:
        self.file.commit()

    def close(self) -> None:
        self.file.discard()


def inputs_of(shards: Sequence[Shard]) -> dict[str, str]:
    """Return, by shard, a hash of the size and a sample of the bytes of its input; its path does not matter."""
    samples = {path: sample_hash(path) for path in {shard.path for shard in shards}}
    return {
        shard.name: hashlib.sha256(
            json.dumps([lasting(shard.stamp), samples[shard.path]], sort_keys=True).encode()
        ).hexdigest()[:16]
        for shard in shards
    }


def reinforcement(shards: Sequence[Shard]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return what is to be kept of a reinforced input: fields of its fingerprint, and its `config.json` by name.

    Raises: ValueError where the shards are in several folders that are reinforced with different settings.
    """
    reinforcement_of: dict[str, tuple[dict[str, Any], bytes | None]] = {}
    for folder in dict.fromkeys(os.path.dirname(shard.path) for shard in shards if shard.stamp):
        try:
            run = json_object(read_bytes(join(folder, RUN)))["fingerprint"]
            fields = {name: run[name] for name in REINFORCED if name in run} if "embedded_columns" in run else {}
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            fields = {}
        try:
            config = read_bytes(join(folder, CONFIG))
            config = config if json_object(config).get("teachers") is not None else None
        except (FileNotFoundError, ValueError):
            config = None
        reinforcement_of[folder] = fields, config
    if not reinforcement_of:
        return {}, {}
    (first, (fields, config)), *others = reinforcement_of.items()
    if differing := [folder for folder, other in others if other != (fields, config)]:
        raise ValueError(
            f"--input: {differing[0]} and {first} are reinforced with different settings; choose from one at a time"
        )
    return fields, {} if config is None else {CONFIG: config}


def finish(config: SelectConfig, rank: Rank = Rank(), shards: Sequence[Shard] = ()) -> int:
    """Print what is kept, list what is left out where all shards are done, and return the exit code.

    Where several processes work on the run, only this process's shards are printed; `shards` are those of all
    processes.
    """
    all_markers = read_own_markers(config.output)
    markers = {name: all_markers.get(name) for name in read_shards(config.output) or ()}
    own_names = list(markers) if rank.count == 1 else [shard.name for shard in rank.share(shards)]
    missing = [name for name in own_names if markers[name] is None]
    done = [marker for name in own_names if (marker := markers[name])]
    counts = {name: sum(marker[name] for marker in done) for name in ("rows", "read", "failed_before")}
    rejected = sum((Counter(marker["rejected"]) for marker in done), Counter[str]())
    left_out = sum((Counter(marker["captions_left_out"]) for marker in done), Counter[str]())
    say(
        f"{config.output}: {counts['rows']:,} of {counts['read']:,} records are kept, in "
        f"{counted(len(done), f'{config.format} shard')}"
    )
    say(*(f"  {count:,} records are left out: {kind}" for kind, count in rejected.most_common()))
    say(*(f"  {count:,} captions are left out: {kind}" for kind, count in left_out.most_common()))
    if None not in markers.values():
        list_rejected(config.output, list(markers))
        settings = config.model_dump(mode="json", include=DECIDING | {"input"}, exclude_defaults=True)
        title = f"Records of {', '.join(config.input)}, chosen by their captions"
        write_set_card(config.output, "select", title, [*filter(None, markers.values())], settings)
        if rejected:
            say(f"the reason of each record: {join(config.output, ALL_REJECTED)}")
    if missing:
        say_missing(missing, own_names)
        return 1
    unusable_share = (rejected[UNUSABLE] - counts["failed_before"]) / max(1, counts["read"] - counts["failed_before"])
    if unusable_share > config.max_error_rate:
        say(
            f"{unusable_share:.1%} of the records cannot be used, more than --max-error-rate "
            f"{config.max_error_rate:.1%}"
        )
        return 3
    return 0 if counts["rows"] or rank.count > 1 else 1


def list_rejected(folder: str, names: Sequence[str]) -> None:
    """Write rejected.jsonl: the lists of all shards, one after the other."""
    with closing(RejectedList(join(folder, ALL_REJECTED))) as rejected_list:
        for name in names:
            with open_file(join(folder, name + REJECTED)) as part:
                while data := part.read(1 << 20):
                    rejected_list.file.write(data)
        rejected_list.finish()
