"""From records to records with captions, in stages that each take records in order and hand them on in order.

prepare pictures (workers) -> a column's captions -> redraws of what its gate refuses -> the next column's … -> records

A column may be made of those before it. What is said of a record is judged in another thread, so that the one that calls the
captioners goes on.

H, W: height and width of the pictures that a captioner takes
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice

from PIL import Image
from torch import Tensor

from captioners.base import Caption, Captioned, Captioner, Request, SamplingConfig
from generate.captions.gate import Gate, Judged
from generate.captions.said import Reading, Said
from generate.captions.tasks import Instructed, Task
from generate.runs.workers import Background, Stopwatch, Workers, decoding
from imagetext.sample import Record, decode_image, image_size, is_caption_column
from imagetext.sets.room import room_for
from imagetext.shown import masked
from imagetext.writers.record_fields import has_captions

CUT, KIND, FALLBACK = "cut:", "kind:", "fallback:"  # begin flags
REDRAWN_AT_ONCE = 256  # pictures, good ones among them, that a redraw waits for: more fill its batches, and memory


@dataclass(frozen=True)
class Column:
    """A column to write, as the run has settled it: its captioner, what that is asked, how it draws, what becomes of the answers.

    `name` is what draws are told apart by. `dtype` is the captioner's, `batch_size` counts the requests in flight.
    """

    name: str
    captioner: Captioner
    sampling: SamplingConfig = SamplingConfig()
    gate: Gate = Gate()
    similarity: bool = False
    dtype: str = "fp32"
    batch_size: int = 16
    task: Task = Task()

    @cached_property
    def writes(self) -> tuple[str, ...]:
        """The columns that its answers go to: several where they are JSON."""
        return tuple(self.task.fields.values()) or (self.name,)

    @cached_property
    def reading(self) -> Reading:
        return Reading(self.writes, self.sampling.answer, self.task.fields, self.gate, of_words=not self.looks)

    @property
    def looks(self) -> bool:
        """Whether its captioner is shown the picture."""
        return self.captioner.looks_at_pictures and not self.task.text_only

    def check(self) -> None:
        """Raises ValueError, with all problems, where the captioner does not do what the column asks."""
        asks, captioner, problems = self.task.instruction is not None, self.captioner, []
        if captioner.needs_instruction and not asks:
            problems.append(f"instruction: {captioner.name} has nothing to say without one; --instruction gives it")
        if asks and not captioner.takes_instruction:
            problems.append(f"instruction: {captioner.name} takes none; a language or vision-language model does")
        if captioner.needs_picture and self.task.text_only:
            problems.append(
                f"text_only: {captioner.name} needs a picture; name a language model by --model, or by --text-model where a "
                "recipe has several columns"
            )
        if problems:
            raise ValueError(f"{self.name}: {'; '.join(problems)}")
        captioner.check(self.sampling, similarity=self.needs_similarity)

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
    """A record on its way: its pixels for each captioner, or why there are none, what was asked of it, and what was said so far."""

    record: Record
    pixels: Sequence[Tensor | None] = ()  # (3, H, W) for each column that looks at them
    error: str = ""
    asked: dict[str, Instructed] = field(default_factory=dict)  # of each column, by its name
    said: dict[str, Future[list[Said]]] = field(default_factory=dict)
    refused: dict[str, str] = field(
        default_factory=dict
    )  # why a column has no answers, where nothing could be asked or said
    kept: dict[str, Mapping[str, Sequence[Judged]]] = field(default_factory=dict)  # what goes into each of its columns

    def failing(self, column: Column) -> bool:
        return column.name in self.said and any(said.failing for said in self.said[column.name].result())

    @property
    def written(self) -> dict[str, list[str]]:
        """The texts of the columns that are made."""
        return {name: [one.text for one in kept] for columns in self.kept.values() for name, kept in columns.items()}


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
) -> Iterator[Picture]:
    """The samples' pictures, in order, with their captions, while about two batches are prepared ahead.

    A picture that does not decode has an error. following: samples of which the first are prepared once these all are.
    Raises: whatever reading the samples, preparing them, judging captions or the captioners raise.
    """
    pictures = _prepared(samples, columns, workers, stopwatch, following)
    for at, column in enumerate(columns):
        pictures = _draw(pictures, column, at, judge)
        if column.gate.redraws and column.sampling.strategy == "sample":
            pictures = _redraw(pictures, column, at, judge)
        pictures = _keep(pictures, column, following=columns[at + 1 :])
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

    def can_be_asked(picture: Picture) -> bool:
        if picture.error:
            return False
        try:
            picture.asked[column.name] = column.task.instruct(
                picture.record, picture.written, column.name, column.sampling.seed
            )
        except ValueError as lacking:
            picture.refused[column.name] = str(lacking)
        return column.name in picture.asked

    for picture, found in _captioned(pictures, column, at, can_be_asked):
        if found is not None:
            asked = picture.asked[column.name]
            picture.said[column.name] = judge.submit(column.reading.judge_all, found.captions, asked)
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
                    said, asked = picture.said[column.name].result(), picture.asked[column.name]
                    picture.said[column.name] = judge.submit(
                        column.reading.replace_failing, said, found.captions, asked
                    )
        yield from together


def _keep(pictures: Iterable[Picture], column: Column, following: Sequence[Column]) -> Iterator[Picture]:
    """The pictures, in which what is kept of the column is settled where a following one reads it; else the record's maker does."""
    read = {name for other in following for name in other.task.columns_read}.intersection(column.writes)
    for picture in pictures:
        if read:
            keep(picture, column)
        yield picture


