"""`capsmith generate`: captions and writes every shard without a done-marker; the same command again resumes."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from captioners.device import check_device
from captioners.ranks import Rank
from captioners.server.journal import answers_kept, forget_answers
from generate.captions.config import GenerateConfig
from generate.captions.export import check_folder
from generate.captions.fingerprint import fingerprint
from generate.captions.input_checks import (
    check_columns_read,
    check_fields_read,
    check_instructions,
    labels_of,
    needs_of,
    warning_about_braces,
    warning_about_photographs,
)
from generate.captions.load import load_columns
from generate.captions.overlap import Overlap
from generate.captions.preview import costs_of, count_pictures, first_pictures, outlook
from generate.captions.records import PendingRecord, record_of
from generate.captions.refused import Refused
from generate.captions.settled_column import SettledColumn
from generate.captions.stages import REDRAWN_AT_ONCE, caption_pictures, workers_for
from generate.captions.summary import finish
from generate.runs.engines import engine_of
from generate.runs.failures import Failures
from generate.runs.inputs import hash_of, input_of
from generate.runs.manifest import check_own, read_run, wait_for_run
from generate.runs.out_of_memory import with_halved_batches
from generate.runs.processes import launch, own_rank
from generate.runs.protocol import Loaded, Pace, processes_wanted, workers_wanted
from generate.runs.start import begin, prepare
from generate.runs.workers import Background, Workers
from generate.sets.repeats import Repeats
from imagetext.apart import ANOTHER
from imagetext.columns import is_caption_column
from imagetext.lock import FolderLock
from imagetext.sample import Record, Shard
from imagetext.shards import ShardWriter, read_marker
from imagetext.shown import say
from imagetext.sources import check_table_flags, read_samples
from imagetext.stores import is_remote
from imagetext.upload_access import check_hub

if TYPE_CHECKING:  # this module imports aiohttp
    from captioners.server.captioner import ServerCaptioner

# Most pictures that wait to be written. A redraw releases many at once, and the captioners go on meanwhile.
WRITTEN_BEHIND = 2 * REDRAWN_AT_ONCE


def run(config: GenerateConfig, rank: Rank | None = None, on_begun: Callable[[], None] | None = None) -> int:
    """Caption the pictures of `config.input` into `config.output`, or this process's share of them.

    `rank` and `on_begun` come from `launch`, which starts the other processes once the first has begun the run.
    Returns: 0 done, 1 some shards failed, 3 done but more pictures failed than `max_error_rate` allows.
    Raises: ValueError for a bad input, model, column or output folder, before anything is written.
    """
    rank = rank or own_rank(config)
    if config.dry_run:
        return _run(config, rank, on_begun)
    if rank.number:
        wait_for_run(config.output)  # so that only the first process reports a mistake in the command
    check_own(config.output, "generate")  # before the lock, so that nothing is written to another command's folder
    with FolderLock(config.output) as lock:
        return _run(config, rank, on_begun, job=lock.job)


def _run(config: GenerateConfig, rank: Rank, on_begun: Callable[[], None] | None, *, job: str = "") -> int:
    """Do the run. job: the job that has locked the output folder."""
    _check_before_reading(config)
    check_instructions(config)
    all_shards = read_samples(
        config.input, config.images, labels=labels_of(config), columns=config.table, needs=needs_of(config)
    )
    check_table_flags(all_shards, config.table)
    check_columns_read(config, all_shards)
    check_fields_read(config, all_shards)
    shards = first_pictures(all_shards, config.limit) if config.limit else all_shards
    is_preview = config.dry_run or config.limit  # done by one process
    if rank.count == 1 and not is_preview and (processes := processes_wanted(config)) > 1:
        # The upload happens once, when all processes have ended.
        code = launch("generate", config.model_copy(update={"push_to_hub": None}), processes, job=job)
        was_never_begun = code and read_run(config.output) is None
        return code if code == 2 or was_never_begun else finish(config)
    if not rank.number:
        warnings = (warning_about_braces(config), warning_about_photographs(config, shards))
        for warning in (*config.warnings_of_unused_settings, *warnings):
            if warning:
                say(warning)
    work = Captioning(config)
    with engine_of(config, rank) as engine:
        prepared = prepare(work, engine, shards, rank=rank, on_begun=on_begun)
        if config.dry_run:
            to_do = f"{len(prepared.to_do):,} of {len(prepared.shards):,} shards to do"
            say(f"{count_pictures(all_shards)}; {to_do}; nothing was written")
            for cost in costs_of(work.servers, prepared.to_do):
                say(cost)
            return 0
        if config.overwrite:
            forget_answers(config.output)
        begin(config.output, prepared, rank, on_begun=on_begun)
        pace = engine.do(work, prepared.to_do)
    code = finish(config, rank, prepared.shards)
    if config.limit:
        say(outlook(all_shards, config, pace.pictures_per_second))
    return code


def _check_before_reading(config: GenerateConfig) -> None:
    if config.engine == "embedded":  # workers of a cluster check the devices of their own machines
        check_device(config.device)
    if config.push_to_hub and is_remote(config.output):
        raise ValueError(f"--push-to-hub: uploads from this machine only, and the output is {config.output}")
    if config.push_to_hub:
        check_hub(config.push_to_hub)
    if config.export_by_class:
        check_folder(config.export_by_class, config.output)


@dataclass
class Captioning:
    """The work of `capsmith generate`, as `generate.runs.protocol.Work` describes it."""

    config: GenerateConfig
    columns: Sequence[SettledColumn] = ()
    workers: Workers | None = None  # from the first shard on
    doing = "captioning"
    unit = "picture"
    instead = (
        f"{ANOTHER}: everything that the input holds is copied there; give the new captions a column of their own "
        "(--column)"
    )

    def load(self, device: str, settled: Mapping[str, Any]) -> Loaded:
        self.columns = load_columns(self.config, list(settled.get("columns", {}).values()), device)
        models = dict.fromkeys(map(_description, self.columns))
        return Loaded(fingerprint(self.columns, self.config), list(models))

    def write(self, shard: Shard, pace: Pace, following: Shard | None = None) -> None:
        """Caption and write one shard.

        Out of memory, the shard is begun anew with half the batch sizes, and its marker says so.
        """
        if self.workers is None:
            self.workers = workers_for(
                self.columns,
                workers_wanted(self.config),
                overwrite=self.config.replace_columns,
                drop_text_embeddings=self.config.drop_text_embeddings or self.config.captions_only,
            )
        settled_sizes, workers = _batch_sizes(self.columns), self.workers

        def write(sizes: Sequence[int]) -> None:
            size_of = dict(zip(settled_sizes, sizes))
            columns = [replace(column, batch_size=size_of[column.batch_size]) for column in self.columns]
            write_shard(
                shard,
                columns,
                self.config,
                workers=workers,
                pace=pace,
                following=following,
                info={} if sizes == settled_sizes else {"batch_sizes": sizes},
            )

        with answers_kept([captioner for _, captioner in self.servers], self.config.output, shard.name):
            with_halved_batches(write, settled_sizes, "pictures in flight", shard=shard, pace=pace)

    @property
    def servers(self) -> "list[tuple[SettledColumn, ServerCaptioner]]":
        """The columns whose captioners are models of a server, with these captioners."""
        if not any(column.of_server for column in self.config.column_configs):
            return []
        from captioners.server.captioner import ServerCaptioner  # here and not above, because this imports aiohttp

        return [(column, column.captioner) for column in self.columns if isinstance(column.captioner, ServerCaptioner)]

    def close(self) -> None:
        if self.workers is not None:
            self.workers.close()
        self.workers = None


def _description(column: SettledColumn) -> str:
    """Return what is printed about the column's captioner; for a server, this says what is sent to it."""
    description = column.captioner.description
    return description if column.looks else getattr(column.captioner, "description_by_words", description)


