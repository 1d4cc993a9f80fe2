"""From records to records with captions, in stages that each take records in order and hand them on in order.

prepare pictures (workers) -> a column's captions -> redraws of what its gate refuses -> the next column's … -> records

A column may be made of those before it. What is said of a record is judged in another thread, so that the one that calls the
captioners goes on.

H, W: height and width of the pictures that a captioner takes
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice

from PIL import Image
from torch import Tensor

from captioners.base import Captioned, Request
from generate.captions.column import Column
from generate.captions.records import PendingRecord, keep, record_of
from generate.runs.workers import Background, Stopwatch, Workers, decoding
from imagetext.sample import Record, decode_image, image_size
from imagetext.sets.room import room_for

REDRAWN_AT_ONCE = 256  # pictures, good ones among them, that a redraw waits for: more fill its batches, and memory


def caption_samples(
    samples: Iterable[Record], columns: Sequence[Column], *, num_workers: int = 0, **room: bool
) -> Iterator[Record]:
    """A record for each sample, in order: as `caption_pictures`, for samples that are no run's; `room` is for `workers_for`."""
    with closing(workers_for(columns, num_workers, **room)) as workers, closing(Background()) as judge:
        for picture in caption_pictures(samples, columns, workers, judge, Stopwatch()):
            yield record_of(picture, columns)


def workers_for(
    columns: Sequence[Column], count: int, *, overwrite: bool = False, drop_text_embeddings: bool = False
) -> Workers[Record, tuple[bytes | None, str], tuple[list[Tensor | None], str]]:
    """Workers that prepare records' pictures for the columns.

    overwrite, drop_text_embeddings: what may go from a record to make room for the columns, as in `imagetext.sets.room.room_for`;
    where more must, reading it raises ColumnClash. Where no column looks at pictures, one that cannot be read is no error.
    """
    names = [name for column in columns for name in column.writes]
    preprocess = [column.captioner.preprocess if column.looks else None for column in columns]

    def with_room(record: Record) -> Record:
        if record.lacks_picture and not any(preprocess):
            record = replace(record, error="", lacks_picture=False)
        return room_for(record, names, overwrite=overwrite, drop_text_embeddings=drop_text_embeddings)

    def requests(records: Iterable[Record]) -> Iterator[tuple[Record, tuple[bytes | None, str]]]:
        for record in map(with_room, records):
            yield record, (record.image, record.error)

    return Workers(requests, partial(_prepare, preprocess), count if any(preprocess) else 0)


def _prepare(
    preprocess: Sequence[Callable[[Image.Image], Tensor] | None], asked: tuple[bytes | None, str]
) -> tuple[list[Tensor | None], str]:
    """Pixels (3, H, W) for each column that looks, or the reason for none, which may be known; columns of one captioner share theirs.

    A picture that no column looks at is not decoded, and may be missing; one that is none is an error all the same.
    """
    encoded, error = asked
    if error:
        return [], error
    try:
        if not any(preprocess):
            if encoded is not None:
                image_size(encoded)
            return [None for _ in preprocess], ""
        with decoding(encoded):
            image = decode_image(encoded)
            pixels = {one: one(image) for one in dict.fromkeys(preprocess) if one}
            del image
    except ValueError as undecodable:
        return [], str(undecodable)
    return [pixels[one] if one else None for one in preprocess], ""


def caption_pictures(
    samples: Iterable[Record],
    columns: Sequence[Column],
    workers: Workers,
    judge: Background,
    stopwatch: Stopwatch,
    following: Iterable[Record] | None = None,
) -> Iterator[PendingRecord]:
    """The samples' pictures, in order, with their captions, while about two batches are prepared ahead.

    A picture that does not decode has an error. following: samples of which the first are prepared once these all are.
    Raises: whatever reading the samples, preparing them, judging captions or the captioners raise.
    """
    pictures = _prepared(samples, columns, workers, stopwatch, following)
    for number, column in enumerate(columns):
        pictures = _draw(pictures, column, number, judge)
        if column.gate.redraws and column.sampling.strategy == "sample":
            pictures = _redraw(pictures, column, number, judge)
        pictures = _keep(pictures, column, following=columns[number + 1 :])
    for picture in pictures:
        picture.pixels = ()  # while it waits to be written, it holds none
        yield picture


