"""Count caption columns in two passes over the inputs, in several processes.

The first pass indexes the rows, the second one counts the captions that are compared.

R: rows of one piece   C: columns, the references last
"""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from itertools import islice
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from diversity.columns import MOST_CAPTIONS, ComparedPicture
from diversity.inputs.index import (
    NO_REFERENCES,
    ComparedColumns,
    Index,
    RequestedColumns,
    compare_columns,
    index_pieces,
)
from diversity.inputs.join import JoinedRows, number_of
from diversity.inputs.kept import rows_again
from diversity.inputs.processes import processes
from diversity.inputs.records import ROWS, Piece, captions_of, scene_of, truncated_of
from diversity.inputs.sample import PictureSample, order_key
from diversity.inputs.specs import InputSource, open_sources
from diversity.measures.accumulate import CaptionAccumulator
from imagetext.apart import check_apart
from imagetext.fields import well_formed
from imagetext.hashes import name_hash
from imagetext.readers.table_flags import Columns
from imagetext.sample import Record
from imagetext.sources import idle_table_flags

MANY = 100  # pieces that are worth a second process, which takes half a second to start
ROWS_AT_ONCE = 1000  # rows of a piece that are counted together; bounds the memory
EXAMPLE_IMAGES = 48  # pictures of the sample whose encoded picture is kept, for the examples of the report


@dataclass(frozen=True)
class Counted:
    """The counts of all columns, the references among them, on the pictures for which every column has captions."""

    names: tuple[str, ...]  # the columns without the references
    references: str | None  # the column of the references
    accumulators: Mapping[str, CaptionAccumulator]  # column -> its counts; in the order of names, references last
    sample: PictureSample
    pictures: int  # number of pictures that are compared
    failed: int  # number of records that have no captions because they failed
    notes: tuple[str, ...]  # what some columns have and others do not, with counts


def count_columns(
    inputs: Sequence[str],
    columns: Sequence[str] = (),
    references: str | None = None,
    images: str | Sequence[str] | None = None,
    *,
    table: Columns = Columns(),
    workers: int | None = 1,
    seed: int = 0,
    size: int = 10_000,
    keep_images: int = EXAMPLE_IMAGES,
    output: str | os.PathLike | None = None,
) -> Counted:
    """Count caption columns of inputs that are joined by key, on the pictures for which every column has captions.

    Of each picture equally many captions of each column are counted. Human captions are counted up to that number, but
    a picture with fewer human captions does not limit the other columns.

    inputs, images: SPECs, see `diversity.inputs.specs`. columns: names; default: every syn_text_* column and the
    columns named after files. references: a column, a SPEC of its own, or "none"; default: the original captions,
    where records have any. table: which columns of tables hold what. workers: number of processes; None: two for
    inputs of many pieces, else one. size: number of pictures in the sample. keep_images: for how many of these, from
    the first, the encoded picture is kept. output: the folder that will be written; no input may be in it.

    Raises ValueError with every problem: inputs that cannot be read, columns that no record has, no picture in common.
    """
    sources, files, references = open_sources(inputs, references, images, table=table, columns=columns)
    if output is not None:
        check_apart(output, [piece.path for source in sources for piece in source.pieces])
    idle_flags = idle_table_flags([piece.samples for source in sources for piece in source.pieces], table)
    requested = RequestedColumns(tuple(columns), files, references)
    with TemporaryDirectory(prefix="capsmith-") as folder:
        counted = _count(
            sources, requested, workers=workers, seed=seed, size=size, keep_images=keep_images, folder=folder
        )
    return replace(counted, notes=(*counted.notes, *(f"A flag has no effect: {flag}." for flag in idle_flags)))


def count_captions(
    captions: Mapping[str, Sequence[Sequence[str]]],
    references: str | None = None,
    *,
    truncated: Mapping[str, Sequence[Sequence[bool]]] | None = None,
    scenes: Sequence[Mapping[str, Any] | None] | None = None,
    keys: Sequence[str] | None = None,
    images: Sequence[bytes | None] | None = None,
    seed: int = 0,
    size: int = 10_000,
    keep_images: int = EXAMPLE_IMAGES,
) -> Counted:
    """Count columns `{"name": [[caption, ...] per picture]}` as `count_columns` does; `references` names one of them.

    All sequences hold one entry per picture, in the same order. Raises ValueError for columns without a caption and
    where no picture has captions in all columns.
    """
    if empty := [name for name, groups in captions.items() if not any(map(len, groups))]:
        raise ValueError(f"no captions in {', '.join(map(repr, empty))}")
    pictures = len(next(iter(captions.values()), ()))
    read_rows = partial(
        _rows_in_memory, captions=captions, truncated=truncated or {}, scenes=scenes, keys=keys, encoded_images=images
    )
    pieces = [
        Piece("captions", partial(read_rows, range(first, min(first + ROWS, pictures))))
        for first in range(0, pictures, ROWS)
    ]
    names = tuple(name for name in captions if name != references)
    return _count(
        [InputSource("captions", pieces)],
        RequestedColumns(names, (), references or NO_REFERENCES),
        workers=1,
        seed=seed,
        size=size,
        keep_images=keep_images,
        folder=None,
    )


