"""From records to records with captions, in stages that each take records in order and yield them in order.

prepare pictures (workers) -> captions of a column -> redraws of refused captions -> the next column … -> records

A column may be written from the columns before it. Answers are judged in another thread, so that the thread that calls
the captioners does not wait for that.

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
from generate.captions.records import PendingRecord, keep, record_of
from generate.captions.settled_column import SettledColumn
from generate.runs.workers import Background, Stopwatch, Workers, decoding
from imagetext.sample import Record, decode_image, image_size
from imagetext.sets.room import room_for

# Pictures that a redraw waits for, also those with accepted captions: more fill its batches better, but take memory.
REDRAWN_AT_ONCE = 256


def caption_samples(
    samples: Iterable[Record], columns: Sequence[SettledColumn], *, num_workers: int = 0, **room: bool
) -> Iterator[Record]:
    """Caption samples outside a run; yields a record for each, in order. room: keywords of `workers_for`."""
    with closing(workers_for(columns, num_workers, **room)) as workers, closing(Background()) as judge:
        for pending in caption_pictures(samples, columns, workers, judge=judge, stopwatch=Stopwatch()):
            yield record_of(pending, columns)


def workers_for(
    columns: Sequence[SettledColumn], count: int, *, overwrite: bool = False, drop_text_embeddings: bool = False
) -> Workers[Record, tuple[bytes | None, str], tuple[list[Tensor | None], str]]:
    """Return workers that prepare the pictures of records for the columns.

    overwrite, drop_text_embeddings: what may be removed from a record for the new columns, as in
    `imagetext.sets.room.room_for`; where more has to be removed, reading the record raises ColumnClash.
    Where no column looks at pictures, a picture that cannot be read is no error.
    """
    names = [name for column in columns for name in column.writes]
    preprocess = [column.captioner.preprocess if column.looks else None for column in columns]

    def with_room(record: Record) -> Record:
        if record.lacks_picture and not any(preprocess):
            record = replace(record, error="", lacks_picture=False)
        if record.image is None and any(preprocess):
            return record  # its error is that it has no picture
        return room_for(record, names, overwrite=overwrite, drop_text_embeddings=drop_text_embeddings)

    def requests(records: Iterable[Record]) -> Iterator[tuple[Record, tuple[bytes | None, str]]]:
        for record in map(with_room, records):
            yield record, (record.image, record.error)

    return Workers(requests, partial(_prepare, preprocess), count if any(preprocess) else 0)


def _prepare(
    preprocess: Sequence[Callable[[Image.Image], Tensor] | None], request: tuple[bytes | None, str]
) -> tuple[list[Tensor | None], str]:
    """Return pixels (3, H, W) for each column, None for columns that do not look; or none, and the reason.

    preprocess: of each column; columns with the same one share its pixels.
    request: the encoded picture, and the reason where it is known already that there can be no pixels.
    Where no column looks at the picture, it is not decoded and may be missing; a damaged one is still an error.
    """
    encoded, error = request
    if error:
        return [], error
    try:
        if not any(preprocess):
            if encoded is not None:
                image_size(encoded)
            return [None for _ in preprocess], ""
        with decoding(encoded):
            image = decode_image(encoded)
            pixels = {function: function(image) for function in dict.fromkeys(preprocess) if function}
            del image
    except ValueError as undecodable:
        return [], str(undecodable)
    return [pixels[function] if function else None for function in preprocess], ""


def caption_pictures(
    samples: Iterable[Record],
    columns: Sequence[SettledColumn],
    workers: Workers,
    *,
    judge: Background,
    stopwatch: Stopwatch,
    following: Iterable[Record] | None = None,
) -> Iterator[PendingRecord]:
    """Yield the samples in order with their captions, while about two batches of pictures are prepared ahead.

    A picture that does not decode gets an error. following: the samples to prepare next, once all of these are
    prepared.
    Raises: whatever reading and preparing the samples, judging captions, and the captioners raise.
    """
    pictures = _prepared(samples, columns, workers, stopwatch=stopwatch, following=following)
    for index, column in enumerate(columns):
        pictures = _draw(pictures, column, index, judge=judge)
        if column.gate.redraws and column.sampling.strategy == "sample":
            pictures = _redraw(pictures, column, index, judge=judge)
        pictures = _keep(pictures, column, later_columns=columns[index + 1 :])
    for pending in pictures:
        pending.pixels = ()  # frees their memory while the record waits to be written
        yield pending


def _prepared(
    samples: Iterable[Record],
    columns: Sequence[SettledColumn],
    workers: Workers,
    *,
    stopwatch: Stopwatch,
    following: Iterable[Record] | None,
) -> Iterator[PendingRecord]:
    ahead = 2 * max(column.batch_size for column in columns)
    start = time.monotonic()
    for record, (pixels, error) in workers.prepared(samples, ahead, following):
        stopwatch.waited += time.monotonic() - start
        yield PendingRecord(record, pixels, error)
        start = time.monotonic()


def _draw(
    pictures: Iterable[PendingRecord], column: SettledColumn, index: int, *, judge: Background
) -> Iterator[PendingRecord]:
    """Yield the pictures with the column's captions, judged. index: of the column among all columns."""

    def can_be_asked(pending: PendingRecord) -> bool:
        if pending.error:
            return False
        try:
            instructed = column.task.instruct(
                pending.record, pending.written, column=column.name, seed=column.sampling.seed
            )
        except ValueError as error:
            pending.refused[column.name] = str(error)
            return False
        pending.instructions[column.name] = instructed
        return True

    for pending, captioned in _captioned(pictures, column, index, needs_captions=can_be_asked):
        if captioned is not None:
            instructed = pending.instructions[column.name]
            pending.answers[column.name] = judge.submit(column.answer_reader.judge_all, captioned.captions, instructed)
            if captioned.error:
                pending.refused[column.name] = captioned.error
        yield pending


