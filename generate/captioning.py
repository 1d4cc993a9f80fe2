"""From samples to records, in stages that each take pictures in order and hand them on in order.

decode -> a column's captions -> the next column's … -> redraws of what the gate refuses -> records

H, W: height and width of the pictures that a captioner takes
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from captioners.base import Captioned, Captioner, SamplingConfig
from generate.quality import Gate, Judged, judge_all, replace_failing
from imagetext.columns import ColumnClash, room_for
from imagetext.sample import Record, Sample, decode_image

REDRAWN_AT_ONCE = 256  # pictures, good ones among them, that a redraw waits for: more fill its batches, and memory


class Stopwatch:
    """How long the captioners waited for pictures, in seconds."""

    waited = 0.0


@dataclass(frozen=True)
class Column:
    """A column to write, as the run has settled it: its captioner, how it draws, and what becomes of degenerate captions.

    `dtype` is the captioner's, `batch_size` counts the pictures in flight.
    """

    name: str
    captioner: Captioner
    sampling: SamplingConfig = SamplingConfig()
    gate: Gate = Gate()
    similarity: bool = False
    dtype: str = "fp32"
    batch_size: int = 16

    def caption(self, images: Iterable[tuple[str, Tensor]], redraw: int = 0) -> Iterator[Captioned]:
        """The captions of (key, picture) pairs; redraw r of caption i draws as number `num_captions * r + i`."""
        return self.captioner.caption(images, self.sampling, first_index=self.sampling.num_captions * redraw,
                                      similarity=self.similarity or self.gate.min_similarity is not None,
                                      batch_size=self.batch_size)


@dataclass
class Picture:
    """A sample on its way: its pixels for each captioner, or why there are none, and what was said of it so far."""

    sample: Sample
    pixels: Sequence[Tensor] = ()  # (3, H, W) for each column
    error: str = ""
    captions: dict[str, list[Judged]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # why a column has no captions, where its captioner took no picture

    def failing(self, column: Column) -> bool:
        return any(judged.flags for judged in self.captions.get(column.name, ()))


class _Decoded(Dataset):
    """Pictures decoded and preprocessed, in worker processes; asked for by their encoded bytes, or by why there are none."""

    def __init__(self, preprocess: Sequence[Callable[[Image.Image], Tensor]]):
        self.preprocess = preprocess  # of each column; columns of one captioner share theirs

    def __getitem__(self, asked: tuple[bytes | None, str]) -> tuple[list[Tensor], str]:
        """Pixels (3, H, W) for each column, or the reason for none."""
        encoded, error = asked
        if error:
            return [], error
        try:
            image = decode_image(encoded)
            pixels = {preprocess: preprocess(image) for preprocess in dict.fromkeys(self.preprocess)}
        except ValueError as undecodable:
            return [], str(undecodable)
        return [pixels[preprocess] for preprocess in self.preprocess], ""


def caption_samples(samples: Iterable[Sample], columns: Sequence[Column], *, overwrite: bool = False,
                    drop_text_embeddings: bool = False, num_workers: int = 0,
                    stopwatch: Stopwatch | None = None) -> Iterator[Record]:
    """A record for each sample, in order, while `num_workers` processes decode about two batches ahead (0: this one, none).

    A picture that does not decode or that no captioner takes, and one with no caption left in any column, is a Record with an
    error.
    overwrite, drop_text_embeddings: what may go from a sample to make room for the columns, as in `imagetext.columns.room_for`.

    Raises: ColumnClash where more must; and whatever `samples` or the captioners raise.
    """
    names = [column.name for column in columns]

    def with_room(sample: Sample) -> Sample:
        try:
            return room_for(sample, names, overwrite=overwrite, drop_text_embeddings=drop_text_embeddings)
        except ColumnClash:
            raise
        except ValueError as error:  # its own columns cannot be read
            return replace(sample, meta={**sample.meta, "error": str(error)})

    pictures = _decode(map(with_room, samples), columns, num_workers, stopwatch or Stopwatch())
    for at, column in enumerate(columns):
        pictures = _draw(pictures, column, at)
    for at, column in enumerate(columns):
        if column.gate.redraws and column.sampling.strategy == "sample":
            pictures = _redraw(pictures, column, at)
    return (_record(picture, columns) for picture in pictures)


def _decode(samples: Iterable[Sample], columns: Sequence[Column], num_workers: int, stopwatch: Stopwatch) -> Iterator[Picture]:
    asked: deque[Sample] = deque()  # of the workers

    def requests() -> Iterator[tuple[bytes | None, str]]:
        for sample in samples:
            asked.append(sample)
            yield sample.image, sample.meta.get("error", "")

    largest = max(column.batch_size for column in columns)
    decoded = DataLoader(_Decoded([column.captioner.preprocess for column in columns]), sampler=requests(), batch_size=None,
                         num_workers=num_workers, prefetch_factor=-(-2 * largest // num_workers) if num_workers else None)
    start = time.monotonic()
    for pixels, error in decoded:
        stopwatch.waited += time.monotonic() - start
        yield Picture(asked.popleft(), pixels, error)
        start = time.monotonic()


def _draw(pictures: Iterable[Picture], column: Column, at: int) -> Iterator[Picture]:
    """The pictures with the column's captions, judged; `at` is its place among the columns."""
    for picture, found in _captioned(pictures, column, at, lambda picture: not picture.error):
        if found is not None:
            picture.captions[column.name] = judge_all(found.captions, column.gate)
            if found.error:
                picture.refused[column.name] = found.error
        yield picture


