"""`capsmith generate`: every shard without a done-marker is captioned and written; the same command again resumes."""

from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing.synchronize import Event
from typing import Any

import psutil
import torch

from captioners.base import Captioner
from captioners.device import check_device
from captioners.load import load_captioner
from captioners.ranks import Rank
from captioners.resolve import is_transformers, shipped_models
from captioners.rules.negatives import NEGATIVES
from captioners.server.captioner import ServerCaptioner
from captioners.server.journal import answers_kept, forget_answers
from generate.captions.config import ColumnConfig, GenerateConfig
from generate.captions.export import check_folder
from generate.captions.fingerprint import fingerprint
from generate.captions.overlap import Overlap
from generate.captions.preview import costs_of, count_pictures, first_pictures, outlook
from generate.captions.refused import Refused
from generate.captions.stages import REDRAWN_AT_ONCE, Column, Picture, caption_pictures, record_of, workers_for
from generate.captions.summary import finish
from generate.captions.tasks import Task, problems_of_order
from generate.runs.engines import engine_of
from generate.runs.inputs import Failures, hash_of, input_of
from generate.runs.manifest import check_own, read_run, wait_for_run
from generate.runs.out_of_memory import with_halved_batches
from generate.runs.processes import launch, own_rank
from generate.runs.protocol import Loaded, Pace, processes_wanted, workers_wanted
from generate.runs.start import begin, prepare
from generate.runs.workers import Background, Workers
from generate.sets.repeats import Repeats
from imagetext.apart import ANOTHER
from imagetext.lock import FolderLock
from imagetext.readers.labels import IMAGENET, Labels, imagenet_ids, named_once, read_class_names
from imagetext.readers.table_columns import Need
from imagetext.sample import Shard, is_caption_column
from imagetext.shards import ShardWriter, check_column, read_marker
from imagetext.shown import say
from imagetext.sources import read_samples
from imagetext.stores import is_remote

FOR_PHOTOGRAPHS = (
    "coca_ViT-L-14 --pretrained mscoco_finetuned_laion2b_s13b_b90k, or Salesforce/blip-image-captioning-base"
)
SHARDS_LOOKED_AT = 3
RECORDS_LOOKED_AT = 100  # of the first shard, for columns that are read
WRITTEN_BEHIND = (
    2 * REDRAWN_AT_ONCE
)  # pictures at most that wait to be written: so many come at once, and the captioners go on


def run(config: GenerateConfig, rank: Rank | None = None, begun: Event | None = None) -> int:
    """Caption the pictures of `config.input` into `config.output`, or this process's share of them.

    `rank` and `begun` come from `launch`, which starts the others once the first has begun the run.
    Returns: 0 done, 1 some shards failed, 3 done but more pictures failed than `max_error_rate` allows.
    Raises: ValueError for a bad input, model, column or output folder, before anything is written.
    """
    rank = rank or own_rank(config)
    if config.dry_run:
        return _run(config, rank, begun)
    check_own(config.output, "generate")  # then not even a lock is written there
    with FolderLock(config.output) as lock:
        return _run(config, rank, begun, lock.job)


def _run(config: GenerateConfig, rank: Rank, begun: Event | None, job: str = "") -> int:
    """The run, of which the folder is locked for this job."""
    if config.engine == "embedded":  # the workers of a cluster look at their own machines
        check_device(config.device)
    if config.push_to_hub and is_remote(config.output):
        raise ValueError(f"--push-to-hub: uploads what is on this machine, not {config.output}")
    if config.export_by_class:
        check_folder(config.export_by_class, config.output)
    if rank.number and not config.dry_run:
        wait_for_run(config.output)  # so that a mistake in the command is told once
    whole = read_samples(
        config.input, config.images, labels=labels_of(config), columns=config.table, needs=needs_of(config)
    )
    check_columns_read(config, whole)
    shards = first_pictures(whole, config.limit) if config.limit else whole
    look = config.dry_run or config.limit  # is for one process
    if rank.count == 1 and not look and (processes := processes_wanted(config)) > 1:
        code = launch(
            "generate", config.model_copy(update={"push_to_hub": None}), processes, job
        )  # once, when all have ended
        return code if code == 2 or code and read_run(config.output) is None else finish(config)
    if not rank.number and (told := told_of_drawn_shapes(config, shards)):
        say(told)
    work = Captioning(config)
    with engine_of(config, rank) as engine:
        prepared = prepare(work, engine, shards, rank, begun)
        if config.dry_run:
            say(
                f"{count_pictures(whole)}; {len(prepared.to_do):,} of {len(prepared.shards):,} shards to do; nothing was written"
            )
            for cost in costs_of(work.of_servers, prepared.to_do):
                say(cost)
            return 0
        if config.overwrite:
            forget_answers(config.output)
        begin(config.output, prepared, rank, begun)
        pace = engine.do(work, prepared.to_do)
    code = finish(config, rank, prepared.shards)
    if config.limit:
        say(outlook(whole, config, pace.pictures_per_second))
    return code