def _redraw(
    pictures: Iterable[PendingRecord], column: SettledColumn, index: int, *, judge: Background
) -> Iterator[PendingRecord]:
    """Yield the pictures, after each refused answer was drawn again until one passes, at most `redraws` times."""

    def is_failing(pending: PendingRecord) -> bool:
        return pending.is_failing(column)

    pictures = iter(pictures)
    while group := list(islice(pictures, REDRAWN_AT_ONCE)):
        for redraw in range(1, column.gate.redraws + 1):
            for pending, captioned in _captioned(group, column, index, needs_captions=is_failing, redraw=redraw):
                if captioned is not None:
                    answers = pending.answers[column.name].result()
                    instructed = pending.instructions[column.name]
                    pending.answers[column.name] = judge.submit(
                        column.answer_reader.replace_failing, answers, captioned.captions, instructed
                    )
        yield from group


def _keep(
    pictures: Iterable[PendingRecord], column: SettledColumn, later_columns: Sequence[SettledColumn]
) -> Iterator[PendingRecord]:
    """Yield the pictures; where a later column reads this one, it is settled now which captions are kept.

    For all other columns, `record_of` settles that, in the thread that writes.
    """
    read_later = {name for later in later_columns for name in later.task.columns_read}
    is_read_later = not read_later.isdisjoint(column.writes)
    for pending in pictures:
        if is_read_later:
            keep(pending, column)
        yield pending


def _captioned(
    pictures: Iterable[PendingRecord],
    column: SettledColumn,
    index: int,
    *,
    needs_captions: Callable[[PendingRecord], bool],
    redraw: int = 0,
) -> Iterator[tuple[PendingRecord, Captioned | None]]:
    """Yield each picture, in order, with the captioner's result where it needs captions, else with None."""
    # Pictures in order, with whether the captioner has been asked for them.
    waiting: deque[tuple[PendingRecord, bool]] = deque()

    def requests() -> Iterator[Request]:
        for pending in pictures:
            is_asked = needs_captions(pending)
            waiting.append((pending, is_asked))
            if is_asked:
                instruction = pending.instructions[column.name].instruction
                yield Request(pending.record.key, pending.pixels[index], instruction)

    def not_asked() -> Iterator[tuple[PendingRecord, None]]:
        while waiting and not waiting[0][1]:
            yield waiting.popleft()[0], None

    for captioned in column.caption(requests(), redraw):
        yield from not_asked()
        pending, _ = waiting.popleft()
        if captioned.key != pending.record.key:
            raise RuntimeError(
                f"captioner {column.captioner.name}: captions of {captioned.key!r} came for {pending.record.key!r}"
            )
        yield pending, captioned
    yield from not_asked()
    if waiting:
        raise RuntimeError(f"captioner {column.captioner.name}: no captions came for {waiting[0][0].record.key!r}")
