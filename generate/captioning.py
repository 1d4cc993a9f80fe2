"""From samples to records: decode, preprocess, caption; a record for each sample, in order.

H, W: height and width of the pictures that the captioner takes
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from captioners.base import Caption, Captioner, SamplingConfig
from imagetext.rows import caption_columns
from imagetext.sample import Record, Sample, decode_image


class ColumnClash(ValueError):
    """A sample has captions in the column that is to be written."""


class Stopwatch:
    """How long the captioner waited for pictures, in seconds."""

    waited = 0.0


class _Decoded(Dataset):
    """Pictures decoded and preprocessed, in worker processes; asked for by what they are: encoded bytes, or why there are none."""

    def __init__(self, preprocess: Callable[[Image.Image], Tensor]):
        self.preprocess = preprocess

    def __getitem__(self, asked: tuple[bytes | None, str]) -> tuple[Tensor | None, str]:
        """Pixels (3, H, W), or the reason for none."""
        encoded, error = asked
        try:
            return (None, error) if error else (self.preprocess(decode_image(encoded)), "")
        except ValueError as undecodable:
            return None, str(undecodable)


def caption_samples(samples: Iterable[Sample], captioner: Captioner, column: str, sampling: SamplingConfig, *,
                    similarity: bool = False, num_workers: int = 0, stopwatch: Stopwatch | None = None) -> Iterator[Record]:
    """Caption the samples, while `num_workers` processes decode about two batches ahead (0: this process, none ahead).

    A picture that does not decode, and one whose captions are all empty, is a Record with an error.

    Raises: ColumnClash; and whatever `samples` or the captioner raise.
    """
    stopwatch = stopwatch or Stopwatch()
    asked: deque[Sample] = deque()  # of the workers
    waiting: deque[tuple[Sample, str]] = deque()  # those the captioner has taken, and the failed ones between them

    def requests() -> Iterator[tuple[bytes | None, str]]:
        for sample in samples:
            asked.append(sample)
            yield sample.image, _problem(sample, column)

    ahead = -(-2 * captioner.batch_size // num_workers) if num_workers else None
    decoded = DataLoader(_Decoded(captioner.preprocess), sampler=requests(), batch_size=None, num_workers=num_workers,
                         prefetch_factor=ahead)

    def pictures() -> Iterator[tuple[str, Tensor]]:
        start = time.monotonic()
        for pixels, error in decoded:
            waiting.append((sample := asked.popleft(), error))
            if not error:
                stopwatch.waited += time.monotonic() - start
                yield sample.key, pixels
                start = time.monotonic()

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


def _problem(sample: Sample, column: str) -> str:
    """What is known to be wrong with the sample before its picture is decoded; ColumnClash where it has the column."""
    try:
        found = caption_columns(sample.members.get("syn.json", b"{}"))
    except ValueError as error:
        return sample.meta.get("error") or str(error)
    if column in found:
        raise ColumnClash(f"{sample.key}: has the column {column} already; choose another with --column")
    return sample.meta.get("error", "")


def _record(sample: Sample, column: str, captions: tuple[Caption, ...]) -> Record:
    if not any(caption.text.strip() for caption in captions):
        return Record(sample, {}, f"{column}: no caption that is not empty")
    scores = {"logprob": [round(caption.logprob, 4) for caption in captions],
              "truncated": [caption.truncated for caption in captions]}
    if captions[0].similarity is not None:
        scores["similarity"] = [round(caption.similarity, 4) for caption in captions]
    meta = {**sample.meta, "caption_scores": {**(sample.meta.get("caption_scores") or {}), column: scores}}
    return Record(replace(sample, meta=meta), {column: tuple(caption.text for caption in captions)})