def _rows_in_memory(
    numbers: range,
    columns: Sequence[str] | None,
    images: Collection[int],
    *,
    captions: Mapping[str, Sequence[Sequence[str]]],
    truncated: Mapping[str, Sequence[Sequence[bool]]],
    scenes: Sequence[Mapping[str, Any] | None] | None,
    keys: Sequence[str] | None,
    encoded_images: Sequence[bytes | None] | None,
) -> Iterator[Record]:
    """Yield the pictures with these numbers as rows; `columns` and `images` are as in `Piece.read`."""
    for index, number in enumerate(numbers):
        yield Record(
            keys[number] if keys else str(number),
            encoded_images[number] if encoded_images and index in images else None,
            columns={name: tuple(map(well_formed, groups[number])) for name, groups in captions.items()},
            scores={name: {"truncated": list(marks[number])} for name, marks in truncated.items()},
            meta={"scene": scenes[number]} if scenes else {},
        )


class CountTask(NamedTuple):
    """A piece of an input, and which captions and pictures of its rows are used."""

    piece: Piece
    kept: str  # the file with the rows of the piece, as in `Index`
    compared_counts: np.ndarray  # (C, R) how many captions of the row are compared
    occurrence: np.ndarray  # (R,) how many pictures with the row's key came before the row's picture
    sampled: np.ndarray  # (R,) bool, whether the row's picture is in the sample
    keep_image: np.ndarray  # (R,) bool, whether the row's encoded picture is kept


