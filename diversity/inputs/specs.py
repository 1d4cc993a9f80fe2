"""What `--input`, `--references` and `--images` name -> rows with captions, a piece of a file at a time.

Everything that `imagetext.sources.read_samples` reads, and captions alone:

| file | pictures |
|---|---|
| `.txt` | each line is the one caption of a picture of its own; its key is the line's number, from 0, so files go line by line |
| `.json` | COCO results `[{"image_id", "caption"}]` or annotations `{"images", "annotations"}`: a picture's are those of an id |
| `.json` | `{"key": "caption"}` or `{"key": ["caption", ...]}`, or a list of rows as in JSONL |
| tables | columns of texts or lists of texts; the picture may be missing; rows of one picture are one, as in `imagetext.sources` |

The captions of a text file, of COCO files and of `{"key": ...}` are a column with the file's name. `NAME=SPEC` gives an input's
captions a name: those of its synthetic column, or its originals where it has none. References may be any of these, or the
originals of records. Pictures are read only of rows that are asked for.
"""

import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import NamedTuple

from diversity.columns import HUMAN
from diversity.inputs.records import (
    KEYS,
    Piece,
    captions_of,
    document_pieces,
    is_list_of_rows,
    shard_rows,
    table_pieces,
    text_pieces,
)
from imagetext.fields import CAPTION_COLUMNS
from imagetext.picture_files import named_folders, one_error
from imagetext.readers.curated import KINDS
from imagetext.readers.published import KINDS as PUBLISHED
from imagetext.readers.row_records import IMAGE_COLUMNS
from imagetext.readers.suffixes import TABLE_SUFFIXES, split_suffix
from imagetext.readers.table_flags import Columns
from imagetext.sample import Record
from imagetext.sources import named_files, read_samples
from imagetext.stores import Entry, entry, plain_path

DOCUMENTS = (".txt", ".json")
NO_CAPTIONS = (*KEYS, *IMAGE_COLUMNS, "sha256", "error", "source", "json")  # texts in records that are none
NO_IMAGES = "none"
SUFFIXES = (".tar", *TABLE_SUFFIXES, *DOCUMENTS)


class Source(NamedTuple):
    """One `--input`, the references or the pictures."""

    spec: str
    pieces: list[Piece]
    role: str = "input"  # input | references | images


def open_sources(
    inputs: Sequence[str],
    references: str | None,
    images: str | Sequence[str] | None,
    table: Columns = Columns(),
    asked: Sequence[str] = (),
) -> tuple[list[Source], tuple[str, ...], str | None]:
    """The sources in order, the columns of inputs that are named after files, and the references' column.

    References that are no column but a SPEC, which has one of ./:*?{ in it, become a column of that name.
    images: SPECs of pictures that are joined by key; folders among them may also hold those that tables name. (`none`,): no
    pictures are read. table: what columns of tables are. asked: columns of captions that are asked for.
    Raises ValueError with every problem of every SPEC.
    """
    problems: list[str | Exception] = []
    images = [images] if isinstance(images, str) else list(images or ())
    folders = None if images == [NO_IMAGES] else _folders_in(images, problems)
    sources, files = open_inputs(inputs, problems, table, asked, folders)
    for role, spec in (("references", references), *(("images", one) for one in images if folders is not None)):
        if spec is None or role == "references" and not re.search(r"[./:*?{]", spec):
            continue
        own: list[str | Exception] = []
        opened, columns = open_inputs([spec], own, table, asked, folders if role == "images" else None)
        problems += [f"--{role} {problem}" for problem in own]
        rows = partial(_references, spec, (*columns, HUMAN)) if role == "references" else _pictures
        sources += [
            Source(spec, [piece._replace(read=partial(rows, piece)) for piece in source.pieces], role)
            for source in opened
        ]
    if problems:
        raise one_error(problems)
    return sources, files, references


def _folders_in(images: Sequence[str], problems: list[str | Exception]) -> tuple[str, ...]:
    """Those SPECs of pictures that are folders."""
    try:
        return tuple(folder for folder in named_folders(images) if (there := entry(folder)) and there.is_folder)
    except ValueError as error:
        problems.append(f"--images {error}")
        return ()


def _references(
    name: str, own: Sequence[str], piece: Piece, columns: Sequence[str] | None, images: Collection[int]
) -> Iterator[Record]:
    """The references of each row under one name."""
    for row in piece.read((), ()):
        found = next((found for column in own if (found := captions_of(row, column))), ())
        yield Record(row.key, None, columns={name: found})


def _pictures(piece: Piece, columns: Sequence[str] | None, images: Collection[int]) -> Iterator[Record]:
    """The pictures alone."""
    return (Record(row.key, row.image) for row in piece.read((), images))


def text_columns(sources: Sequence[Source]) -> list[str]:
    """The columns with captions in the first rows of each source, to say what there is instead."""
    rows = [
        row
        for source in sources
        if source.role == "input"
        for piece in source.pieces[:1]
        for row in islice(piece.read(None, ()), 100)
    ]
    return sorted(
        {
            name
            for row in rows
            for name in (HUMAN, *row.columns, *row.meta)
            if name not in NO_CAPTIONS and captions_of(row, name)
        }
    )


