"""Columns of captions, counted in two passes over the inputs: what there is, then what is compared; by several processes.

N: rows of all inputs   R: rows of one piece   C: columns, the references last
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from diversity.columns import Picture
from diversity.inputs.index import NO_REFERENCES, Asked, Common, Compared, common, index_pieces
from diversity.inputs.join import number_of
from diversity.inputs.processes import processes
from diversity.inputs.records import ROWS, Piece, captions_of, scene_of, truncated_of
from diversity.inputs.sample import PictureSample, place
from diversity.inputs.specs import Source, open_sources
from diversity.measures.accumulate import CaptionAccumulator
from imagetext.apart import check_apart
from imagetext.hashes import name_hash
from imagetext.readers.row_records import well_formed
from imagetext.readers.table_flags import Columns
from imagetext.sample import Record

ROWS_AT_ONCE = 1000  # of a piece, so that its memory has a bound


@dataclass(frozen=True)
class Counted:
    """Columns counted on the pictures that all of them have, the references' column among them."""

    names: tuple[str, ...]  # without the references' column
    references: str | None  # its name
    accumulators: Mapping[str, CaptionAccumulator]  # of every column, in the order of names, references last
    sample: PictureSample
    pictures: int  # compared
    failed: int  # records without captions because they failed
    notes: tuple[str, ...]  # what the columns did not have in common, with counts


def count_columns(
    inputs: Sequence[str],
    columns: Sequence[str] = (),
    references: str | None = None,
    images: str | Sequence[str] | None = None,
    *,
    table: Columns = Columns(),
    workers: int = 1,
    seed: int = 0,
    size: int = 10_000,
    keep_images: int = 48,
    output: str | os.PathLike | None = None,
) -> Counted:
    """Counts caption columns of inputs that are joined by key, on the pictures all have, equally many captions of each.

    Human captions are as many where a picture has so many, else all that it has: they never limit the others.

    inputs, images: SPECs, see `diversity.inputs.specs`. columns: their names; default: every syn_text_* column, and those named
    after files. references: a column, a SPEC of its own, or "none"; default: the originals, where records have any.
    table: what columns of tables are. size: pictures of the sample, of whose first `keep_images` the encoded pictures are kept.

    output: where something is to be written; no input may stand there.

    Raises ValueError with every problem: inputs that cannot be read, columns that no record has, nothing in common.
    """
    sources, files, references = open_sources(inputs, references, images, table, columns)
    if output is not None:
        check_apart(output, [piece.path for source in sources for piece in source.pieces])
    return _count(sources, Asked(tuple(columns), files, references), workers, seed, size, keep_images)


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
    keep_images: int = 48,
) -> Counted:
    """Counts columns `{"name": [[caption, ...] per picture]}` as `count_columns` does; `references` names one of them.

    All sequences are per picture, in one order. Raises ValueError for columns without a caption and where they have no picture
    in common.
    """
    if empty := [name for name, groups in captions.items() if not any(map(len, groups))]:
        raise ValueError(f"no captions in {', '.join(map(repr, empty))}")
    pictures = len(next(iter(captions.values()), ()))
    rows = partial(_given_rows, captions, truncated or {}, scenes, keys, images)
    pieces = [
        Piece("captions", partial(rows, range(first, min(first + ROWS, pictures))))
        for first in range(0, pictures, ROWS)
    ]
    asked = Asked(tuple(name for name in captions if name != references), (), references or NO_REFERENCES)
    return _count([Source("captions", pieces)], asked, 1, seed, size, keep_images)


def _given_rows(
    captions: Mapping[str, Sequence[Sequence[str]]],
    truncated: Mapping[str, Sequence[Sequence[bool]]],
    scenes: Sequence[Mapping[str, Any] | None] | None,
    keys: Sequence[str] | None,
    images: Sequence[bytes | None] | None,
    pictures: range,
    columns: Any,
    wanted: Any,
) -> Iterator[Record]:
    for number, at in enumerate(pictures):
        yield Record(
            keys[at] if keys else str(at),
            images[at] if images and number in wanted else None,
            columns={name: tuple(map(well_formed, groups[at])) for name, groups in captions.items()},
            scores={name: {"truncated": list(marks[at])} for name, marks in truncated.items()},
            meta={"scene": scenes[at]} if scenes else {},
        )


class Task(NamedTuple):
    """A piece, and what of its rows is compared."""

    piece: Piece
    take: np.ndarray  # (C, R) captions
    again: np.ndarray  # (R,) pictures of the same key before
    sampled: np.ndarray  # (R,) bool
    pictured: np.ndarray  # (R,) bool, whether the picture is kept


