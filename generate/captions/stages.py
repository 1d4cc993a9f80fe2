"""From pictures to records with captions, in stages that each take pictures in order and hand them on in order.

prepare (workers) -> a column's captions -> the next column's … -> redraws of what the gate refuses -> records

What is said of a picture is judged in another thread, so that the one that calls the captioners goes on.

H, W: height and width of the pictures that a captioner takes
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice

from PIL import Image
from torch import Tensor

from captioners.base import Captioned, Captioner, Request, SamplingConfig
from generate.captions.gate import Gate, Judged, judge_all, replace_failing
from generate.runs.workers import Background, Stopwatch, Workers, decoding
from imagetext.sample import Record, decode_image
from imagetext.sets.room import room_for

REDRAWN_AT_ONCE = 256  # pictures, good ones among them, that a redraw waits for: more fill its batches, and memory


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

    def check(self) -> None:
        """Raises ValueError where the captioner does not do what the column asks."""
        self.captioner.check(self.sampling, similarity=self.needs_similarity)

    def caption(self, requests: Iterable[Request], redraw: int = 0) -> Iterator[Captioned]:
        """The captions of requests; redraw r of caption i draws as number `num_captions * r + i`."""
        return self.captioner.caption(
            requests,
            self.sampling,
            column=self.name,
            first_index=self.sampling.num_captions * redraw,
            similarity=self.needs_similarity,
            batch_size=self.batch_size,
        )

    @property
    def needs_similarity(self) -> bool:
        return self.similarity or self.gate.min_similarity is not None


@dataclass
class Picture:
    """A record on its way: its pixels for each captioner, or why there are none, and what was said of it so far."""

    record: Record
    pixels: Sequence[Tensor] = ()  # (3, H, W) for each column
    error: str = ""
    captions: dict[str, Future[list[Judged]]] = field(default_factory=dict)  # of each column
    refused: dict[str, str] = field(
        default_factory=dict
    )  # why a column has no captions, where its captioner took no picture

    def failing(self, column: Column) -> bool:
        return column.name in self.captions and any(judged.flags for judged in self.captions[column.name].result())


def caption_samples(
    samples: Iterable[Record], columns: Sequence[Column], *, num_workers: int = 0, **room: bool
) -> Iterator[Record]:
    """A record for each sample, in order: as `caption_pictures`, for samples that are no run's; `room` is for `workers_for`."""
    with closing(workers_for(columns, num_workers, **room)) as workers, closing(Background()) as judge:
        for picture in caption_pictures(samples, columns, workers, judge, Stopwatch()):
            yield record_of(picture, columns)


def workers_for(
    columns: Sequence[Column], count: int, *, overwrite: bool = False, drop_text_embeddings: bool = False
) -> Workers[Record, tuple[bytes | None, str], tuple[list[Tensor], str]]:
    """Workers that prepare records' pictures for the columns.

    overwrite, drop_text_embeddings: what may go from a record to make room for the columns, as in `imagetext.sets.room.room_for`;
    where more must, reading it raises ColumnClash.
    """
    names = [column.name for column in columns]

    def with_room(record: Record) -> Record:
        return room_for(record, names, overwrite=overwrite, drop_text_embeddings=drop_text_embeddings)

    def requests(records: Iterable[Record]) -> Iterator[tuple[Record, tuple[bytes | None, str]]]:
        for record in map(with_room, records):
            yield record, (record.image, record.error)

    return Workers(requests, partial(_prepare, [column.captioner.preprocess for column in columns]), count)


def _prepare(
    preprocess: Sequence[Callable[[Image.Image], Tensor]], asked: tuple[bytes | None, str]
) -> tuple[list[Tensor], str]:
    """Pixels (3, H, W) for each column, or the reason for none, which may be known; columns of one captioner share theirs."""
    encoded, error = asked
    if error:
        return [], error
    try:
        with decoding(encoded):
            image = decode_image(encoded)
            pixels = {one: one(image) for one in dict.fromkeys(preprocess)}
            del image
    except ValueError as undecodable:
        return [], str(undecodable)
    return [pixels[one] for one in preprocess], ""


def caption_pictures(
    samples: Iterable[Record],
    columns: Sequence[Column],
    workers: Workers,
    judge: Background,
    stopwatch: Stopwatch,
    following: Iterable[Record] | None = None,
) -> Iterator[Picture]:
    """The samples' pictures, in order, with their captions, while about two batches are prepared ahead.

    A picture that does not decode has an error. following: samples of which the first are prepared once these all are.
    Raises: whatever reading the samples, preparing them, judging captions or the captioners raise.
    """
    pictures = _prepared(samples, columns, workers, stopwatch, following)
    for at, column in enumerate(columns):
        pictures = _draw(pictures, column, at, judge)
    for at, column in enumerate(columns):
        if column.gate.redraws and column.sampling.strategy == "sample":
            pictures = _redraw(pictures, column, at, judge)
    for picture in pictures:
        picture.pixels = ()  # while it waits to be written, it holds none
        yield picture


