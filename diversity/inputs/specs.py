"""Open the SPECs of `--input`, `--references` and `--images` as rows with captions, one piece of a file at a time.

A SPEC may be everything that `imagetext.sources.read_samples` reads, and these files with captions and no pictures:

| file | pictures |
|---|---|
| `.txt` | each line is the only caption of one picture; its key is the line number from 0, so files go line by line; |
| | a table if its first line names columns of pictures and captions, as `image,caption` |
| `.json` | COCO results `[{"image_id", "caption"}]` or annotations `{"images", "annotations"}`, by image id |
| `.json` | `{"key": "caption"}` or `{"key": ["caption", ...]}`, or a list of rows as in JSONL |
| tables | columns of texts or lists of texts, with or without a picture; rows of one picture are joined |

The captions of a text file, of COCO files and of `{"key": ...}` become a column with the file's name. `NAME=SPEC`
gives the captions of an input a name: its synthetic column, or its original captions where it has no synthetic ones.
References may be any of these inputs, or the original captions of records. Pictures are read for requested rows only.
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
from imagetext.patterns import named_files
from imagetext.picture_files import named_folders
from imagetext.problems import one_error
from imagetext.readers.curated import KINDS
from imagetext.readers.published import KINDS as PUBLISHED
from imagetext.readers.row_records import IMAGE_COLUMNS
from imagetext.readers.suffixes import TABLE_SUFFIXES, not_an_input, split_suffix
from imagetext.readers.table_flags import Columns
from imagetext.readers.tables import is_text_with_header
from imagetext.sample import Record
from imagetext.sources import read_samples
from imagetext.stores import Entry, entry, plain_path

DOCUMENTS = (".txt", ".json")
# Fields of records whose texts are no captions.
NO_CAPTIONS = (*KEYS, *IMAGE_COLUMNS, "sha256", "error", "source", "json")
NO_IMAGES = "none"
SUFFIXES = (".tar", *TABLE_SUFFIXES, *DOCUMENTS)


class InputSource(NamedTuple):
    """One SPEC of `--input`, `--references` or `--images`, opened."""

    spec: str
    pieces: list[Piece]
    role: str = "input"  # input | references | images


def open_sources(
    inputs: Sequence[str],
    references: str | None,
    images: str | Sequence[str] | None,
    table: Columns = Columns(),
    columns: Sequence[str] = (),
) -> tuple[list[InputSource], tuple[str, ...], str | None]:
    """Open all SPECs; return the sources in order, the columns that are named after files, and the references' column.

    References that contain one of the characters ./:*?{ are a SPEC and no column; they become a column of that name.

    images: SPECs of pictures, which are joined by key; picture files that tables name may be in the folders among
    them. (`none`,) reads no pictures. table: which columns of tables hold what. columns: the caption columns that will
    be compared.

    Raises ValueError with every problem of every SPEC.
    """
    problems: list[str | Exception] = []
    images = [images] if isinstance(images, str) else list(images or ())
    folders = None if images == [NO_IMAGES] else _folders_in(images, problems)
    sources, files = open_inputs(inputs, problems, table, columns=columns, folders=folders)
    more_specs = []
    if references is not None and re.search(r"[./:*?{]", references):
        more_specs.append(("references", references))
    if folders is not None:
        more_specs += [("images", spec) for spec in images]
    for role, spec in more_specs:
        problems_of_spec: list[str | Exception] = []
        opened, columns_of_spec = open_inputs(
            [spec], problems_of_spec, table, columns=columns, folders=folders if role == "images" else None
        )
        problems += [f"--{role} {problem}" for problem in problems_of_spec]
        read_rows = (
            partial(_read_references, spec, (*columns_of_spec, HUMAN)) if role == "references" else _read_pictures
        )
        for source in opened:
            pieces = [piece._replace(read=partial(read_rows, piece)) for piece in source.pieces]
            sources.append(InputSource(spec, pieces, role))
    if problems:
        raise one_error(problems)
    return sources, files, references


def _folders_in(images: Sequence[str], problems: list[str | Exception]) -> tuple[str, ...]:
    """Return the SPECs of pictures that are folders."""
    folders = []
    try:
        for folder in named_folders(images):
            store_entry = entry(folder)
            if store_entry and store_entry.is_folder:
                folders.append(folder)
    except ValueError as error:
        problems.append(f"--images {error}")
        return ()
    return tuple(folders)


def _read_references(
    name: str, candidates: Sequence[str], piece: Piece, columns: Sequence[str] | None, images: Collection[int]
) -> Iterator[Record]:
    """Yield the rows of a piece with one column `name`: the first of the candidate columns that has captions."""
    for row in piece.read((), ()):
        captions: tuple[str, ...] = ()
        for column in candidates:
            captions = captions or captions_of(row, column)
        yield Record(row.key, None, columns={name: captions})


def _read_pictures(piece: Piece, columns: Sequence[str] | None, images: Collection[int]) -> Iterator[Record]:
    """Yield the rows of a piece with their pictures and without captions."""
    return (Record(row.key, row.image) for row in piece.read((), images))


def text_columns(sources: Sequence[InputSource]) -> list[str]:
    """Return the columns with captions in the first rows of each input, for messages about missing columns."""
    names = set()
    for source in sources:
        if source.role != "input":
            continue
        for piece in source.pieces[:1]:
            for row in islice(piece.read(None, ()), 100):
                for name in (HUMAN, *row.columns, *row.meta):
                    if name not in NO_CAPTIONS and captions_of(row, name):
                        names.add(name)
    return sorted(names)


def _read_renamed(name: str, piece: Piece, columns: Sequence[str] | None, images: Collection[int]) -> Iterator[Record]:
    """Yield the rows of a piece with their synthetic captions, or else their original ones, as the column `name`."""
    for row in piece.read(columns, images):
        synthetic = [column for column, texts in row.syn_text.items() if texts]
        if len(synthetic) > 1:
            raise ValueError(
                f"--input {name}=…: {piece.path} has several columns, {', '.join(synthetic)}: leave the name out, "
                "and choose columns with --column"
            )
        source_column = synthetic[0] if synthetic else HUMAN
        if name == HUMAN != source_column:
            raise ValueError(
                f"--input {name}=…: {piece.path} has synthetic captions, in {source_column}, and {name} is the name "
                "of human captions: give another name"
            )
        other_columns = {
            column: texts for column, texts in row.columns.items() if column not in (source_column, *CAPTION_COLUMNS)
        }
        yield replace(
            row,
            captions=() if source_column == HUMAN else row.captions,
            columns={**other_columns, name: captions_of(row, source_column)},
            scores={name: row.scores[source_column]} if source_column in row.scores else {},
            meta={field: value for field, value in row.meta.items() if field not in CAPTION_COLUMNS},
        )


def open_inputs(
    specs: Sequence[str],
    problems: list[str | Exception],
    table: Columns = Columns(),
    *,
    columns: Sequence[str] = (),
    folders: tuple[str, ...] | None = (),
) -> tuple[list[InputSource], tuple[str, ...]]:
    """Open SPECs; return a source for each, and the columns that are named in SPECs or after files.

    Problems are added to `problems`. columns: the caption columns that will be compared. folders: where the picture
    files that tables name are; (): next to the tables, None: no pictures are read.
    """
    specs, names = _split_names(specs, problems)
    files: dict[str, dict[str, Entry | None]] = {}
    for spec in specs:
        try:
            files[spec] = {spec: None} if _is_set(spec) else named_files(plain_path(spec))
        except (ValueError, OSError) as error:
            problems.append(error)
    unnamed_documents = []
    for spec, paths in files.items():
        if spec not in names and not _is_set(spec):
            unnamed_documents += [path for path in paths if _is_document(path)]
    file_columns = _columns_named_after(unnamed_documents)
    sources = []
    for spec, paths in files.items():
        name = names.get(spec, "")
        sources.append(InputSource(spec, []))
        for path, store_entry in paths.items():
            column = name or file_columns.get(path, "")
            try:
                pieces = file_pieces(path, store_entry, column, table=table, columns=columns, folders=folders)
            except (ValueError, OSError) as error:
                problems.append(error)
                continue
            if name and not _is_document(path):
                pieces = [piece._replace(read=partial(_read_renamed, name, piece)) for piece in pieces]
            sources[-1].pieces.extend(pieces)
    return sources, tuple(dict.fromkeys((*file_columns.values(), *names.values())))


def _split_names(specs: Sequence[str], problems: list[str | Exception]) -> tuple[list[str], dict[str, str]]:
    """Split `NAME=SPEC`: return the SPECs without names, and the name of each SPEC that has one."""
    matches = {spec: re.fullmatch(r"([A-Za-z_][\w.-]*)=(.+)", spec) for spec in specs if not os.path.exists(spec)}
    names = {match[2]: match[1] for match in matches.values() if match}
    for match in matches.values():
        if match and names[match[2]] != match[1]:
            problems.append(f"--input {match[0]}: the same input has the name {names[match[2]]}, too")
    return [match[2] if (match := matches.get(spec)) else spec for spec in specs], names


def file_pieces(
    path: str,
    store_entry: Entry | None,
    column: str,
    *,
    table: Columns,
    columns: Sequence[str],
    folders: tuple[str, ...] | None,
) -> list[Piece]:
    """Return the pieces of one file, folder or set; captions of a text file or COCO file become `column`.

    `store_entry` is the file or folder at the path, None where there is none. The rest is as in `open_inputs`.
    """
    suffix = split_suffix(path)[1]
    is_folder = store_entry is not None and store_entry.is_folder

    def pieces_of_shards() -> list[Piece]:
        shards = read_samples(path, folders, columns=table, check=folders is not None)
        return [Piece(shard.path, partial(shard_rows, shard), samples=shard.samples) for shard in shards]

    if _is_set(path) or is_folder or suffix == ".tar" or suffix == ".json" and not _is_document(path):
        return pieces_of_shards()
    if suffix not in SUFFIXES:
        raise not_an_input(path, f"{', '.join(SUFFIXES)} file or a folder of pictures", exists=bool(store_entry))
    if not store_entry:
        raise ValueError(f"{path}: no such file")
    if suffix == ".txt" and _is_document(path):
        pieces = text_pieces(path, column)
    elif suffix == ".json" and not is_list_of_rows(path):
        pieces = document_pieces(path, column)
    else:
        pieces = table_pieces(path, table, columns, folders=folders)
        # A table without rows is a mistake, unless a run wrote it: then it is a shard without records.
        pieces = pieces or pieces_of_shards()
    if not pieces:
        raise ValueError(f"{path}: no rows")
    return pieces


def _is_set(spec: str) -> bool:
    """Return whether a SPEC names a set by its kind, such as scenes:… or karpathy:…"""
    return spec.partition(":")[0] in (*KINDS, *PUBLISHED, "scenes", "datasets") and ":" in spec


def _is_document(path: str) -> bool:
    """Return whether a file holds captions and no pictures; an info.json lists shards instead."""
    if split_suffix(path)[1] not in DOCUMENTS or os.path.basename(path) == "info.json":
        return False
    return not (entry(path) and is_text_with_header(path))


def _columns_named_after(paths: Sequence[str]) -> dict[str, str]:
    """Return a column name for each file: its name without suffix, after as many folder names as make it unique.

    The suffix stays where two files differ by it alone, or where the name would be that of the original captions.
    """
    paths, count = list(dict.fromkeys(paths)), 1
    full_paths = {path: path if "://" in path else os.path.abspath(path) for path in paths}
    stems = {path: os.path.splitext(full_path)[0] for path, full_path in full_paths.items()}
    if len(set(stems.values())) == len(paths) and not any(os.path.basename(stem) == HUMAN for stem in stems.values()):
        full_paths = stems
    parts_of = {path: full_path.split(os.sep) for path, full_path in full_paths.items()}
    while len({tuple(parts[-count:]) for parts in parts_of.values()}) < len(set(full_paths.values())):
        count += 1
    return {path: "/".join(parts[-count:]) for path, parts in parts_of.items()}