@dataclass
class Captioning:
    """The work of `capsmith generate`."""

    config: GenerateConfig
    columns: Sequence[Column] = ()
    workers: Workers | None = None  # from the first shard on
    doing = "captioning"
    unit = "picture"
    instead = (
        f"{ANOTHER}: all that the input holds goes there, too, and new captions in a column of their own (--column)"
    )

    def load(self, device: str, settled: Mapping[str, Any]) -> Loaded:
        self.columns = load_columns(self.config, list(settled.get("columns", {}).values()), device)
        models = dict.fromkeys(map(_described, self.columns))
        return Loaded(fingerprint(self.columns, self.config), list(models))

    def write(self, shard: Shard, pace: Pace, following: Shard | None = None) -> None:
        """Caption and write one shard; out of memory, it is begun anew with half the batches, and its marker says so."""
        if self.workers is None:
            self.workers = workers_for(
                self.columns,
                workers_wanted(self.config),
                overwrite=self.config.replace_columns,
                drop_text_embeddings=self.config.drop_text_embeddings or self.config.captions_only,
            )
        settled = _batch_sizes(self.columns)

        def write(sizes: Sequence[int]) -> None:
            size_of = dict(zip(settled, sizes))
            columns = [replace(column, batch_size=size_of[column.batch_size]) for column in self.columns]
            write_shard(
                shard,
                columns,
                self.config,
                self.workers,
                pace,
                following,
                {} if sizes == settled else {"batch_sizes": sizes},
            )

        with answers_kept([column.captioner for column in self.of_servers], self.config.output, shard.name):
            with_halved_batches(write, settled, "pictures in flight", shard, pace)

    @property
    def of_servers(self) -> list[Column]:
        """The columns whose captioners are servers'."""
        return [column for column in self.columns if isinstance(column.captioner, ServerCaptioner)]

    def close(self) -> None:
        if self.workers is not None:
            self.workers.close()
        self.workers = None


def _described(column: Column) -> str:
    """What is printed of the column's captioner: of a server, what is sent to it."""
    if isinstance(column.captioner, ServerCaptioner) and not column.looks:
        return column.captioner.description_by_words
    return column.captioner.description


def told_of_drawn_shapes(config: GenerateConfig, shards: Sequence[Shard]) -> str:
    """What there is to say where the built-in captioner gets other pictures than it knows, by the first of some shards."""
    names = [one.model for one in config.column_configs if one.model in shipped_models()]
    if not names:
        return ""
    for shard in [shard for shard in shards if not shard.path.startswith("scenes:")][:SHARDS_LOOKED_AT]:
        with suppress(OSError, ValueError):  # which its turn tells of
            if (first := next(iter(shard.samples), None)) is not None and "scene" not in first.meta:
                return (
                    f"{names[0]} knows drawn shapes alone, those of scenes:…, and {first.key} is none: what it says of it "
                    f"means nothing. For photographs, say --model {FOR_PHOTOGRAPHS}"
                )
    return ""


def labels_of(config: GenerateConfig) -> Labels | None:
    """Where the pictures' classes stand, if they are asked for; ValueError where their names cannot be read."""
    if not config.label:
        return None
    if not config.class_names:
        return Labels(config.label)
    names = read_class_names(config.class_names)
    numbers = {name: number for number, name in imagenet_ids().items()} if config.class_names == IMAGENET else {}
    return Labels(config.label, names, named_once(names) | numbers)


def _batch_sizes(columns: Sequence[Column]) -> list[int]:
    """One for each captioner: its columns share it."""
    return list({id(column.captioner): column.batch_size for column in columns}.values())


def needs_of(config: GenerateConfig) -> list[Need]:
    """What tables must have for the columns: pictures where one is looked at, captions where one is named."""
    needs: list[Need] = []
    if any(map(may_look, config.column_configs)):
        needs.append("pictures")
    if any(one.task.reads_originals for one in config.column_configs):
        needs.append("captions")
    return needs or ["either"]


def may_look(column: ColumnConfig) -> bool:
    """Whether the column's captioner is shown pictures, as far as can be told before it is loaded."""
    if not column.can_look or column.instruction is None or column.model.startswith("openai:"):
        return column.can_look
    if not is_transformers(column.model):
        return True
    from captioners.lm.load import is_language_model  # late: it imports transformers

    return not is_language_model(column.model)


def check_columns_read(config: GenerateConfig, shards: Sequence[Shard]) -> None:
    """Raises ValueError where a column is read that neither this run writes nor one of the input's first records has."""
    configs = config.column_configs
    if not all(one.named_columns for one in configs[:-1]):  # it may be one that has its captioner's name
        return
    wanted = {name for one in configs for name in one.task.columns_read}
    wanted -= {name for one in configs for name in one.named_columns}
    seen: set[str] = set()
    for shard in shards[:1] if wanted else ():
        with suppress(OSError, ValueError):  # which its turn tells of
            for record in islice(shard, RECORDS_LOOKED_AT):
                seen |= record.columns.keys()
                if wanted <= seen:
                    return
    if wanted - seen:
        has = f"it has {', '.join(sorted(seen))}" if seen else "it has no columns of captions"
        raise ValueError(
            f"instruction or fallback: reads {', '.join(sorted(wanted - seen))}, which is neither made earlier in this run nor in "
            f"the first {RECORDS_LOOKED_AT} records of the input; {has}"
        )