def _prepared(
    samples: Iterable[Record],
    columns: Sequence[Column],
    workers: Workers,
    stopwatch: Stopwatch,
    following: Iterable[Record] | None,
) -> Iterator[Picture]:
    ahead = 2 * max(column.batch_size for column in columns)
    start = time.monotonic()
    for record, (pixels, error) in workers.prepared(samples, ahead, following):
        stopwatch.waited += time.monotonic() - start
        yield Picture(record, pixels, error)
        start = time.monotonic()


def _draw(pictures: Iterable[Picture], column: Column, at: int, judge: Background) -> Iterator[Picture]:
    """The pictures with the column's captions, judged; `at` is its place among the columns."""
    for picture, found in _captioned(pictures, column, at, lambda picture: not picture.error):
        if found is not None:
            picture.captions[column.name] = judge.submit(judge_all, found.captions, column.gate)
            if found.error:
                picture.refused[column.name] = found.error
        yield picture


def _redraw(pictures: Iterable[Picture], column: Column, at: int, judge: Background) -> Iterator[Picture]:
    """The pictures, in which each failing caption is drawn anew until one passes, at most `redraws` times."""
    pictures = iter(pictures)
    while together := list(islice(pictures, REDRAWN_AT_ONCE)):
        for redraw in range(1, column.gate.redraws + 1):
            for picture, found in _captioned(together, column, at, lambda picture: picture.failing(column), redraw):
                if found is not None:
                    judged = picture.captions[column.name].result()
                    picture.captions[column.name] = judge.submit(replace_failing, judged, found.captions, column.gate)
        yield from together


def _captioned(
    pictures: Iterable[Picture], column: Column, at: int, wanted: Callable[[Picture], bool], redraw: int = 0
) -> Iterator[tuple[Picture, Captioned | None]]:
    """Each picture, in order, with what the column's captioner says of it where it is wanted."""
    waiting: deque[tuple[Picture, bool]] = deque()  # those the captioner has taken, and the others between them

    def taken() -> Iterator[Request]:
        for picture in pictures:
            waiting.append((picture, asked := wanted(picture)))
            if asked:
                yield Request(picture.record.key, picture.pixels[at])

    def others() -> Iterator[tuple[Picture, None]]:
        while waiting and not waiting[0][1]:
            yield waiting.popleft()[0], None

    for found in column.caption(taken(), redraw):
        yield from others()
        picture, _ = waiting.popleft()
        if found.key != picture.record.key:
            raise RuntimeError(
                f"captioner {column.captioner.name}: captions of {found.key!r} came for {picture.record.key!r}"
            )
        yield picture, found
    yield from others()
    if waiting:
        raise RuntimeError(f"captioner {column.captioner.name}: no captions came for {waiting[0][0].record.key!r}")


def record_of(picture: Picture, columns: Sequence[Column]) -> Record:
    """The picture's record, an error where it has one, or where no caption is left in any column."""
    if picture.error:
        return replace(picture.record, error=picture.error)
    captions, scores, refused = {}, {}, []
    for column in columns:
        judged = picture.captions[column.name].result()
        kept = [one for one in judged if one.text.strip() and not (one.flags and column.gate.on_degenerate == "drop")]
        if kept:
            captions[column.name] = tuple(one.text for one in kept)
            scores[column.name] = _scores(kept)
        else:
            reason = picture.refused.get(column.name) or f"no caption passed: {'; '.join(_reasons(judged))}"
            refused.append(f"{column.name}: {reason}")
    if not captions:
        return replace(picture.record, error=", ".join(refused))
    return replace(
        picture.record, columns={**picture.record.columns, **captions}, scores={**picture.record.scores, **scores}
    )


def _scores(kept: Sequence[Judged]) -> dict[str, list]:
    """What a record says of a column's captions, a list of each with one entry a caption; flags are words with spaces between."""
    scores = {
        "logprob": [None if one.drawn.logprob is None else round(one.drawn.logprob, 4) for one in kept],
        "truncated": [one.truncated for one in kept],
        "flags": [" ".join(one.flags) for one in kept],
    }
    if kept[0].drawn.similarity is not None:
        scores["similarity"] = [round(one.drawn.similarity, 4) for one in kept]
    return scores


def _reasons(judged: Sequence[Judged]) -> list[str]:
    """The refused captions, each with its flags, a few words of them."""
    return [f"{' '.join(one.flags)} {one.text[:40]!r}" for one in judged]