def _captioned(
    pictures: Iterable[Picture], column: Column, at: int, wanted: Callable[[Picture], bool], redraw: int = 0
) -> Iterator[tuple[Picture, Captioned | None]]:
    """Each picture, in order, with what the column's captioner says of it where it is wanted."""
    waiting: deque[tuple[Picture, bool]] = deque()  # those the captioner has taken, and the others between them

    def taken() -> Iterator[Request]:
        for picture in pictures:
            waiting.append((picture, asked := wanted(picture)))
            if asked:
                yield Request(picture.record.key, picture.pixels[at], picture.asked[column.name].instruction)

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


def keep(picture: Picture, column: Column) -> Mapping[str, Sequence[Judged]]:
    """What goes into each column that the answers write: what passes, or may be kept; else what captions fall back to."""
    if column.name not in picture.kept:
        said = picture.said[column.name].result() if column.name in picture.said else []
        kept: dict[str, Sequence[Judged]] = {}
        for name in column.writes:
            kept[name] = [
                replace(part, flags=(*part.flags, *_told(one, part)))
                for one in said
                for part in one.parts[name]
                if part.text.strip()
                and "unparsed" not in part.flags
                and not (part.flags and column.gate.on_degenerate == "drop")
            ]
            if not kept[name] and is_caption_column(name):
                kept[name] = _fallen_back(picture, column)
        picture.kept[column.name] = kept
    return picture.kept[column.name]


def _told(said: Said, part: Judged) -> Iterator[str]:
    """Flags that refuse nothing: what was cut off the answer, and how a negative was made false."""
    yield from (CUT + what for what in dict.fromkeys((*part.drawn.cut, *said.cut)))
    if part.drawn.kind:
        yield KIND + part.drawn.kind


def _fallen_back(picture: Picture, column: Column) -> list[Judged]:
    found = column.task.fall_back(picture.record, picture.written, column.name, column.sampling.seed)
    return [Judged(found[1], Caption(found[1], None, False), flags=(FALLBACK + found[0],))] if found else []


def record_of(picture: Picture, columns: Sequence[Column]) -> Record:
    """The picture's record, an error where it has one, or where no caption is left in any column."""
    if picture.error:
        return replace(picture.record, error=picture.error)
    captions, scores, refused = {}, {}, {}
    for column in columns:
        for name, kept in keep(picture, column).items():
            if kept:
                captions[name] = tuple(one.text for one in kept)
            else:
                refused[name] = masked(_why_none(picture, column, name))
            scores[name] = _scores(kept) if kept else {"logprob": [], "truncated": [], "flags": [refused[name]]}
    names = [name for column in columns for name in column.writes]
    found = {**picture.record.columns, **captions}
    makes_captions = any(map(is_caption_column, names))
    if makes_captions and not captions or not has_captions(found, picture.record.captions, names):
        return replace(picture.record, error=", ".join(f"{name}: {why}" for name, why in refused.items()))
    return replace(picture.record, columns=found, scores={**picture.record.scores, **scores})


def _why_none(picture: Picture, column: Column, name: str) -> str:
    if reason := picture.refused.get(column.name):
        return reason
    judged = [part for one in picture.said[column.name].result() for part in one.parts[name]]
    return f"no caption passed: {'; '.join(_reasons(judged))}"


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