def _prepared(
    samples: Iterable[Record],
    columns: Sequence[Column],
    workers: Workers,
    stopwatch: Stopwatch,
    following: Iterable[Record] | None,
) -> Iterator[PendingRecord]:
    ahead = 2 * max(column.batch_size for column in columns)
    start = time.monotonic()
    for record, (pixels, error) in workers.prepared(samples, ahead, following):
        stopwatch.waited += time.monotonic() - start
        yield PendingRecord(record, pixels, error)
        start = time.monotonic()


def _draw(pictures: Iterable[PendingRecord], column: Column, at: int, judge: Background) -> Iterator[PendingRecord]:
    """The pictures with the column's captions, judged; `at` is its place among the columns."""

    def can_be_asked(picture: PendingRecord) -> bool:
        if picture.error:
            return False
        try:
            picture.asked[column.name] = column.task.instruct(
                picture.record, picture.written, column.name, column.sampling.seed
            )
        except ValueError as lacking:
            picture.refused[column.name] = str(lacking)
        return column.name in picture.asked

    for picture, captioned in _captioned(pictures, column, at, can_be_asked):
        if captioned is not None:
            asked = picture.asked[column.name]
            picture.said[column.name] = judge.submit(column.reading.judge_all, captioned.captions, asked)
            if captioned.error:
                picture.refused[column.name] = captioned.error
        yield picture


def _redraw(pictures: Iterable[PendingRecord], column: Column, at: int, judge: Background) -> Iterator[PendingRecord]:
    """The pictures, in which each failing caption is drawn anew until one passes, at most `redraws` times."""
    pictures = iter(pictures)
    while together := list(islice(pictures, REDRAWN_AT_ONCE)):
        for redraw in range(1, column.gate.redraws + 1):
            for picture, captioned in _captioned(
                together, column, at, lambda picture: picture.failing(column), redraw
            ):
                if captioned is not None:
                    said, asked = picture.said[column.name].result(), picture.asked[column.name]
                    picture.said[column.name] = judge.submit(
                        column.reading.replace_failing, said, captioned.captions, asked
                    )
        yield from together


def _keep(pictures: Iterable[PendingRecord], column: Column, following: Sequence[Column]) -> Iterator[PendingRecord]:
    """The pictures, in which what is kept of the column is settled where a following one reads it; else the record's maker does."""
    read = {name for other in following for name in other.task.columns_read}.intersection(column.writes)
    for picture in pictures:
        if read:
            keep(picture, column)
        yield picture


def _captioned(
    pictures: Iterable[PendingRecord],
    column: Column,
    at: int,
    wanted: Callable[[PendingRecord], bool],
    redraw: int = 0,
) -> Iterator[tuple[PendingRecord, Captioned | None]]:
    """Each picture, in order, with what the column's captioner says of it where it is wanted."""
    waiting: deque[tuple[PendingRecord, bool]] = deque()  # those the captioner has taken, and the others between them

    def taken() -> Iterator[Request]:
        for picture in pictures:
            waiting.append((picture, asked := wanted(picture)))
            if asked:
                yield Request(picture.record.key, picture.pixels[at], picture.asked[column.name].instruction)

    def others() -> Iterator[tuple[PendingRecord, None]]:
        while waiting and not waiting[0][1]:
            yield waiting.popleft()[0], None

    for captioned in column.caption(taken(), redraw):
        yield from others()
        picture, _ = waiting.popleft()
        if captioned.key != picture.record.key:
            raise RuntimeError(
                f"captioner {column.captioner.name}: captions of {captioned.key!r} came for {picture.record.key!r}"
            )
        yield picture, captioned
    yield from others()
    if waiting:
        raise RuntimeError(f"captioner {column.captioner.name}: no captions came for {waiting[0][0].record.key!r}")
