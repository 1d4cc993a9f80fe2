"""Read a SPEC into shards of records."""

import itertools
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from imagetext import limits
from imagetext.fields import CAPTION_COLUMNS, json_object
from imagetext.patterns import named_files
from imagetext.picture_files import named_folders
from imagetext.problems import one_error
from imagetext.readers.compressed_tables import CompressedRows
from imagetext.readers.curated import KINDS, curated_pieces, kinds_like
from imagetext.readers.folder_rows import FolderRows
from imagetext.readers.folders import list_folder
from imagetext.readers.hub import HubRows, hub_pieces
from imagetext.readers.labels import Labels
from imagetext.readers.published import KINDS as PUBLISHED
from imagetext.readers.published import PublishedRows, published_rows
from imagetext.readers.suffixes import COMPRESSIONS, TABLE_SUFFIXES, TAR_SUFFIXES, not_an_input, split_suffix
from imagetext.readers.table_columns import Need
from imagetext.readers.table_flags import Columns
from imagetext.readers.table_pieces import ROWS_PER_SHARD, TableRows
from imagetext.readers.tables import is_text_with_header, split_table
from imagetext.readers.tars import TarRows
from imagetext.readers.text_layout import are_json_lines, encoding_of, first_character
from imagetext.sample import Record, Shard
from imagetext.scenes.draw import scene_shards
from imagetext.shards import read_marker
from imagetext.stores import (
    Entry,
    StoreError,
    check_regular,
    entries,
    entry,
    files_below,
    is_remote,
    join,
    listing,
    open_file,
    plain_path,
    read_bytes,
)

HINTS = 5  # places of other inputs in a folder without pictures that its error names


def read_samples(
    spec: str | Sequence[str],
    images: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    *,
    distinct: bool = True,
    labels: Labels | None = None,
    columns: Columns = Columns(),
    needs: Collection[Need] = ("either",),
    check: bool = True,
) -> list[Shard]:
    """Return the shards that one or several SPECs name. Pictures are read only when a shard is iterated.

    A SPEC is one of these; files may be in a store (`s3://`, `gs://`, `hf://`):

    - tar shards, also compressed ones: `shards/{00000..00009}.tar`, `*.tar`, `a.tar::b.tar`;
    - a folder of pictures, or a folder that a run of capsmith wrote, which stands for its shards;
    - a `.jsonl`, `.csv`, `.tsv` or `.parquet` table, a `.txt` whose first line names the columns of pictures and
      captions, a `.json` list of rows, or an `info.json` that lists such files;
    - a published caption set (`docci:FILE`, see `imagetext.readers.curated`);
    - published synthetic captions (`recap:FILE`, see `imagetext.readers.published`);
    - a data set of the library `datasets` (`datasets:ORG/NAME`, see `imagetext.readers.hub`);
    - the built-in picture set (`scenes:...`).

    A tar is one shard, and so is a compressed table (`.jsonl.gz`, `.csv.zst`). Folders and other tables are split into
    shards of 1,000 rows.

    images: the folders that hold the pictures of tables and caption sets, from which relative paths start (default:
        the folder of the file). A folder that does not exist is a problem, and so is a path, or a link in a folder,
        that leads elsewhere: `imagetext.picture_files`.
    check: whether these are problems (default), or only leave records without a picture.
    distinct: whether two shards of the same name are a problem (default), because a run writes files of that name.
    columns: which columns of tables hold pictures, captions and keys, and whether rows of one picture are one record.
    needs: what tables must have: "pictures", "captions" or "either".
    labels: where the classes of records are found. The first shard of each SPEC is checked for them; if it has none,
        the error says what it has instead.

    Raises ValueError with all problems of all SPECs, and StoreError if a store fails. Iterating a shard raises
    ValueError that names the file if a file is cut or damaged, after the rows before the damage, and StoreError if a
    store still fails after several attempts. A bad row is a Record with an `error`.
    """
    problems, shards = [], []
    specs = [spec] if isinstance(spec, str) else spec
    folders = named_folders(images)
    if check:
        problems += [
            f"--images {folder}: there is no such folder"
            for folder in folders
            if not is_remote(folder) and not os.path.isdir(folder or os.curdir)
        ]
    split = partial(split_table, images=folders, columns=columns, needs=needs, check=check)
    for single_spec in specs:
        with _collecting(problems):
            shards_of_spec = _shards_of(single_spec, split, problems)
            shards += _labelled(shards_of_spec, labels) if labels else shards_of_spec
    first_of_name = {}
    for shard in shards:
        first = first_of_name.setdefault(shard.name, shard)
        if distinct and first is not shard:
            problems.append(f"two inputs would both be written as {shard.name!r}: {first.path} and {shard.path}")
    if not shards and not problems:
        problems.append(f"{', '.join(specs)}: no rows" if spec else "no input given")
    if problems:
        raise one_error(problems)
    return shards


