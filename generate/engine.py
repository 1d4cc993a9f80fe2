"""`capsmith generate`: every shard without a done-marker is captioned and written; the same command again resumes."""

import logging
import time
from collections.abc import Sequence

import psutil
import torch
from tqdm import tqdm

from captioners.base import Captioner
from captioners.coca import load_captioner
from generate.captioning import ColumnClash, Stopwatch, caption_samples
from generate.config import GenerateConfig
from generate.manifest import check_same, clear_run, fingerprint, input_of, read_run, shards_to_do, write_run
from imagetext.shards import ShardWriter, check_column, read_marker
from imagetext.sources import Shard, read_samples

logger = logging.getLogger(__name__)


def run(config: GenerateConfig) -> int:
    """Caption the pictures of `config.input` into `config.output`.

    Returns: 0 done, 1 some shards failed, 3 done but more pictures failed than `max_error_rate` allows.
    Raises: ValueError for a bad input, model, column or output folder, before anything is written.
    """
    shards = read_samples(config.input, config.images)
    earlier = read_run(config.output)
    anew = config.overwrite or not any(config.output.glob("*.done.json"))  # nothing is done that could differ
    settled = earlier if earlier and not anew else {}
    device = choose_device(config.device)
    dtype = config.dtype or settled.get("dtype") or ("bf16" if device.startswith("cuda") else "fp32")

    captioner = load_captioner(config.model, config.pretrained, device=device, dtype=dtype)
    captioner.caption((), config.sampling, similarity=config.similarity)  # raises where these do not fit the captioner
    captioner.batch_size = (config.batch_size or settled.get("batch_size")
                            or fitting_batch_size(captioner.bytes_per_picture(config.sampling), device))
    print(captioner.description)
    column = config.column or check_column(f"syn_text_{captioner.name}")
    now = fingerprint(captioner=captioner.name, weights_sha256=captioner.weights_sha256, sampling=config.sampling.model_dump(),
                      columns=[column], text_from_synthetic=config.text_from_synthetic, similarity=config.similarity, dtype=dtype,
                      batch_size=captioner.batch_size, format=config.format)
    if settled:
        check_same(config.output, settled, now)
    elif earlier:
        clear_run(config.output)
    to_do = shards_to_do(config.output, shards)
    write_run(config.output, now)
    caption_shards(to_do, captioner, column, config)
    return summarise(shards, column, config)


def choose_device(name: str | None) -> str:
    """The device of that name, or the best there is; ValueError where there is none of that name."""
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r}: {str(error).splitlines()[0]}") from error
    return name


def fitting_batch_size(bytes_per_picture: int, device: str) -> int:
    """How many pictures in flight half of the free memory holds, but not more than make a step faster per picture."""
    if device.startswith("cuda"):
        free, most = torch.cuda.mem_get_info(device)[0], 256
    else:
        free, most = psutil.virtual_memory().available, 16
    return max(1, min(most, free // (2 * bytes_per_picture)))


def caption_shards(shards: Sequence[Shard], captioner: Captioner, column: str, config: GenerateConfig) -> None:
    """Caption and write the shards, one after the other; one that fails is logged and left for the next run."""
    pace = Pace()
    with tqdm(desc="captioning", unit="picture", mininterval=1, disable=not shards) as progress:
        for number, shard in enumerate(shards, 1):
            progress.set_description(f"captioning {shard.name} ({number}/{len(shards)})")
            try:
                caption_shard(shard, captioner, column, config, progress, pace)
            except ColumnClash:
                raise
            except Exception as error:  # a store, a damaged file, the model: the shard fails, the run goes on
                logger.error("shard %s of %s failed: %s", shard.name, shard.path, error,
                             exc_info=not isinstance(error, (OSError, ValueError)))
    if pace.captions:
        print(pace)


def caption_shard(shard: Shard, captioner: Captioner, column: str, config: GenerateConfig, progress: tqdm, pace: "Pace") -> None:
    """Caption and write one shard; out of memory, it is begun anew with half the batch, and its marker says so."""
    batch_size = captioner.batch_size
    try:
        while True:
            done = 0
            try:
                with ShardWriter(config.output, shard.name, format=config.format, columns=[column], input=input_of(shard),
                                 text_from_synthetic=config.text_from_synthetic) as writer:
                    if captioner.batch_size < batch_size:
                        writer.info["batch_size"] = captioner.batch_size
                    for record in caption_samples(shard, captioner, column, config.sampling, similarity=config.similarity,
                                                  num_workers=config.num_workers, stopwatch=pace):
                        writer.write(record)
                        done += 1
                        pace.count(record.syn_text.get(column, ()))
                        progress.set_postfix_str(str(pace), refresh=False)
                        progress.update()
                return
            except torch.OutOfMemoryError:
                if captioner.batch_size == 1:
                    raise
                captioner.batch_size //= 2
                progress.update(-done)
                logger.warning("shard %s: out of memory, begun anew with %d pictures in flight", shard.name, captioner.batch_size)
                torch.cuda.empty_cache()  # nothing without a GPU
    finally:
        captioner.batch_size = batch_size


class Pace(Stopwatch):
    """How fast a run goes, from its first picture on."""

    def __init__(self) -> None:
        self.pictures = self.captions = 0
        self.start = time.monotonic()

    def count(self, captions: Sequence[str]) -> None:
        self.pictures += 1
        self.captions += len(captions)

    def __str__(self) -> str:
        seconds = time.monotonic() - self.start
        return (f"{self.pictures / seconds:.1f} pictures/s, {self.captions / seconds:.1f} captions/s, "
                f"the model waited {self.waited / seconds:.0%} of the time")


def summarise(shards: Sequence[Shard], column: str, config: GenerateConfig) -> int:
    """Print what the run's records hold, by their markers, and return the exit code."""
    markers = {shard.name: read_marker(config.output, shard.name) for shard in shards}
    missing = [name for name, marker in markers.items() if marker is None]
    done = [marker for marker in markers.values() if marker is not None]
    pictures, failed = sum(marker["rows"] for marker in done), sum(marker["failed"] for marker in done)
    captions = sum(marker["captions"].get(column, 0) for marker in done)
    rate = failed / max(pictures, 1)
    print(f"{config.output}: {captions:,} captions in {column} of {pictures:,} pictures, {failed:,} without ({rate:.1%}), "
          f"in {len(done):,} {config.format} shards")
    if missing:
        print(f"{len(missing)} of {len(shards)} shards failed: {', '.join(missing)}; the same command tries them again")
        return 1
    if rate > config.max_error_rate:
        print(f"{rate:.1%} of the pictures failed, more than --max-error-rate {config.max_error_rate:.1%}; "
              "the records say why, under `error`")
        return 3
    return 0
