"""From samples to records: decode, preprocess, caption; a record for each sample, in order.

H, W: height and width of the pictures that the captioner takes
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from captioners.base import Caption, Captioner, SamplingConfig
from imagetext.rows import caption_columns
from imagetext.sample import Record, Sample, decode_image

if TYPE_CHECKING:
    from torch import Tensor


class ColumnClash(ValueError):
    """A sample has captions in the column that is to be written."""


class Stopwatch:
    """How long the captioner waited for pictures, in seconds."""

    waited = 0.0


def caption_samples(samples: Iterable[Sample], captioner: Captioner, column: str, sampling: SamplingConfig, *,
                    similarity: bool = False, num_workers: int = 1, stopwatch: Stopwatch | None = None) -> Iterator[Record]:
    """Caption the samples, while threads decode the next ones: two of the captioner's batches ahead at most.

    A picture that does not decode, and one whose captions are all empty, is a Record with an error.

    Raises: ColumnClash; and whatever `samples` or the captioner raise.
    """
    def prepare(sample: Sample) -> tuple[Sample, "Tensor | None", str]:
        try:
            if reason := sample.meta.get("error"):
                raise ValueError(reason)
            found = caption_columns(sample.members.get("syn.json", b"{}"))
            pixels = None if column in found else captioner.preprocess(decode_image(sample.image))  # (3, H, W)
        except ValueError as error:
            return sample, None, str(error)
        if column in found:
            raise ColumnClash(f"{sample.key}: has the column {column} already; choose another with --column")
        return sample, pixels, ""

    stopwatch = stopwatch or Stopwatch()
    waiting: deque[tuple[Sample, str]] = deque()  # those the captioner has taken, and the failed ones between them

    def pictures() -> Iterator[tuple[str, "Tensor"]]:
        asked = time.monotonic()
        for sample, pixels, error in _map_ahead(pool, prepare, samples, ahead=2 * captioner.batch_size):
            waiting.append((sample, error))
            if not error:
                stopwatch.waited += time.monotonic() - asked
                yield sample.key, pixels
                asked = time.monotonic()

    with ThreadPoolExecutor(num_workers) as pool:
        for found in captioner.caption(pictures(), sampling, similarity=similarity):
            sample, error = waiting.popleft()
            while error:
                yield Record(sample, {}, error)
                sample, error = waiting.popleft()
            if found.key != sample.key:
                raise RuntimeError(f"captioner {captioner.name}: captions of {found.key!r} came for {sample.key!r}")
            yield _record(sample, column, found.captions)
        for sample, error in waiting:
            if not error:
                raise RuntimeError(f"captioner {captioner.name}: no captions came for {sample.key!r}")
            yield Record(sample, {}, error)


def _record(sample: Sample, column: str, captions: tuple[Caption, ...]) -> Record:
    if not any(caption.text.strip() for caption in captions):
        return Record(sample, {}, f"{column}: no caption that is not empty")
    scores = {"logprob": [round(caption.logprob, 4) for caption in captions],
              "truncated": [caption.truncated for caption in captions]}
    if captions[0].similarity is not None:
        scores["similarity"] = [round(caption.similarity, 4) for caption in captions]
    meta = {**sample.meta, "caption_scores": {**(sample.meta.get("caption_scores") or {}), column: scores}}
    return Record(replace(sample, meta=meta), {column: tuple(caption.text for caption in captions)})


def _map_ahead(pool: Executor, function: Callable[[Any], Any], items: Iterable[Any], ahead: int) -> Iterator[Any]:
    """`map(function, items)` in the pool, in order, with at most `ahead` items read and not yet taken."""
    items, begun = iter(items), deque()
    while True:
        begun.extend(pool.submit(function, item) for item in islice(items, ahead - len(begun)))
        if not begun:
            return
        yield begun.popleft().result()