def read_records(spec: str | Sequence[str], images: Sequence[str] = (), *, check: bool = True) -> Iterator[Record]:
    """Yield the records of a SPEC of any format, in order. The arguments are those of `read_samples`.

    Raises ValueError as `read_samples` and its shards do.
    """
    return itertools.chain.from_iterable(read_samples(spec, images, distinct=False, check=check))


def check_table_flags(shards: Sequence[Shard], columns: Columns) -> None:
    """Raise ValueError if columns of tables are named, and none of the shards is of a table.

    shards: those of all inputs of a command, because its flags may be for one of them only.
    """
    if problems := idle_table_flags([shard.samples for shard in shards], columns):
        raise one_error(problems)


def idle_table_flags(inputs: Sequence[Any], columns: Columns) -> list[str]:
    """Return a line for each flag that names columns of tables, if none of the `Shard.samples` are of a table."""
    # A table that a run of capsmith wrote without records has an empty list.
    if any(isinstance(samples, TableRows | CompressedRows | HubRows | list) for samples in inputs):
        return []
    folders = [samples for samples in inputs if isinstance(samples, FolderRows)]
    has_metadata = any(row.captions or row.meta for folder in folders for row in folder.rows)
    problems = []
    if columns.image:
        problems.append(f"--image-column {columns.image}: there is no table in --input")
    if columns.captions and not has_metadata:
        problems.append(
            f"--caption-column {', '.join(columns.captions)}: there is no table or metadata in --input; captions of a "
            f"tar are its txt, or {', '.join(CAPTION_COLUMNS)} in its json"
        )
    if columns.keys:
        problems.append(f"--key {', '.join(columns.keys)}: there is no table in --input")
    return problems


SplitTable = partial[list[TableRows | CompressedRows]]  # `split_table` with all arguments except the path


# ---- specs -------------------------------------------------------------------------------------------------------


def _shards_of(spec: str, split: SplitTable, problems: list[str | Exception]) -> list[Shard]:
    kind, _, source = spec.partition(":")
    columns, images = split.keywords["columns"], split.keywords["images"]
    if kind == "scenes":
        return scene_shards(spec)
    if kind == "datasets":
        pieces = hub_pieces(spec, columns, images)
        return [Shard(f"{rows.stem}-{rows.part:05d}", spec, stamp=rows.stamp, samples=rows) for rows in pieces]
    if kind in PUBLISHED:
        place, _, fields = source.partition("#")
        pieces = published_rows(kind, named_files(plain_path(place)), fields)
        return [Shard(_stem(rows.path), rows.path, stamp=_published_stamp(rows), samples=rows) for rows in pieces]
    if kind in KINDS:
        pieces = curated_pieces(f"{kind}:{plain_path(source)}", images)
        return [
            Shard(f"{_stem(rows.path)}-{number:05d}", rows.path, stamp=_stamp(rows.path), samples=rows)
            for number, rows in enumerate(pieces)
        ]
    shards = []
    for path, file in named_files(plain_path(spec)).items():
        with _collecting(problems):
            shards += _shards_at(path, file, split)
    return shards


def _stem(path: str) -> str:
    return split_suffix(os.path.normpath(path))[0]


@contextmanager
def _collecting(problems: list[str | Exception]) -> Iterator[None]:
    """Add what is wrong with an input to `problems`.

    StoreError is raised: the store may work when the command is repeated.
    """
    try:
        yield
    except StoreError:
        raise
    except (ValueError, OSError) as error:
        problems.append(error)


def _labelled(shards: Sequence[Shard], labels: Labels) -> list[Shard]:
    """The shards of one SPEC, which add labels to their records.

    Raises ValueError if the first shard has no labels.
    """
    if labels.names is None and shards and isinstance(shards[0].samples, HubRows | TableRows):
        labels = replace(labels, names=shards[0].samples.class_names(labels.place))
    shards = [replace(shard, labels=labels) for shard in shards]
    for shard in shards[:1]:
        labels.check(shard)
    return shards