def _count(sources: Sequence[Source], asked: Asked, workers: int, seed: int, size: int, keep_images: int) -> Counted:
    pieces = [piece for source in sources for piece in source.pieces]
    keep_images = min(keep_images, size)
    with processes(max(1, min(workers, len(pieces)))) as run:
        parts = run(partial(index_pieces, asked=asked, seed=seed), pieces, "reading captions")
        index = [parts[number % len(parts)][number // len(parts)] for number in range(len(pieces))]
        common_pictures = common(sources, index, asked)
        tasks = _tasks(sources, [len(each.keys) for each in index], common_pictures, size, keep_images)
        states = run(
            partial(count_pieces, compared=common_pictures.compared, seed=seed, size=size, keep_images=keep_images),
            tasks,
            "counting captions",
        )
    accumulators, sample = states[0]
    for others, other_sample in states[1:]:
        for name, accumulator in accumulators.items():
            accumulator.merge(others[name])
        sample.merge(other_sample)
    return Counted(
        common_pictures.compared.names,
        common_pictures.compared.references,
        accumulators,
        sample,
        int(common_pictures.joined.common.sum()),
        common_pictures.failed,
        (*common_pictures.notes, *_missing_images(sources, sample)),
    )


def _tasks(sources: Sequence[Source], rows: Sequence[int], found: Common, size: int, keep_images: int) -> list[Task]:
    """What is counted of each piece, where there is something."""
    joined = found.joined
    compared = np.flatnonzero(joined.common)  # in the order of the seed, so the sample comes first
    in_sample, with_image = np.zeros((2, len(joined.places)), bool)
    in_sample[compared[:size]], with_image[compared[:keep_images]] = True, True
    sampled, pictured = in_sample[joined.picture_of_row], with_image[joined.picture_of_row]
    tasks, start = [], 0
    separate = any(source.role == "images" for source in sources)
    pieces = [(source, piece) for source in sources for piece in source.pieces]
    for (source, piece), count in zip(pieces, rows, strict=True):
        rows_of_piece, start = slice(start, start + count), start + count
        wanted = pictured[rows_of_piece] & (source.role == "images" or not separate or piece.by_path)
        if joined.take[:, rows_of_piece].any() or wanted.any():
            tasks.append(
                Task(piece, joined.take[:, rows_of_piece], joined.again[rows_of_piece], sampled[rows_of_piece], wanted)
            )
    return tasks


def count_pieces(
    tasks: Iterable[Task], compared: Compared, seed: int, size: int, keep_images: int
) -> tuple[dict[str, CaptionAccumulator], PictureSample]:
    """The captions of each column that are compared, counted, and the sample of their pictures."""
    accumulators = {name: CaptionAccumulator() for name in compared.columns}
    sample = PictureSample(size, seed, keep_images)
    for task in tasks:
        pictures = _parts(task, compared, seed)
        while several := list(islice(pictures, ROWS_AT_ONCE)):
            for name, accumulator in accumulators.items():
                having = [picture for picture, _ in several if name in picture.captions]
                marks = [picture.truncated.get(name) or (False,) * len(picture.captions[name]) for picture in having]
                accumulator.update(
                    [picture.captions[name] for picture in having], marks, [picture.scene for picture in having]
                )
            sample.update(picture for picture, sampled in several if sampled)
    return accumulators, sample


def _parts(task: Task, compared: Compared, seed: int) -> Iterator[tuple[Picture, bool]]:
    """What each row of a piece adds to its picture, where it adds anything, and whether the picture is in the sample."""
    rows = task.piece.read(compared.columns, frozenset(np.flatnonzero(task.pictured).tolist()))
    wanted = zip(task.take.T.tolist(), task.again.tolist(), task.sampled.tolist(), task.pictured.tolist())
    for take, again, sampled, pictured in wanted:
        if (row := next(rows, None)) is None:
            raise ValueError(f"{task.piece.path}: changed while it was read")
        if not pictured and not any(take):
            continue
        key = compared.by_number and number_of(row.key) or row.key
        picture = Picture(key, scene=scene_of(row), image=row.image, again=again)
        for name, count in zip(compared.columns, take):
            if count:
                captions, marks = captions_of(row, name), truncated_of(row, name)
                if len(captions) < count:
                    raise ValueError(f"{task.piece.path}: changed while it was read")
                chosen = choose(len(captions), count, place(name_hash(key, seed=seed), again), name)
                picture.captions[name] = tuple(captions[at] for at in chosen)
                if marks:
                    picture.truncated[name] = tuple(marks[at] for at in chosen)
                if name == compared.references:
                    picture.references = captions
        yield picture, sampled


def choose(captions: int, count: int, at: int, column: str) -> Sequence[int]:
    """Which captions of a picture at this `place` count, in order: those whose hash of place, column and number is least."""
    if captions == count:
        return range(count)
    salt = f"{at}/{column}/".encode("utf-8", "surrogatepass")
    drawn = sorted(range(captions), key=lambda number: blake2b(salt + b"%d" % number, digest_size=8).digest())
    return sorted(drawn[:count])


def _missing_images(sources: Sequence[Source], sample: PictureSample) -> list[str]:
    specs = [source.spec for source in sources if source.role == "images"]
    looked_for = sample.pictures[: sample.images]
    missing = [picture.key for picture in looked_for if picture.image is None]
    return (
        [
            f"Pictures that are not in {' or '.join(specs)}: {len(missing):,} of the {len(looked_for):,} that were looked for, as "
            f"{missing[0]!r}."
        ]
        if specs and missing
        else []
    )