def load_columns(config: GenerateConfig, settled: Sequence[Mapping[str, Any]], device: str) -> list[Column]:
    """The columns, those of one model with one captioner and batch size; what the run has settled stays as it is.

    settled: an entry for each column that is written, several of a column whose answers are JSON.
    Raises: ValueError where a model cannot be loaded, a task or sampling does not fit it, or two columns have one name.
    """
    configs = config.column_configs
    before = _by_column(configs, settled)
    columns: list[Column] = []
    loaded: dict[tuple, Captioner] = {}
    tasks: dict[str, Task] = {}
    for one, known in zip(configs, before):
        dtype = one.dtype or known.get("dtype") or ("bf16" if device.startswith("cuda") else "fp32")
        server = {"server": one.server} if one.model.startswith("openai:") else {}
        asked = (one.model, one.pretrained, one.base, dtype, str(server))
        if asked not in loaded:
            loaded[asked] = load_captioner(
                one.model, one.pretrained, base=one.base, device=device, dtype=dtype, **server
            )
        captioner = loaded[asked]
        kind = "neg_text_" if one.model == NEGATIVES else "syn_text_"
        name = one.named_columns[0] if one.named_columns else check_column(f"{kind}{captioner.name}")
        described = one.task.model_dump_json()
        if described not in tasks:
            tasks[described] = one.task.settled()
        column = Column(name, captioner, one.sampling, one.gate, one.similarity, dtype, captioner.batch_size)
        columns.append(replace(column, task=tasks[described]))
        columns[-1].check()
    if problems := problems_of_order([(column.writes, column.task.columns_read) for column in columns]):
        raise ValueError("; ".join(problems))
    sizes = [
        one.batch_size
        or known.get("batch_size")
        or (
            column.captioner.batch_size
            if one.model.startswith("openai:")  # a server makes its own batches
            else fitting_batch_size(len(columns) * column.captioner.bytes_per_picture(column.sampling), device)
        )
        for one, known, column in zip(configs, before, columns)
    ]
    return [
        replace(
            column, batch_size=min(size for other, size in zip(columns, sizes) if other.captioner is column.captioner)
        )
        for column in columns
    ]


def _by_column(configs: Sequence[ColumnConfig], settled: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What the run has settled of each column, by the first of those that it writes; nothing where these are other columns."""
    counts = [len(one.fields) or 1 for one in configs]
    if len(settled) != sum(counts):
        return [{} for _ in configs]
    return [settled[sum(counts[:at])] for at in range(len(configs))]


def fitting_batch_size(bytes_per_picture: int, device: str) -> int:
    """How many pictures in flight half of the free memory holds, but not more than make a step faster per picture."""
    if device.startswith("cuda"):
        free, most = torch.cuda.mem_get_info(device)[0], 256
    else:
        free, most = psutil.virtual_memory().available, 16
    return max(1, min(most, free // (2 * bytes_per_picture)))


def write_shard(
    shard: Shard,
    columns: Sequence[Column],
    config: GenerateConfig,
    workers: Workers,
    pace: Pace,
    following: Shard | None,
    info: Mapping[str, Any],
) -> None:
    """Caption and write one shard; its marker gets `info`, and what the summary adds up: repeats, overlap, refusals, licences."""
    names = [name for column in columns for name in column.writes]
    repeats = {name: Repeats() for name in names if is_caption_column(name)}
    overlap, refused, licences, failures = Overlap(), Refused(), Repeats(), Failures()
    before = read_marker(config.output, shard.name)
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
        closing(Background()) as clerk,
    ):

        def write(picture: Picture) -> tuple[bool, int]:
            record = record_of(picture, columns)
            writer.write(record)
            texts = {name: () if record.error else record.columns.get(name, ()) for name in names}
            captions = {name: texts[name] for name in repeats}
            for name, of_column in repeats.items():
                of_column.update(captions[name])
            overlap.update(captions)
            for name, said in picture.said.items():
                refused.update(name, said.result())
            for name, reason in picture.refused.items():
                refused.without(name, f"{record.key}: {reason}")
            licences.update([str(record.meta.get("license") or "")])
            failures.update(record.error, picture.refused.values(), record.failed_before)
            return bool(record.error), sum(map(len, texts.values()))

        pictures = caption_pictures(shard, columns, workers, clerk, pace, following)
        for failed, captions in clerk.map(write, pictures, ahead=WRITTEN_BEHIND):
            pace.count(failed, captions)
        writer.info |= {
            **info,
            **hash_of(shard),
            **failures.in_marker(before),
            "repeats": {name: of_column.state() for name, of_column in repeats.items()},
            "overlap": overlap.state(),
            "refused": refused.state(),
            "licences": licences.state(),
        }