def _redraw(pictures: Iterable[Picture], column: Column, at: int) -> Iterator[Picture]:
    """The pictures, in which each failing caption is drawn anew until one passes, at most `redraws` times."""
    pictures = iter(pictures)
    while together := list(islice(pictures, REDRAWN_AT_ONCE)):
        for redraw in range(1, column.gate.redraws + 1):
            for picture, found in _captioned(together, column, at, lambda picture: picture.failing(column), redraw):
                if found is not None:
                    picture.captions[column.name] = replace_failing(picture.captions[column.name], found.captions, column.gate)
        yield from together


def _captioned(pictures: Iterable[Picture], column: Column, at: int, wanted: Callable[[Picture], bool],
               redraw: int = 0) -> Iterator[tuple[Picture, Captioned | None]]:
    """Each picture, in order, with what the column's captioner says of it where it is wanted."""
    waiting: deque[tuple[Picture, bool]] = deque()  # those the captioner has taken, and the others between them

    def taken() -> Iterator[tuple[str, Tensor]]:
        for picture in pictures:
            waiting.append((picture, asked := wanted(picture)))
            if asked:
                yield picture.sample.key, picture.pixels[at]

    def others() -> Iterator[tuple[Picture, None]]:
        while waiting and not waiting[0][1]:
            yield waiting.popleft()[0], None

    for found in column.caption(taken(), redraw):
        yield from others()
        picture, _ = waiting.popleft()
        if found.key != picture.sample.key:
            raise RuntimeError(f"captioner {column.captioner.name}: captions of {found.key!r} came for {picture.sample.key!r}")
        yield picture, found
    yield from others()
    if waiting:
        raise RuntimeError(f"captioner {column.captioner.name}: no captions came for {waiting[0][0].sample.key!r}")


def _record(picture: Picture, columns: Sequence[Column]) -> Record:
    if picture.error:
        return Record(picture.sample, {}, picture.error)
    syn_text, scores, refused = {}, {}, []
    for column in columns:
        judged = picture.captions[column.name]
        kept = [one for one in judged if one.text.strip() and not (one.flags and column.gate.on_degenerate == "drop")]
        if kept:
            syn_text[column.name] = tuple(one.text for one in kept)
            scores[column.name] = _scores(kept)
        else:
            reason = picture.refused.get(column.name) or f"no caption passed: {'; '.join(_reasons(judged))}"
            refused.append(f"{column.name}: {reason}")
    if not syn_text:
        return Record(picture.sample, {}, ", ".join(refused))
    meta = {**picture.sample.meta, "caption_scores": {**(picture.sample.meta.get("caption_scores") or {}), **scores}}
    return Record(replace(picture.sample, meta=meta), syn_text)


def _scores(kept: Sequence[Judged]) -> dict[str, list]:
    """What a record says of a column's captions, a list of each with one entry a caption; flags are words with spaces between."""
    scores = {"logprob": [None if one.drawn.logprob is None else round(one.drawn.logprob, 4) for one in kept],
              "truncated": [one.truncated for one in kept], "flags": [" ".join(one.flags) for one in kept]}
    if kept[0].drawn.similarity is not None:
        scores["similarity"] = [round(one.drawn.similarity, 4) for one in kept]
    return scores


def _reasons(judged: Sequence[Judged]) -> list[str]:
    """The refused captions, each with its flags, a few words of them."""
    return [f"{' '.join(one.flags)} {one.text[:40]!r}" for one in judged]
