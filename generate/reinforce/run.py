"""`capsmith reinforce`: every shard without a done-marker gets views and teachers' embeddings; the same command again resumes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing.synchronize import Event
from typing import Any

from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

from captioners.device import check_device
from captioners.ranks import Rank
from generate.reinforce.config import ReinforceConfig
from generate.reinforce.report import REPORT, write_report
from generate.reinforce.stages import Settled, convert_samples, reinforce_samples, workers_for
from generate.reinforce.teachers import Teacher, load_teachers
from generate.runs.engines import engine_of
from generate.runs.inputs import Failures, hash_of, input_of, share_failed
from generate.runs.manifest import RULES, check_own, expect_run, expect_shards, read_run, wait_for_run
from generate.runs.out_of_memory import with_halved_batches
from generate.runs.processes import launch, own_rank
from generate.runs.protocol import Loaded, Pace, processes_wanted, workers_wanted
from generate.runs.start import begin, prepare
from generate.runs.workers import Workers
from imagetext.apart import ANOTHER
from imagetext.lock import FolderLock
from imagetext.outputs import remove, write_file
from imagetext.sample import Shard
from imagetext.shards import ShardWriter, read_marker, read_markers
from imagetext.shown import say
from imagetext.sources import read_samples
from imagetext.stores import join

CONFIG = "config.json"
SIDE = 224  # of views that no teacher sees


def run(config: ReinforceConfig, rank: Rank | None = None, begun: Event | None = None) -> int:
    """Reinforce the records of `config.input` into `config.output`, or this process's share of them.

    `rank` and `begun` come from `launch`, which starts the others once the first has begun the run.
    Returns: 0 done, 1 some shards failed, 3 done but more records failed than `max_error_rate` allows.
    Raises: ValueError for a bad input, teacher or output folder, before anything is written.
    """
    rank = rank or own_rank(config)
    check_own(config.output, "reinforce")  # then not even a lock is written there
    with FolderLock(config.output) as lock:
        return _run(config, rank, begun, lock.job)


def _run(config: ReinforceConfig, rank: Rank, begun: Event | None, job: str) -> int:
    """The run, of which the folder is locked for this job."""
    if config.engine == "embedded":  # the workers of a cluster look at their own machines
        check_device(config.device)
    if rank.number:
        wait_for_run(config.output)
    shards = read_samples(config.input, config.images, columns=config.table, needs=("pictures",))
    if rank.count == 1 and (processes := processes_wanted(config)) > 1:
        code = launch(
            "reinforce", config.model_copy(update={"report": False}), processes, job
        )  # once, when all have ended
        return code if code == 2 or code and read_run(config.output) is None else finish(config)
    work = Reinforcing(config)
    with engine_of(config, rank) as engine:
        prepared = prepare(work, engine, shards, rank, begun)
        if prepared.anew:
            for name in (CONFIG, REPORT):
                remove(join(config.output, name))
        begin(config.output, prepared, rank, begun)
        if not rank.number:
            write_file(
                join(config.output, CONFIG), json.dumps(description(config, prepared.fingerprint), indent=1).encode()
            )
        engine.do(work, prepared.to_do)
    return finish(config, rank, prepared.shards)


@dataclass
class Reinforcing:
    """The work of `capsmith reinforce`."""

    config: ReinforceConfig
    teachers: Sequence[Teacher] = ()
    settled: Settled = field(init=False, repr=False)  # once it is loaded
    workers: Workers | None = None  # from the first shard on
    doing = "reinforcing"
    unit = "record"
    instead = f"{ANOTHER}: all that the input holds goes there, too"

    def load(self, device: str, settled: Mapping[str, Any]) -> Loaded:
        dtype = self.config.dtype or settled.get("dtype") or ("bf16" if device.startswith("cuda") else "fp32")
        self.config = self.config.model_copy(update={"dtype": dtype})
        self.teachers = load_teachers(self.config.teacher, device, dtype)
        self.settled = settle(self.config, self.teachers, settled)
        models = [
            f"teacher {teacher.name}: {teacher.dimension} dimensions, logit scale {teacher.logit_scale:.4g}, "
            f"{teacher.size[0]} x {teacher.size[1]} px"
            for teacher in self.teachers
        ]
        return Loaded(fingerprint(self.config, self.settled, self.teachers), models)

    def write(self, shard: Shard, pace: Pace, following: Shard | None = None) -> None:
        """Reinforce and write one shard; out of memory, it is begun anew with half the batch, and its marker says so."""
        if self.workers is None and not self.config.convert:
            self.workers = workers_for(self.config, self.settled.size, workers_wanted(self.config))
        workers = self.workers

        def write(sizes: Sequence[int]) -> None:
            settled = Settled(self.settled.size, *sizes)
            write_shard(
                shard,
                self.teachers,
                self.config,
                settled,
                workers,
                pace,
                following,
                {} if settled == self.settled else {"batch_size": settled.batch_size},
            )

        with_halved_batches(write, [self.settled.batch_size], "views or texts at a time", shard, pace)

    def close(self) -> None:
        if self.workers is not None:
            self.workers.close()
        self.workers = None


def write_shard(
    shard: Shard,
    teachers: Sequence[Teacher],
    config: ReinforceConfig,
    settled: Settled,
    workers: Workers | None,
    pace: Pace,
    following: Shard | None,
    info: Mapping[str, Any],
) -> None:
    """Reinforce and write one shard, or convert it without workers; its marker gets `info`."""
    failures, originals, before = Failures(), 0, read_marker(config.output, shard.name)
    with ShardWriter(
        config.output,
        shard.name,
        format=config.format,
        originals=config.embeddings == "none",
        input=input_of(shard),
    ) as writer:
        for record, text in (
            convert_samples(shard, config)
            if workers is None
            else reinforce_samples(shard, teachers, config, settled, workers, following)
        ):
            writer.write(record, text)
            pace.count(bool(record.error))
            failures.update(record.error, before=record.failed_before)
            originals += not record.error and not record.syn_text
        writer.info |= {**info, **hash_of(shard), **failures.in_marker(before)}
        writer.info |= {"originals_alone": originals} if originals else {}


def settle(config: ReinforceConfig, teachers: Sequence[Teacher], earlier: Mapping[str, Any]) -> Settled:
    """What the configuration leaves open: as the run has it already, by its fingerprint, or else as fits the teachers.

    Raises: ValueError where a teacher takes larger pictures than the views are.
    """
    largest = max((max(teacher.size) for teacher in teachers), default=SIDE)
    size = config.size or largest
    if larger := [f"{teacher.name} ({max(teacher.size)})" for teacher in teachers if max(teacher.size) > size]:
        raise ValueError(f"--size: {size} is smaller than the pictures that these teachers take: {', '.join(larger)}")
    on_gpu = any(teacher.device.startswith("cuda") for teacher in teachers)
    return Settled(size, config.batch_size or earlier.get("batch_size") or (256 if on_gpu else 32))


def fingerprint(config: ReinforceConfig, settled: Settled, teachers: Sequence[Teacher]) -> dict[str, Any]:
    """All that, with a shard's records, decides the shard's bytes; not devices, ranks, workers, or teachers in turn."""
    versions = {
        name: ".".join(version(name).split(".")[:2])
        for name in ("torch", "torchvision", "pillow", "open_clip_torch", "capsmith")
    }
    fields = ("views", "crop_area", "embeddings", "convert", "seed", "dtype", "text_from_synthetic", "format")
    return {
        "rules": RULES,
        "columns": {},
        "embedded_columns": config.columns,
        **config.model_dump(include=set(fields)),
        **settled._asdict(),
        "teachers": {str(number): teacher.describe() for number, teacher in enumerate(teachers)},
        "versions": versions,
    }


def description(config: ReinforceConfig, run: Mapping[str, Any]) -> dict[str, Any]:
    """`config.json`, by the run's fingerprint; also what `--dataset-reinforcement-config` of the official trainer reads."""
    teachers = list(run["teachers"].values())
    mean, std = (teachers[0]["mean"], teachers[0]["std"]) if teachers else (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
    augmentation = {
        "random_resized_crop": {"size": run["size"], "scale": [run["crop_area"], 1.0], "interpolation": "bicubic"},
        "rand_augment": {"enable": True, "p": 1.0},
        "to_rgb": {"enable": True},
        "to_tensor": {"enable": True},
        "normalize": {"mean": list(mean), "std": list(std)},
    }
    return {
        "model_name": ",".join(config.teacher),
        "num_samples": config.views,
        "reinforce": {"image_augmentation": augmentation},
        "teachers": teachers,
        "columns": config.columns,
        "embeddings": config.embeddings,
    }


def finish(config: ReinforceConfig, rank: Rank = Rank(), shards: Sequence[Shard] = ()) -> int:
    """Print what the run's shards hold, or of several processes this one's; write the report where all are done; the exit code."""
    markers, names = read_markers(config.output), expect_shards(config.output)
    own = names if rank.count == 1 else [shard.name for shard in rank.share(shards)]
    missing = [name for name in own if name not in markers]
    done = [markers[name] for name in own if name in markers]
    records, failed = sum(marker["rows"] for marker in done), sum(marker["failed"] for marker in done)
    say(
        f"{config.output}: {records:,} records, {failed:,} without views ({failed / max(records, 1):.1%}), "
        f"in {len(done):,} {config.format} shards"
    )
    if originals := sum(marker.get("originals_alone", 0) for marker in done):
        say(
            f"{originals:,} of them have no synthetic captions: train-student trains on their originals, but the official "
            "trainer, which draws a synthetic caption of every record, ends at the first of them"
        )
    rate = share_failed(done)
    if config.report and markers.keys() >= set(names):
        write_report(config.output, list(expect_run(config.output)["teachers"].values()))
    if missing:
        say(f"{len(missing)} of {len(own)} shards failed: {', '.join(missing)}; the same command tries them again")
        return 1
    if rate > config.max_error_rate:
        say(
            f"{rate:.1%} of the records failed, more than --max-error-rate {config.max_error_rate:.1%}; "
            "the records say why, under `error`"
        )
        return 3
    return 0