def _shards_at(path: str, file: Entry | None, split: SplitTable) -> list[Shard]:
    """The shards of a file or folder. Raises ValueError if there is none, or it is no input."""
    if file and file.is_folder:
        folder = path.rstrip("/") if "://" in path else os.path.normpath(path)
        return _folder_shards(folder, split.keywords["images"], split.keywords["columns"].captions)
    stem, suffix = split_suffix(path)
    if suffix not in (*TAR_SUFFIXES, ".json", ".txt", *TABLE_SUFFIXES):
        expected = f"{', '.join((*TAR_SUFFIXES, *TABLE_SUFFIXES))} file, an info.json or a folder of pictures"
        raise not_an_input(path, expected, exists=bool(file))
    if not file:
        raise ValueError(f"{path}: no such file")
    check_regular(path)
    if suffix in TAR_SUFFIXES:
        return [Shard(stem, path, stamp=file.stamp, samples=TarRows(path))]
    if suffix == ".json" and not is_list(path):
        return _shards_in_info(path, split)
    if suffix == ".txt" and not is_text_with_header(path):
        advice = kinds_like(path) or "; a table needs such a line"
        raise ValueError(f"{path}: its first line names no columns of pictures and captions{advice}")
    pieces = split(path)
    if not pieces:
        # A run of capsmith wrote it without records: its input was an empty tar, or `select` chose no record.
        if read_marker(os.path.dirname(path), stem):
            return [Shard(f"{stem}-00000", path, stamp=file.stamp, samples=[])]
        raise ValueError(f"{path}: no rows")
    stamp, columns = file.stamp, split.keywords["columns"]
    if columns != Columns():
        stamp = {**stamp, "columns": [columns.image, [*columns.captions], [*columns.keys], columns.group]}
    if suffix in COMPRESSIONS:
        return [Shard(stem, path, stamp=stamp, samples=pieces[0])]
    return [Shard(f"{stem}-{number:05d}", path, stamp=stamp, samples=rows) for number, rows in enumerate(pieces)]


def is_list(path: str) -> bool:
    """Whether a JSON file is a list of rows, or has a row on each line. An `info.json` is not."""
    if os.path.basename(path) == "info.json":
        return False
    if first_character(path) == "[":
        return True
    with open_file(path) as file:
        mark, _ = encoding_of(file.read(4))
        file.seek(len(mark))
        return are_json_lines(file)


def _shards_in_info(path: str, split: SplitTable) -> list[Shard]:
    """The shards that an `info.json` lists, `{"lengths": {name: rows}}`.

    Names are relative to the folder of that file. The numbers are ignored: the tool that writes such files leaves them
    0, or counts only good rows.
    """
    try:
        lengths = json_object(read_bytes(path, limits.DOCUMENT)).get("lengths")
        if not isinstance(lengths, dict) or not lengths:
            raise ValueError('"lengths" is not an object of shards')
    except ValueError as error:
        if os.path.basename(path) == "info.json":
            raise ValueError(f"{path}: lists no shards: {error}") from error
        advice = kinds_like(path) or '; a table has a row for each picture, [{"image": "a.jpg", "caption": "a dog"}]'
        raise ValueError(f"{path}: is no list of rows, and lists no shards: {error}{advice}") from error
    shards, problems = [], []
    for name, file in entries(join(os.path.dirname(path), name) for name in lengths).items():
        try:
            if split_suffix(name)[1] not in (*TAR_SUFFIXES, *TABLE_SUFFIXES):
                raise ValueError(f"{name}: not a shard")
            shards += _shards_at(name, file, split)
        except StoreError:
            raise
        except (ValueError, OSError) as error:
            problems.append(f"{path}: lists {error}")
    if problems:
        raise one_error(problems)
    return shards


def _stamp(path: str) -> Mapping[str, Any]:
    """A stamp that changes with a file; for a folder, the sum of its files' sizes and the latest change."""
    file = entry(path)
    if file is None or not file.is_folder:
        return file.stamp if file else {}
    stamps = [member.stamp for member in listing(path) if not member.is_folder]
    folder_stamp = {}
    for name in stamps[0] if stamps else ():
        values = [stamp[name] for stamp in stamps]
        folder_stamp[name] = sum(values) if name == "size" else max(values)
    return folder_stamp


def _published_stamp(rows: PublishedRows) -> Mapping[str, Any]:
    """A stamp that changes with a published file, with the files that are read with it, and with the columns read."""
    return {
        **_stamp(rows.path),
        "columns": [list(pair) for pair in rows.columns],
        "files": [_stamp(path) for path in rows.files],
    }


def _folder_shards(folder: str, images: tuple[str, ...], captions: tuple[str, ...]) -> list[Shard]:
    rows = list_folder(folder, images, captions)
    if not rows:
        paths = [file.path for file in files_below(folder)]
        # The suffix is shown as it is written, in capitals or not.
        inputs = {(os.path.dirname(path), path[len(path) - len(split_suffix(path)[1]) :]) for path in paths}
        hints = [
            f"; for its {suffix} files give {join(place, f'*{suffix}')}"
            for place, suffix in sorted(inputs)
            if suffix.lower() in (*TAR_SUFFIXES, *TABLE_SUFFIXES)
        ]
        if any(suffix == ".arrow" for _, suffix in inputs):
            hints.insert(0, f"; if `datasets` saved it, give datasets:{folder}")
        raise ValueError(f"{folder}: no pictures in this folder{''.join(hints[:HINTS])}")
    stem = os.path.basename(os.path.abspath(folder))
    pieces = [
        FolderRows(folder, tuple(rows[first : first + ROWS_PER_SHARD]), images)
        for first in range(0, len(rows), ROWS_PER_SHARD)
    ]
    return [
        Shard(f"{stem}-{number:05d}", folder, stamp=piece.stamp(), samples=piece)
        for number, piece in enumerate(pieces)
    ]
