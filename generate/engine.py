"""`capsmith generate`: every shard without a done-marker is captioned and written; the same command again resumes."""

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from typing import Any

import psutil
import torch
from tqdm import tqdm

from captioners.coca import load_captioner
from generate.captioning import Column, Stopwatch, caption_samples
from generate.config import GenerateConfig
from generate.limit import count_pictures, first_pictures, outlook
from generate.manifest import (
    any_done, check_same, clear_run, fingerprint, input_of, read_run, shards_to_do, wait_for_run, write_run
)
from generate.ranks import Rank, launch
from generate.repeats import Repeats
from generate.summary import finish
from imagetext.columns import ColumnClash
from imagetext.sample import Record
from imagetext.shards import ShardWriter, check_column
from imagetext.sources import Shard, read_samples
from imagetext.stores import is_remote

logger = logging.getLogger(__name__)


def run(config: GenerateConfig, rank: Rank | None = None, begun: Event | None = None) -> int:
    """Caption the pictures of `config.input` into `config.output`, or this process's share of them.

    `rank` and `begun` come from `launch`, which starts the others once the first has begun the run.
    Returns: 0 done, 1 some shards failed, 3 done but more pictures failed than `max_error_rate` allows.
    Raises: ValueError for a bad input, model, column or output folder, before anything is written.
    """
    if rank is None and (rank := Rank.of_this_process()).count > 1 and (config.overwrite or config.num_processes):
        raise ValueError(f"--overwrite, --num-processes: a launcher has started this process as number {rank.number} of "
                         f"{rank.count}, and none of them can begin anew or start others")
    if config.push_to_hub and is_remote(config.output):
        raise ValueError(f"--push-to-hub: uploads what is on this machine, not {config.output}")
    if rank.number and not config.dry_run:
        wait_for_run(config.output)  # so that a mistake in the command is told once
    whole = read_samples(config.input, config.images)
    shards = first_pictures(whole, config.limit) if config.limit else whole
    earlier = read_run(config.output)
    if rank.count == 1 and (processes := processes_wanted(config)) > 1:
        code = launch(config, processes)
        return code if code and read_run(config.output) is None or code == 2 else finish(config, shards)
    # While nothing is done that could differ, a run begins anew; one of several knows only of those that it comes before.
    anew = (rank.count == 1 or begun is not None) and (config.overwrite or not any_done(config.output))
    settled = earlier if earlier and not anew else {}
    columns, dtypes = load_columns(config, list(settled.get("columns", {}).values()), choose_device(config.device, rank))
    now = fingerprint(columns, dtypes, config)
    if settled:
        check_same(config.output, settled, now)
    to_do = rank.share(shards) if anew else shards_to_do(config.output, rank.share(shards))
    if config.dry_run:
        print(f"{count_pictures(whole)}; {len(to_do):,} of {len(shards):,} shards to do; nothing was written")
        return 0
    if earlier and anew:
        clear_run(config.output)
    if not rank.number:
        write_run(config.output, now)
    if begun:
        begun.set()
    pace = caption_shards(to_do, columns, config, rank)
    code = finish(config, shards, rank)
    if config.limit:
        print(outlook(whole, config, pace.pictures_per_second))
    return code


def processes_wanted(config: GenerateConfig) -> int:
    """How many processes the run is for; a look at it is for one."""
    if config.dry_run or config.limit:
        return 1
    return config.num_processes or max(1, torch.cuda.device_count() if config.device in (None, "cuda") else 1)


def load_columns(config: GenerateConfig, settled: Sequence[Mapping[str, Any]], device: str) -> tuple[list[Column], list[str]]:
    """The columns, those of one model with one captioner, and the dtype of each; what the run has settled stays as it is.

    Raises: ValueError where a model cannot be loaded, sampling does not fit it, or two columns have one name.
    """
    configs = config.column_configs
    before = settled if len(settled) == len(configs) else [{}] * len(configs)
    columns, dtypes, loaded = [], [], {}
    for one, known in zip(configs, before):
        dtype = one.dtype or known.get("dtype") or ("bf16" if device.startswith("cuda") else "fp32")
        asked = (one.model, one.pretrained, dtype)
        if asked not in loaded:
            loaded[asked] = load_captioner(one.model, one.pretrained, device=device, dtype=dtype)
            print(loaded[asked].description)
        captioner = loaded[asked]
        name = one.column or check_column(f"syn_text_{captioner.name}")
        columns.append(Column(name, captioner, one.sampling, one.gate, one.similarity))
        dtypes.append(dtype)
        columns[-1].caption(())  # raises where these do not fit the captioner
    names = Counter(column.name for column in columns)
    if twice := [name for name, times in names.items() if times > 1]:
        raise ValueError(f"columns: {', '.join(twice)} named twice; give each its own `column`")
    for captioner in loaded.values():
        captioner.batch_size = min(  # its columns share it
            one.batch_size or known.get("batch_size")
            or fitting_batch_size(len(columns) * captioner.bytes_per_picture(one.sampling), device)
            for one, known, column in zip(configs, before, columns) if column.captioner is captioner)
    return columns, dtypes


