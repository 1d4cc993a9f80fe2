"""`capsmith reinforce`: adds views and embeddings to all shards without a done-marker; the same command resumes."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

from captioners.device import check_device
from captioners.ranks import Rank
from generate.reinforce.config import ReinforceConfig
from generate.reinforce.report import REPORT, write_report
from generate.reinforce.stages import ViewSettings, convert_samples, reinforce_samples, workers_for
from generate.reinforce.teachers import Teacher, load_teachers
from generate.runs.engines import engine_of
from generate.runs.failures import Failures, exit_code_of_run, share_failed
from generate.runs.inputs import hash_of, input_of
from generate.runs.manifest import (
    CONFIG,
    RULES,
    check_own,
    expect_run,
    expect_shards,
    minor_versions,
    read_own_markers,
    read_run,
    wait_for_run,
)
from generate.runs.out_of_memory import with_halved_batches
from generate.runs.processes import launch, own_rank
from generate.runs.protocol import Loaded, Pace, processes_wanted, workers_wanted
from generate.runs.set_card import write_set_card
from generate.runs.start import begin, prepare
from generate.runs.workers import Workers
from imagetext.apart import ANOTHER
from imagetext.lock import FolderLock
from imagetext.outputs import remove, write_file
from imagetext.sample import Shard
from imagetext.shards import ShardWriter, read_marker
from imagetext.shown import counted, say
from imagetext.sources import check_table_flags, read_samples
from imagetext.stores import join

DEFAULT_SIZE = 224  # side of views without a teacher
# The settings that decide what the records hold.
DECIDING = {
    *("input", "teacher", "views", "size", "crop_area", "columns", "embeddings", "convert", "seed"),
    "text_from_synthetic",
}


def run(config: ReinforceConfig, rank: Rank | None = None, on_begun: Callable[[], None] | None = None) -> int:
    """Reinforce the records of `config.input` into `config.output`, or this process's share of them.

    `rank` and `on_begun` come from `launch`, which starts the other processes once the first has begun the run.
    Returns: 0 done, 1 some shards failed, 3 done but more records failed than `max_error_rate` allows.
    Raises: ValueError for a bad input, teacher or output folder, before anything is written.
    """
    rank = rank or own_rank(config)
    if rank.number:
        wait_for_run(config.output)
    check_own(config.output, "reinforce")  # before the lock, so that nothing is written to another command's folder
    with FolderLock(config.output) as lock:
        return _run(config, rank, on_begun, job=lock.job)


def _run(config: ReinforceConfig, rank: Rank, on_begun: Callable[[], None] | None, *, job: str) -> int:
    """Do the run. job: the job that has locked the output folder."""
    if config.engine == "embedded":  # workers of a cluster check the devices of their own machines
        check_device(config.device)
    shards = read_samples(config.input, config.images, columns=config.table, needs=("pictures",))
    check_table_flags(shards, config.table)
    if rank.count == 1 and (processes := processes_wanted(config)) > 1:
        # The report is written once, when all processes have ended.
        code = launch("reinforce", config.model_copy(update={"report": False}), processes, job=job)
        was_never_begun = code and read_run(config.output) is None
        return code if code == 2 or was_never_begun else finish(config)
    work = Reinforcing(config)
    with engine_of(config, rank) as engine:
        prepared = prepare(work, engine, shards, rank=rank, on_begun=on_begun)
        if prepared.anew:
            for name in (CONFIG, REPORT):
                remove(join(config.output, name))
        begin(config.output, prepared, rank, on_begun=on_begun)
        if not rank.number:
            content = json.dumps(description(config, prepared.fingerprint), indent=1)
            write_file(join(config.output, CONFIG), content.encode())
        engine.do(work, prepared.to_do)
    return finish(config, rank, prepared.shards)


@dataclass
class Reinforcing:
    """The work of `capsmith reinforce`, as `generate.runs.protocol.Work` describes it."""

    config: ReinforceConfig
    teachers: Sequence[Teacher] = ()
    settled: ViewSettings = field(init=False, repr=False)  # set by `load`
    workers: Workers | None = None  # from the first shard on
    doing = "reinforcing"
    unit = "record"
    instead = f"{ANOTHER}: everything that the input holds is copied there"

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
        """Reinforce and write one shard.

        Out of memory, the shard is begun anew with half the batch size, and its marker says so.
        """
        if self.workers is None and not self.config.convert:
            self.workers = workers_for(self.config, self.settled.size, workers_wanted(self.config))
        workers = self.workers

        def write(sizes: Sequence[int]) -> None:
            (batch_size,) = sizes
            write_shard(
                shard,
                self.teachers,
                self.config,
                batch_size=batch_size,
                workers=workers,
                pace=pace,
                following=following,
                info={} if batch_size == self.settled.batch_size else {"batch_size": batch_size},
            )

        with_halved_batches(write, [self.settled.batch_size], "views or texts at a time", shard=shard, pace=pace)

    def close(self) -> None:
        if self.workers is not None:
            self.workers.close()
        self.workers = None


def write_shard(
    shard: Shard,
    teachers: Sequence[Teacher],
    config: ReinforceConfig,
    *,
    batch_size: int,
    workers: Workers | None,
    pace: Pace,
    following: Shard | None,
    info: Mapping[str, Any],
) -> None:
    """Reinforce and write one shard, or convert it where there are no workers; its marker gets `info`."""
    failures, originals, earlier_marker = Failures(), 0, read_marker(config.output, shard.name)
    if workers is None:
        records = convert_samples(shard, config)
    else:
        records = reinforce_samples(
            shard, teachers, config, batch_size=batch_size, workers=workers, following=following
        )
    with ShardWriter(
        config.output,
        shard.name,
        format=config.format,
        originals=config.embeddings == "none",
        input=input_of(shard),
    ) as writer:
        for record, text in records:
            writer.write(record, text)
            pace.count(bool(record.error))
            failures.update(record.error, before=record.failed_before)
            originals += not record.error and not record.syn_text
        writer.info |= {**info, **hash_of(shard), **failures.in_marker(earlier_marker)}
        writer.info |= {"originals_alone": originals} if originals else {}


def settle(config: ReinforceConfig, teachers: Sequence[Teacher], earlier: Mapping[str, Any]) -> ViewSettings:
    """Settle what the configuration leaves open: as in the run's `earlier` fingerprint, or else as fits the teachers.

    Raises: ValueError where a teacher takes larger pictures than the views are.
    """
    size = config.size or max((max(teacher.size) for teacher in teachers), default=DEFAULT_SIZE)
    if larger := [f"{teacher.name} ({max(teacher.size)})" for teacher in teachers if max(teacher.size) > size]:
        raise ValueError(f"--size: {size} is smaller than the pictures that these teachers take: {', '.join(larger)}")
    on_gpu = any(teacher.device.startswith("cuda") for teacher in teachers)
    return ViewSettings(size, config.batch_size or earlier.get("batch_size") or (256 if on_gpu else 32))


def fingerprint(config: ReinforceConfig, settled: ViewSettings, teachers: Sequence[Teacher]) -> dict[str, Any]:
    """Return all settings that, with the records of a shard, decide its bytes; devices, ranks and workers do not."""
    fields = ("views", "crop_area", "embeddings", "convert", "seed", "dtype", "text_from_synthetic", "format")
    return {
        "rules": RULES,
        "columns": {},
        "embedded_columns": config.columns,
        **config.model_dump(include=set(fields)),
        **settled._asdict(),
        "teachers": {str(number): teacher.describe() for number, teacher in enumerate(teachers)},
        "versions": minor_versions("torch", "torchvision", "pillow", "open_clip_torch", "capsmith"),
    }


def description(config: ReinforceConfig, run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of `config.json`, by the run's fingerprint.

    The official trainer reads it, too, by its flag `--dataset-reinforcement-config`.
    """
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
    """Print what the shards hold, write the report where all are done, and return the exit code.

    Where several processes work on the run, only this process's shards are printed; `shards` are those of all
    processes.
    """
    markers, names = read_own_markers(config.output), expect_shards(config.output)
    own_names = names if rank.count == 1 else [shard.name for shard in rank.share(shards)]
    missing = [name for name in own_names if name not in markers]
    done = [markers[name] for name in own_names if name in markers]
    records, failed = sum(marker["rows"] for marker in done), sum(marker["failed"] for marker in done)
    say(
        f"{config.output}: {counted(records, 'record')}, {failed:,} without views ({failed / max(records, 1):.1%}), "
        f"in {counted(len(done), f'{config.format} shard')}"
    )
    if originals := sum(marker.get("originals_alone", 0) for marker in done):
        say(
            f"{originals:,} of them have no synthetic captions: train-student trains on their original captions, but "
            "the official trainer needs a synthetic caption of every record, and stops at the first record without one"
        )
    failed_share = share_failed(done)
    if markers.keys() >= set(names):
        settings = config.model_dump(mode="json", include=DECIDING, exclude_defaults=True)
        title = f"Records of {', '.join(config.input)}, with augmented views and embeddings"
        write_set_card(config.output, "reinforce", title, [markers[name] for name in names], settings)
        if config.report:
            write_report(config.output, list(expect_run(config.output)["teachers"].values()))
    return exit_code_of_run(missing, own_names, done, failed_share, most=config.max_error_rate, unit="record")
