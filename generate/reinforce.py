"""`capsmith reinforce`: every shard without a done-marker gets views and teachers' embeddings; the same command again resumes."""

import json
import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from multiprocessing.synchronize import Event
from typing import Any

import torch
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from tqdm import tqdm

from generate.engine import choose_device
from generate.manifest import any_done, check_same, clear_run, input_of, read_run, shards_to_do, wait_for_run, write_run
from generate.ranks import Rank
from generate.reinforce_config import ReinforceConfig
from generate.reinforcing import convert_samples, reinforce_samples
from generate.teacher_report import REPORT, write_report
from generate.teachers import Teacher, load_teachers
from imagetext.outputs import remove, write_file
from imagetext.shards import ShardWriter, read_marker
from imagetext.sources import Shard, read_samples
from imagetext.stores import join

logger = logging.getLogger(__name__)

CONFIG = "config.json"
SIDE = 224  # of views that no teacher sees


def run(config: ReinforceConfig, rank: Rank | None = None, begun: Event | None = None) -> int:
    """Reinforce the records of `config.input` into `config.output`, or this process's share of them.

    `rank` and `begun` come from `launch`, which starts the others once the first has begun the run.
    Returns: 0 done, 1 some shards failed, 3 done but more records failed than `max_error_rate` allows.
    Raises: ValueError for a bad input, teacher or output folder, before anything is written.
    """
    if rank is None and (rank := Rank.of_this_process()).count > 1 and config.overwrite:
        raise ValueError(f"--overwrite: a launcher has started this process as number {rank.number} of {rank.count}, and none of "
                         "them can begin anew")
    if rank.number:
        wait_for_run(config.output)
    shards = read_samples(config.input, config.images)
    earlier = read_run(config.output)
    anew = (rank.count == 1 or begun is not None) and (config.overwrite or not any_done(config.output))
    settled = earlier if earlier and not anew else {}
    teachers = load_teachers(config.teacher, choose_device(config.device, rank), config.dtype)
    config = settle(config, teachers, settled)
    now = fingerprint(config, teachers)
    if settled:
        check_same(config.output, settled, now)
    to_do = rank.share(shards) if anew else shards_to_do(config.output, rank.share(shards))
    if earlier and anew:
        for name in (CONFIG, REPORT):
            remove(join(config.output, name))
        clear_run(config.output)
    if not rank.number:
        write_run(config.output, now)
        write_file(join(config.output, CONFIG), json.dumps(description(config, teachers), indent=1).encode())
    if begun:
        begun.set()
    for teacher in teachers:
        print(f"teacher {teacher.name}: {teacher.dimension} dimensions, logit scale {teacher.logit_scale:.4g}, "
              f"{teacher.size[0]} x {teacher.size[1]} px")
    reinforce_shards(to_do, teachers, config, rank)
    code = finish(config, rank.share(shards))
    if config.report and all(read_marker(config.output, shard.name) for shard in shards):
        write_report(config.output, [teacher.describe() for teacher in teachers])
    return code


def settle(config: ReinforceConfig, teachers: Sequence[Teacher], settled: Mapping[str, Any]) -> ReinforceConfig:
    """The configuration with what it leaves open: as the run has it already, or else as fits the teachers.

    Raises: ValueError where a teacher takes larger pictures than the views are.
    """
    largest = max((max(teacher.size) for teacher in teachers), default=SIDE)
    size = config.size or largest
    if larger := [f"{teacher.name} ({max(teacher.size)})" for teacher in teachers if max(teacher.size) > size]:
        raise ValueError(f"--size: {size} is smaller than the pictures that these teachers take: {', '.join(larger)}")
    on_gpu = any(teacher.device.startswith("cuda") for teacher in teachers)
    batch_size = config.batch_size or settled.get("batch_size") or (256 if on_gpu else 32)
    return config.model_copy(update={"size": size, "batch_size": batch_size})