def _batch_sizes(columns: Sequence[SettledColumn]) -> list[int]:
    """Return the batch size of each captioner, which its columns share."""
    return list({id(column.captioner): column.batch_size for column in columns}.values())


def write_shard(
    shard: Shard,
    columns: Sequence[SettledColumn],
    config: GenerateConfig,
    *,
    workers: Workers,
    pace: Pace,
    following: Shard | None,
    info: Mapping[str, Any],
) -> None:
    """Caption and write one shard.

    Its marker gets `info`, and the counts that the summary adds up over shards.
    """
    names = [name for column in columns for name in column.writes]
    counts, earlier_marker = ShardCounts(names), read_marker(config.output, shard.name)
    with (
        ShardWriter(
            config.output,
            shard.name,
            format=config.format,
            columns=names,
            images=not config.captions_only,
            input=input_of(shard),
            text_from_synthetic=config.text_from_synthetic,
        ) as writer,
        closing(Background()) as background,
    ):

        def write(pending: PendingRecord) -> tuple[bool, int]:
            """Write a record; returns whether it failed, and how many texts it has."""
            record = record_of(pending, columns)
            writer.write(record)
            return bool(record.error), counts.update(pending, record)

        pictures = caption_pictures(shard, columns, workers, judge=background, stopwatch=pace, following=following)
        for failed, captions in background.map(write, pictures, ahead=WRITTEN_BEHIND):
            pace.count(failed, captions)
        writer.info |= {**info, **hash_of(shard), **counts.in_marker(earlier_marker)}


class ShardCounts:
    """What is counted while a shard is written, for its marker: the summary adds it up over shards."""

    def __init__(self, names: Sequence[str]):
        self.names = names  # of the columns that the run writes
        self.repeats = {name: Repeats() for name in names if is_caption_column(name)}
        self.overlap, self.refused, self.licences, self.failures = Overlap(), Refused(), Repeats(), Failures()

    def update(self, pending: PendingRecord, record: Record) -> int:
        """Count a record that was made of a pending one; returns how many texts it has."""
        texts = {name: () if record.error else record.columns.get(name, ()) for name in self.names}
        captions = {name: texts[name] for name in self.repeats}
        for name, repeats in self.repeats.items():
            repeats.update(captions[name])
        self.overlap.update(captions)
        for name, answers in pending.answers.items():
            self.refused.update(name, answers.result())
        for name, reason in pending.refused.items():
            self.refused.add_missing(name, f"{record.key}: {reason}")
        self.licences.update([str(record.meta.get("license") or "")])
        self.failures.update(record.error, pending.refused.values(), record.failed_before)
        return sum(map(len, texts.values()))

    def in_marker(self, earlier: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return what the marker records. earlier: the shard's earlier marker. Raises: as `Failures.in_marker`."""
        return {
            **self.failures.in_marker(earlier),
            "repeats": {name: repeats.state() for name, repeats in self.repeats.items()},
            "overlap": self.overlap.state(),
            "refused": self.refused.state(),
            "licences": self.licences.state(),
        }