def _count(
    sources: Sequence[InputSource],
    requested: RequestedColumns,
    *,
    workers: int | None,
    seed: int,
    size: int,
    keep_images: int,
    folder: str | None,
) -> Counted:
    """Count the columns. folder: where rows wait for the second pass; None: the second pass reads them again."""
    pieces = [piece for source in sources for piece in source.pieces]
    keep_images = min(keep_images, size)
    if workers is None:  # whatever the machine has, because the last digits of estimates depend on it
        workers = 2 if len(pieces) >= MANY else 1
    with processes(max(1, min(workers, len(pieces)))) as run:
        index = partial(index_pieces, requested=requested, seed=seed, joined=len(sources) > 1, folder=folder)
        parts = run(index, pieces, "reading captions")
        indexes = [parts[number % len(parts)][number // len(parts)] for number in range(len(pieces))]
        comparison = compare_columns(sources, indexes, requested)
        tasks = _count_tasks(sources, indexes, comparison.rows, size=size, keep_images=keep_images)
        states = run(
            partial(count_pieces, compared=comparison.columns, seed=seed, size=size, keep_images=keep_images),
            tasks,
            "counting captions",
        )
    accumulators, sample = states[0]
    for other_accumulators, other_sample in states[1:]:
        for name, accumulator in accumulators.items():
            accumulator.merge(other_accumulators[name])
        sample.merge(other_sample)
    return Counted(
        names=comparison.columns.names,
        references=comparison.columns.references,
        accumulators=accumulators,
        sample=sample,
        pictures=int(comparison.rows.common.sum()),
        failed=comparison.failed,
        notes=(*comparison.notes, *_missing_image_notes(sources, sample)),
    )


def _count_tasks(
    sources: Sequence[InputSource], indexes: Sequence[Index], rows: JoinedRows, *, size: int, keep_images: int
) -> list[CountTask]:
    """Return a task for each piece that has captions to compare or pictures to keep."""
    compared = np.flatnonzero(rows.common)  # in the order of the seed, so that the sample comes first
    in_sample, with_image = np.zeros((2, len(rows.order_keys)), bool)
    in_sample[compared[:size]], with_image[compared[:keep_images]] = True, True
    sampled, pictured = in_sample[rows.picture_of_row], with_image[rows.picture_of_row]
    tasks, start = [], 0
    separate_images = any(source.role == "images" for source in sources)
    pieces = [(source, piece) for source in sources for piece in source.pieces]
    for (source, piece), index in zip(pieces, indexes, strict=True):
        of_piece = slice(start, start := start + len(index.keys))
        keep_image = pictured[of_piece] & (source.role == "images" or not separate_images or piece.by_path)
        compared_counts = rows.compared_counts[:, of_piece]
        if compared_counts.any() or keep_image.any():
            tasks.append(
                CountTask(
                    piece,
                    index.kept,
                    compared_counts=compared_counts,
                    occurrence=rows.occurrence[of_piece],
                    sampled=sampled[of_piece],
                    keep_image=keep_image,
                )
            )
    return tasks


def count_pieces(
    tasks: Iterable[CountTask], compared: ComparedColumns, seed: int, *, size: int, keep_images: int
) -> tuple[dict[str, CaptionAccumulator], PictureSample]:
    """Count the compared captions of each column, and collect the sample of pictures."""
    accumulators = {name: CaptionAccumulator() for name in compared.columns}
    sample = PictureSample(size, seed, keep_images)
    for task in tasks:
        pictures = _compared_pictures(task, compared, seed)
        while batch := list(islice(pictures, ROWS_AT_ONCE)):
            for name, accumulator in accumulators.items():
                having = [picture for picture, _ in batch if name in picture.captions]
                marks = [picture.truncated.get(name) or (False,) * len(picture.captions[name]) for picture in having]
                accumulator.update(
                    [picture.captions[name] for picture in having], marks, [picture.scene for picture in having]
                )
            sample.update(picture for picture, sampled in batch if sampled)
    return accumulators, sample


def _compared_pictures(
    task: CountTask, compared: ComparedColumns, seed: int
) -> Iterator[tuple[ComparedPicture, bool]]:
    """Yield what each row adds to its picture, if anything, and whether the picture is in the sample."""
    rows = rows_again(task.piece, task.kept, compared.columns, np.flatnonzero(task.keep_image).tolist())
    rows_of_task = zip(
        task.compared_counts.T.tolist(), task.occurrence.tolist(), task.sampled.tolist(), task.keep_image.tolist()
    )
    for counts, occurrence, sampled, keep_image in rows_of_task:
        if (row := next(rows, None)) is None:
            raise ValueError(f"{task.piece.path}: changed while it was read")
        if not keep_image and not any(counts):
            continue
        key = compared.by_number and number_of(row.key) or row.key
        picture = ComparedPicture(key, scene=scene_of(row), image=row.image, occurrence=occurrence)
        for name, count in zip(compared.columns, counts):
            if count:
                captions, marks = captions_of(row, name), truncated_of(row, name)
                if len(captions) < count:
                    raise ValueError(f"{task.piece.path}: changed while it was read")
                if name == compared.references:
                    captions, marks = _drawn(captions, marks, MOST_CAPTIONS, picture=picture, column=name, seed=seed)
                    picture.references = captions
                captions, marks = _drawn(captions, marks, count, picture=picture, column=name, seed=seed)
                picture.captions[name] = captions
                if marks:
                    picture.truncated[name] = marks
        yield picture, sampled


def _drawn(
    captions: tuple[str, ...], marks: tuple[bool, ...], most: int, *, picture: ComparedPicture, column: str, seed: int
) -> tuple[tuple[str, ...], tuple[bool, ...]]:
    """Return at most `most` of a picture's captions in a column, drawn by the seed, with their marks, if any."""
    if len(captions) <= most:
        return captions, marks
    position = order_key(name_hash(picture.key, seed=seed), picture.occurrence)
    chosen = choose(len(captions), most, order_key=position, column=column)
    return tuple(captions[index] for index in chosen), tuple(marks[index] for index in chosen) if marks else ()


def choose(captions: int, count: int, order_key: int, column: str) -> list[int]:
    """Return the sorted indices of the `count` captions of a picture that are compared.

    These are the captions with the smallest hashes of the picture's `order_key`, the column and the index.
    """
    salt = f"{order_key}/{column}/".encode("utf-8", "surrogatepass")
    by_hash = sorted(range(captions), key=lambda index: blake2b(salt + b"%d" % index, digest_size=8).digest())
    return sorted(by_hash[:count])


def _missing_image_notes(sources: Sequence[InputSource], sample: PictureSample) -> list[str]:
    """Return a note if some pictures of the sample are in none of the inputs that were given for pictures."""
    specs = [source.spec for source in sources if source.role == "images"]
    sampled = sample.pictures[: sample.images]
    missing = [picture.key for picture in sampled if picture.image is None]
    if not specs or not missing:
        return []
    return [
        f"Pictures that are not in {' or '.join(specs)}: {len(missing):,} of the {len(sampled):,} that were looked "
        f"for, for example {missing[0]!r}."
    ]