def choose_device(name: str | None, rank: Rank) -> str:
    """The device of that name, or the best there is, of several this process's own; ValueError where there is no such device."""
    if name in (None, "cuda") and torch.cuda.is_available():
        return f"cuda:{rank.local % torch.cuda.device_count()}"
    try:
        torch.empty(0, device=name or "cpu")
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r}: {str(error).splitlines()[0]}") from error
    return name or "cpu"


def fitting_batch_size(bytes_per_picture: int, device: str) -> int:
    """How many pictures in flight half of the free memory holds, but not more than make a step faster per picture."""
    if device.startswith("cuda"):
        free, most = torch.cuda.mem_get_info(device)[0], 256
    else:
        free, most = psutil.virtual_memory().available, 16
    return max(1, min(most, free // (2 * bytes_per_picture)))


def caption_shards(shards: Sequence[Shard], columns: Sequence[Column], config: GenerateConfig, rank: Rank) -> "Pace":
    """Caption and write the shards, one after the other; one that fails is logged and left for the next run."""
    pace = Pace()
    with tqdm(desc="captioning", unit="picture", mininterval=1, disable=not shards, position=rank.local) as progress:
        for number, shard in enumerate(shards, 1):
            progress.set_description(f"captioning {shard.name} ({number}/{len(shards)})")
            try:
                caption_shard(shard, columns, config, progress, pace)
            except ColumnClash:
                raise
            except Exception as error:  # a store, a damaged file, the model: the shard fails, the run goes on
                logger.error("shard %s of %s failed: %s", shard.name, shard.path, error,
                             exc_info=not isinstance(error, (OSError, ValueError)))
    if pace.captions:
        print(pace)
    return pace


def caption_shard(shard: Shard, columns: Sequence[Column], config: GenerateConfig, progress: tqdm, pace: "Pace") -> None:
    """Caption and write one shard; out of memory, it is begun anew with half the batches, and its marker says so."""
    captioners = {id(column.captioner): column.captioner for column in columns}.values()
    sizes = [captioner.batch_size for captioner in captioners]
    try:
        while True:
            before = pace.pictures, pace.captions
            try:
                smaller = [captioner.batch_size for captioner in captioners]
                write_shard(shard, columns, config, progress, pace, {} if smaller == sizes else {"batch_sizes": smaller})
                return
            except torch.OutOfMemoryError:
                if max(smaller) == 1:
                    raise
                for captioner in captioners:
                    captioner.batch_size = max(1, captioner.batch_size // 2)
                progress.update(before[0] - pace.pictures)
                pace.pictures, pace.captions = before
                logger.warning("shard %s: out of memory, begun anew with %s pictures in flight", shard.name,
                               ", ".join(str(captioner.batch_size) for captioner in captioners))
                torch.cuda.empty_cache()  # nothing without a GPU
    finally:
        for captioner, size in zip(captioners, sizes):
            captioner.batch_size = size


def write_shard(shard: Shard, columns: Sequence[Column], config: GenerateConfig, progress: tqdm, pace: "Pace",
                info: Mapping[str, Any]) -> None:
    """Caption and write one shard; its marker gets `info`, and what the set's summary adds up: repeats and licences."""
    repeats, licences = {column.name: Repeats() for column in columns}, Repeats()
    with ShardWriter(config.output, shard.name, format=config.format, columns=list(repeats), images=not config.captions_only,
                     input=input_of(shard), text_from_synthetic=config.text_from_synthetic) as writer:
        for record in caption_samples(shard, columns, overwrite=config.replace_columns, num_workers=config.num_workers,
                                      drop_text_embeddings=config.drop_text_embeddings or config.captions_only, stopwatch=pace):
            writer.write(record)
            for name, of_column in repeats.items():
                of_column.update(record.syn_text.get(name, ()))
            licences.update([str(record.sample.meta.get("license") or "")])
            pace.count(record)
            progress.set_postfix_str(str(pace), refresh=False)
            progress.update()
        writer.info |= {**info, "repeats": {name: of_column.state() for name, of_column in repeats.items()},
                        "licences": licences.state()}


@dataclass
class Pace(Stopwatch):
    """How fast a run goes, from its first picture on."""

    pictures: int = 0
    captions: int = 0
    start: float = field(default_factory=time.monotonic)

    def count(self, record: Record) -> None:
        self.pictures += 1
        self.captions += sum(map(len, record.syn_text.values()))

    @property
    def pictures_per_second(self) -> float:
        return self.pictures / (time.monotonic() - self.start)

    def __str__(self) -> str:
        seconds = time.monotonic() - self.start
        return (f"{self.pictures / seconds:.1f} pictures/s, {self.captions / seconds:.1f} captions/s, "
                f"the model waited {self.waited / seconds:.0%} of the time")