def fingerprint(config: ReinforceConfig, teachers: Sequence[Teacher]) -> dict[str, Any]:
    """All that, with a shard's records, decides the shard's bytes; not devices, ranks, workers, or teachers in turn."""
    versions = {name: ".".join(version(name).split(".")[:2])
                for name in ("torch", "torchvision", "pillow", "open_clip_torch", "capsmith")}
    fields = ("views", "size", "embeddings", "convert", "seed", "dtype", "batch_size", "text_from_synthetic", "format")
    return {"columns": {}, "embedded_columns": config.columns, **config.model_dump(include=set(fields)),
            "teachers": {str(number): teacher.describe() for number, teacher in enumerate(teachers)}, "versions": versions}


def description(config: ReinforceConfig, teachers: Sequence[Teacher]) -> dict[str, Any]:
    """`config.json`, which is also what `--dataset-reinforcement-config` of the official trainer reads."""
    mean, std = (teachers[0].mean, teachers[0].std) if teachers else (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
    augmentation = {"random_resized_crop": {"size": config.size, "interpolation": "bicubic"},
                    "rand_augment": {"enable": True, "p": 1.0}, "to_rgb": {"enable": True}, "to_tensor": {"enable": True},
                    "normalize": {"mean": list(mean), "std": list(std)}}
    return {"model_name": ",".join(config.teacher), "num_samples": config.views,
            "reinforce": {"image_augmentation": augmentation},
            "teachers": [teacher.describe() for teacher in teachers], "columns": config.columns, "embeddings": config.embeddings}


def reinforce_shards(shards: Sequence[Shard], teachers: Sequence[Teacher], config: ReinforceConfig, rank: Rank = Rank()) -> None:
    """Reinforce and write the shards, one after the other; one that fails is logged and left for the next run."""
    with tqdm(desc="reinforcing", unit="record", mininterval=1, disable=not shards, position=rank.local) as progress:
        for number, shard in enumerate(shards, 1):
            progress.set_description(f"reinforcing {shard.name} ({number}/{len(shards)})")
            try:
                reinforce_shard(shard, teachers, config, progress)
            except Exception as error:  # a store, a damaged file, a teacher: the shard fails, the run goes on
                logger.error("shard %s of %s failed: %s", shard.name, shard.path, error,
                             exc_info=not isinstance(error, (OSError, ValueError)))


def reinforce_shard(shard: Shard, teachers: Sequence[Teacher], config: ReinforceConfig, progress: tqdm) -> None:
    """Reinforce and write one shard; out of memory, it is begun anew with half the batch, and its marker says so."""
    batch_size = config.batch_size
    while True:
        before = progress.n
        try:
            with ShardWriter(config.output, shard.name, format=config.format, input=input_of(shard)) as writer:
                if batch_size != config.batch_size:
                    writer.info["batch_size"] = batch_size
                for record, text in (convert_samples(shard, config) if config.convert
                                     else reinforce_samples(shard, teachers, config, batch_size)):
                    writer.write(record, text)
                    progress.update()
            return
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            batch_size = max(1, batch_size // 2)
            progress.update(before - progress.n)
            logger.warning("shard %s: out of memory, begun anew with %d views or texts at a time", shard.name, batch_size)
            torch.cuda.empty_cache()  # nothing without a GPU


def finish(config: ReinforceConfig, shards: Sequence[Shard]) -> int:
    """Print what these shards hold, by their markers; return the exit code."""
    markers = {shard.name: read_marker(config.output, shard.name) for shard in shards}
    missing = [name for name, marker in markers.items() if marker is None]
    done = [marker for marker in markers.values() if marker is not None]
    records, failed = sum(marker["rows"] for marker in done), sum(marker["failed"] for marker in done)
    rate = failed / max(records, 1)
    print(f"{config.output}: {records:,} records, {failed:,} without views ({rate:.1%}), in {len(done):,} {config.format} shards")
    if missing:
        print(f"{len(missing)} of {len(shards)} shards failed: {', '.join(missing)}; the same command tries them again")
        return 1
    if rate > config.max_error_rate:
        print(f"{rate:.1%} of the records failed, more than --max-error-rate {config.max_error_rate:.1%}; "
              "the records say why, under `error`")
        return 3
    return 0