def _renamed(name: str, piece: Piece, columns: Sequence[str] | None, images: Collection[int]) -> Iterator[Record]:
    """The rows with their synthetic captions, or else their originals, as the column `name`."""
    for row in piece.read(columns, images):
        synthetic = [column for column, texts in row.syn_text.items() if texts]
        if len(synthetic) > 1:
            raise ValueError(
                f"--input {name}=…: {piece.path} has several columns, {', '.join(synthetic)}, and one has to be "
                "meant: leave the name out, and choose with --column"
            )
        own = (*synthetic, HUMAN)[0]
        if name == HUMAN != own:
            raise ValueError(
                f"--input {name}=…: {piece.path} has synthetic captions, in {own}, and {name} is the name of human ones: "
                "give another name"
            )
        kept = {column: texts for column, texts in row.columns.items() if column not in (own, *CAPTION_COLUMNS)}
        yield replace(
            row,
            captions=() if own == HUMAN else row.captions,
            columns={**kept, name: captions_of(row, own)},
            scores={name: row.scores[own]} if own in row.scores else {},
            meta={field: value for field, value in row.meta.items() if field not in CAPTION_COLUMNS},
        )


def open_inputs(
    specs: Sequence[str],
    problems: list[str | Exception],
    table: Columns = Columns(),
    asked: Sequence[str] = (),
    folders: tuple[str, ...] | None = (),
) -> tuple[list[Source], tuple[str, ...]]:
    """A source of each SPEC, and the columns that it or its files name; what is wrong is added to `problems`.

    folders: where the pictures lie that tables name, (): beside these; None: no pictures are read of them.
    """
    given = {spec: re.fullmatch(r"([A-Za-z_][\w.-]*)=(.+)", spec) for spec in specs if not os.path.exists(spec)}
    names = {found[2]: found[1] for found in given.values() if found}
    problems += [
        f"--input {found[0]}: the same input has the name {names[found[2]]}, too"
        for found in given.values()
        if found and names[found[2]] != found[1]
    ]
    files: dict[str, dict[str, Entry | None]] = {}
    for spec in (match[2] if (match := given.get(spec)) else spec for spec in specs):
        try:
            files[spec] = {spec: None} if _is_set(spec) else named_files(plain_path(spec))
        except (ValueError, OSError) as error:
            problems.append(error)
    columns = _columns_of(
        [
            path
            for spec, named in files.items()
            for path in named
            if spec not in names and not _is_set(spec) and _is_document(path)
        ]
    )
    sources = []
    for spec, named in files.items():
        name = names.get(spec, "")
        sources.append(Source(spec, []))
        for path, there in named.items():
            try:
                pieces = open_file(path, there, name or columns.get(path, ""), table, asked, folders)
            except (ValueError, OSError) as error:
                problems.append(error)
                continue
            renames = name and not _is_document(path)
            sources[-1].pieces.extend(
                piece._replace(read=partial(_renamed, name, piece)) if renames else piece for piece in pieces
            )
    return sources, tuple(dict.fromkeys((*columns.values(), *names.values())))


def open_file(
    path: str, there: Entry | None, column: str, table: Columns, asked: Sequence[str], folders: tuple[str, ...] | None
) -> list[Piece]:
    """The pieces of one file, folder or set; captions of a text file or COCO file become `column`."""
    suffix = split_suffix(path)[1]
    if _is_set(path) or there and there.is_folder or suffix == ".tar" or suffix == ".json" and not _is_document(path):
        shards = read_samples(path, folders, columns=table, check=folders is not None)
        return [Piece(shard.path, partial(shard_rows, shard)) for shard in shards]
    if suffix not in SUFFIXES:
        known = f"not a {', '.join(SUFFIXES)} file or a folder of pictures"
        raise ValueError(f"{path}: {known if there else 'no such folder, and ' + known}")
    if not there:
        raise ValueError(f"{path}: no such file")
    if suffix == ".txt":
        pieces = text_pieces(path, column)
    elif suffix == ".json" and not is_list_of_rows(path):
        pieces = document_pieces(path, column)
    else:
        pieces = table_pieces(path, table, asked, folders)
    if not pieces:
        raise ValueError(f"{path}: no rows")
    return pieces


def _is_set(spec: str) -> bool:
    return spec.partition(":")[0] in (*KINDS, *PUBLISHED, "scenes", "datasets") and ":" in spec


def _is_document(path: str) -> bool:
    """Whether a file holds captions alone; an info.json lists shards."""
    return split_suffix(path)[1] in DOCUMENTS and os.path.basename(path) != "info.json"


def _columns_of(paths: Sequence[str]) -> dict[str, str]:
    """Columns named after files: the name without suffix, with as many of its folders as it takes to tell them apart.

    The suffix stays where it alone makes a difference, or where the name would be that of the originals.
    """
    paths, count = list(dict.fromkeys(paths)), 1
    places = {path: path if "://" in path else os.path.abspath(path) for path in paths}
    stems = {path: os.path.splitext(place)[0] for path, place in places.items()}
    if len(set(stems.values())) == len(paths) and not any(os.path.basename(stem) == HUMAN for stem in stems.values()):
        places = stems
    names = {path: place.split(os.sep) for path, place in places.items()}
    while len({tuple(parts[-count:]) for parts in names.values()}) < len(set(places.values())):
        count += 1
    return {path: "/".join(parts[-count:]) for path, parts in names.items()}
