"""Read synthetic captions from the files in which others publish them: `KIND:FILE…`, for `capsmith join`.

| SPEC | files | name of a picture | columns |
|---|---|---|---|
| laclip:CSV::FILE::… | LaCLIP's texts, a line for each row of its CSV | path or url | syn_text_laclip_… by FILE |
| vecap:FILE | VeCap's JSON object of links and captions, or a table | url | syn_text_vecap |
| hq-clip:PLACE#FIELD=COLUMN,… | HQ-CLIP's folder or tar of JSON files, one for each uid | uid | as in the SPEC |
| recap:FILE | Recap-DataComp-1B's Parquet | url, sha256 | syn_text_recap |

FILE may be a pattern. The records of DataCompDR and DFNDR are tars, and are read as tars; uid and url.txt name their
pictures.

What is known of these forms:
- LaCLIP: the form that its own reader (data.py) reads. In the CSV, the first cell is the picture and the second its
  caption. A row whose picture does not end with .png, .jpg or .jpeg (also the header) has no line in the texts. In a
  CSV of URLs, each row has a line. A rewrite of fewer than two words is left out, because LaCLIP trains on the
  original caption instead. The original captions of RedCaps are published as a text without names of pictures, and
  cannot be joined.
- VeCap-300M: ten objects {link: caption}, as its repository reads them. A table (JSON lines, CSV, Parquet, a JSON
  list) has the columns url and caption, like a copy of the set on the Hub. The form of its captions of CC3M is not
  known.
- HQ-CLIP: each JSON file has the uid as its name and holds two descriptions and two lists of tags. The names of its
  fields are not published, so the SPEC must give them: nothing is guessed, because a negative must not be taken for a
  caption. `a.b` is the field b of the object a. Tags in one text are split at commas. How the files are packed is not
  known: a folder and a tar are read.
- Recap-DataComp-1B: the columns of its card: url, re_caption, org_caption, sha256, key. What its key names is not
  known.

Licences: the captions of Recap-DataComp-1B are CC BY 4.0; Apple's sets have licences of their own.
"""

import csv
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, TextIO

from imagetext.columns import check_column, is_tags
from imagetext.fields import json_object, json_value, loose_texts, well_formed
from imagetext.keys import text_of
from imagetext.picture_files import PictureFolders, real_path, short
from imagetext.read_ahead import in_order
from imagetext.readers.folder_rows import read_inside
from imagetext.readers.json_values import object_pairs
from imagetext.readers.row_records import RowSelection
from imagetext.readers.suffixes import TAR_SUFFIXES, split_suffix
from imagetext.readers.tables import split_rows
from imagetext.readers.tar_members import read_members
from imagetext.readers.text_layout import first_character
from imagetext.readers.text_lines import WINDOW, lines_of
from imagetext.sample import Record
from imagetext.stores import Entry, files_below, is_remote, open_file

# our column, the table's column of synthetic captions, and that of original captions
TABLES = {"vecap": ("syn_text_vecap", "caption", ""), "recap": ("syn_text_recap", "re_caption", "org_caption")}
KINDS = ("laclip", "hq-clip", *TABLES)
NAMES = ("url", "sha256", "uid")  # columns of tables that name a picture
URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
PATHS = (".png", ".jpg", ".jpeg")  # suffixes of paths that have a line in LaCLIP's files


class Published(NamedTuple):
    """The published captions of one picture."""

    names: Mapping[str, str]  # the names of the picture: url, uid, sha256, path
    columns: Mapping[str, Sequence[str]]
    originals: Sequence[str] = ()
    key: str = ""  # "": a key is made from the number of the row


@dataclass(frozen=True)
class PublishedRows:
    """Captions without pictures from one published file, or from files that belong together, read when iterated."""

    kind: str
    path: str
    columns: tuple[tuple[str, str], ...] = ()  # LaCLIP: caption files, HQ-CLIP: fields, each with its column

    @property
    def files(self) -> tuple[str, ...]:
        """The files that are read together with this one."""
        return tuple(path for path, _ in self.columns) if self.kind == "laclip" else ()

    def __iter__(self) -> Iterator[Record]:
        stem, source = split_suffix(self.path)[0], os.path.basename(self.path)
        for number, row in enumerate(self.rows()):
            key, place = f"{stem}-{number:09d}", f"{source}:{number + 1}"
            if isinstance(row, ValueError):
                yield Record(key, None, meta={"uid": key, "source": place}, error=well_formed(str(row)))
                continue
            columns = {name: tuple(map(well_formed, texts)) for name, texts in row.columns.items() if texts}
            key = well_formed(row.key) or key
            meta = {"uid": key, "source": place, **{name: well_formed(value) for name, value in row.names.items()}}
            yield Record(key, None, captions=tuple(map(well_formed, row.originals)), columns=columns, meta=meta)

    def rows(self) -> Iterator[Published | ValueError]:
        """Yield the published captions of each picture, or what is wrong with its row.

        Raises ValueError if the file cannot be read any further.
        """
        if self.kind == "laclip":
            return _laclip_rows(self.path, self.columns)
        if self.kind == "hq-clip":
            return (_hq_clip_row(name, data, self.columns) for name, data in _json_files(self.path))
        return _table_rows(self.path, *TABLES[self.kind])


def published_rows(kind: str, files: Mapping[str, Entry | None], fields: str = "") -> list[PublishedRows]:
    """Return the rows of the files that a SPEC of this module names: an object for each, or one for LaCLIP's files.

    fields: the part of the SPEC after `#`.

    Raises ValueError, with all problems, if files are missing or of another kind, or if the number of lines in
    LaCLIP's files differs from the number of pictures in the CSV.
    """
    if kind == "laclip":
        # first: otherwise two names with a comma between would be reported as one missing file
        _check_laclip([*files])
    problems = [f"{path}: no such file or folder" for path, file in files.items() if file is None]
    folders = {path for path, file in files.items() if file is not None and file.is_folder}
    if fields and kind != "hq-clip":
        problems.append(f"{kind}: takes no #{fields}")
    if problems:
        raise ValueError("; ".join(problems))
    if kind == "laclip":
        return [_laclip([*files])]
    pieces = [PublishedRows(kind, path, _columns(path, fields) if kind == "hq-clip" else ()) for path in files]
    for rows in pieces:
        if kind != "hq-clip":
            _check_table(rows)
        elif split_suffix(rows.path)[1] not in TAR_SUFFIXES and rows.path not in folders:
            problems.append(f"{rows.path}: neither the folder of HQ-CLIP's JSON files nor a tar of them")
        elif next(_json_files(rows.path), None) is None:
            problems.append(f"{rows.path}: there is no JSON file")
    if problems:
        raise ValueError("; ".join(problems))
    return pieces


# ---- LaCLIP: line i of each text file belongs to picture i of the CSV ----------------------------------------------


def _is_csv(path: str) -> bool:
    return split_suffix(path)[1] == ".csv"


def _check_laclip(files: Sequence[str]) -> None:
    if [*map(_is_csv, files)].count(True) != 1 or len(files) < 2:
        raise ValueError(
            "laclip: expected one CSV and its texts, as in "
            "laclip:cc3m_original.csv::cc3m_chatgpt.txt::cc3m_bard.txt, got "
            + " and ".join(map(os.path.basename, files))
        )


def _laclip(files: Sequence[str]) -> PublishedRows:
    (table,), texts = filter(_is_csv, files), [path for path in files if not _is_csv(path)]
    columns: dict[str, str] = {}
    for path in texts:
        name = re.sub("[^a-z0-9]+", "_", split_suffix(path)[0].rpartition("_")[2].lower())
        if other := columns.get(column := check_column(f"syn_text_laclip_{name}")):
            raise ValueError(f"{other} and {path}: would both be {column}; give them other names")
        columns[column] = path
    pictures = sum(1 for _ in _laclip_pictures(table))
    counts = {}
    for path in texts:
        with _open_text(path) as lines:
            counts[path] = sum(1 for _ in lines_of(path, lines))
    different = [f"{path} has {count:,} lines" for path, count in counts.items() if count != pictures]
    if different:
        raise ValueError(
            f"{table}: has {pictures:,} pictures, but {', '.join(different)}: it is not known which line belongs to "
            "which picture"
        )
    return PublishedRows("laclip", table, tuple((path, column) for column, path in columns.items()))


def _laclip_rows(path: str, columns: Sequence[tuple[str, str]]) -> Iterator[Published]:
    with ExitStack() as stack:
        lines = [lines_of(file, stack.enter_context(_open_text(file))) for file, _ in columns]
        names = [column for _, column in columns]
        for (place, name, original), *texts in zip(_laclip_pictures(path), *lines, strict=True):
            rewrites = {column: [text.strip()] for column, text in zip(names, texts) if len(text.split()) > 1}
            yield Published({place: name}, rewrites, loose_texts(original))


def _laclip_pictures(path: str) -> Iterator[tuple[str, str, str]]:
    """Yield the pictures of the CSV that have a line in the texts: `url` or `path`, that name, and the caption."""
    with _open_text(path, newline="") as file:
        rows = csv.reader(lines_of(path, file))
        while True:
            try:
                cells = next(rows, None)
            except csv.Error as error:
                raise ValueError(f"{path}: line {rows.line_num:,}: {error}") from error
            if cells is None:
                return
            name = cells[0].strip() if cells else ""
            field = ""
            if URL.match(name):
                field = "url"
            elif name.lower().endswith(PATHS):
                field = "path"
            if field and len(cells) < 2:
                raise ValueError(f"{path}: line {rows.line_num:,}: {short(name)} has no caption after a comma")
            if field:
                yield field, name, cells[1]


@contextmanager
def _open_text(path: str, newline: str | None = None) -> Iterator[TextIO]:
    """Open a UTF-8 file as text. Bytes that are not UTF-8 become U+FFFD. newline: as in Python's `open`."""
    with open_file(path, WINDOW) as file:
        with io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline=newline) as text:
            yield text


# ---- VeCap and Recap-DataComp: a link and a caption in each row ----------------------------------------------------


def _check_table(rows: PublishedRows) -> None:
    """Raise ValueError if the first row lacks the columns of the set. A JSON object has only links and captions."""
    if _is_object(rows.path):
        if rows.kind != "vecap":
            raise ValueError(f"{rows.path}: is a JSON object, but {rows.kind} is a table")
        return
    caption = TABLES[rows.kind][1]
    numbered = chain.from_iterable(piece.numbered() for piece in split_rows(rows.path))
    first = next((row for _, row in numbered if not isinstance(row, ValueError)), {})
    if caption not in first or not first.keys() & {*NAMES}:
        columns = ", ".join(first) or "no rows"
        raise ValueError(f"{rows.path}: expected the columns url and {caption} of {rows.kind}, it has {columns}")


def _is_object(path: str) -> bool:
    return split_suffix(path)[1] == ".json" and first_character(path) == "{"


def _table_rows(path: str, column: str, caption: str, original: str) -> Iterator[Published | ValueError]:
    if _is_object(path):
        rows: Iterator[Any] = _object_rows(path)
    else:
        selection = RowSelection((*NAMES, caption, original), keys=("key",))
        rows = (row for piece in split_rows(path) for _, row in piece.numbered(selection))
    for row in rows:
        if isinstance(row, ValueError):
            yield row
            continue
        texts = loose_texts(row.get(caption))
        if not texts:
            yield ValueError(f"{caption}: expected a text, got {short(row.get(caption))}")
            continue
        names = {name: value for name in NAMES if isinstance(value := row.get(name), str) and value}
        key = row.get("key")
        originals = loose_texts(row.get(original))
        yield Published(names, {column: texts}, originals, key="" if key is None else text_of(key))


def _object_rows(path: str) -> Iterator[Mapping[str, Any] | ValueError]:
    """The links and captions of a JSON object, as rows."""
    with open_file(path, WINDOW) as file:
        for pair in object_pairs(path, file):
            if isinstance(pair, ValueError):
                yield pair
                continue
            try:
                link, caption = map(json_value, pair)
            except ValueError as error:
                yield error
                continue
            yield {"url": link, "caption": caption}


# ---- HQ-CLIP: a JSON file for each uid -----------------------------------------------------------------------------


def _columns(path: str, fields: str) -> tuple[tuple[str, str], ...]:
    """Parse FIELD=COLUMN,…. Raises ValueError, which lists the fields of the first file, for any other form."""
    pairs = [part.partition("=") for part in fields.split(",") if part]
    columns = [column for _, _, column in pairs]
    if not pairs or not all(field and column for field, _, column in pairs) or len({*columns}) < len(columns):
        spec = f"hq-clip:{path}#{fields}" if fields else f"hq-clip:{path}"
        example = f"hq-clip:{path}#long=syn_text_hq,negative=neg_text_hq,tags=tags_hq,negative_tags=neg_tags_hq"
        raise ValueError(
            f"{spec}: say which field is which column, each once, as in {example}{_fields_of_first_file(path)}"
        )
    return tuple((field, check_column(column)) for field, _, column in pairs)


def _fields_of_first_file(path: str) -> str:
    """The end of a message that lists the fields of the first file."""
    name, data = next(_json_files(path), ("", b""))
    if isinstance(data, ValueError):
        return ""
    try:
        return f"; {name}.json has the fields {', '.join(json_object(data))}" if name else "; there is no JSON file"
    except ValueError:
        return ""


def _json_files(place: str) -> Iterator[tuple[str, bytes | ValueError]]:
    """Yield the name (the uid) and the bytes of each JSON file in a folder or tar."""
    if split_suffix(place)[1] in TAR_SUFFIXES:
        for member in filter(None, read_members(place, skip=lambda suffix: suffix != "json")):
            yield member.key.rpartition("/")[2], ValueError(member.problem) if member.data is None else member.data
        return
    folders = PictureFolders(place, is_input=True)
    below = files_below(place, lambda link: folders.hold(real_path(link)))
    paths = [file.path for file in below if file.path.lower().endswith(".json")]

    def read(path: str) -> bytes | ValueError:
        try:
            return read_inside(path, folders)
        except ValueError as error:
            return error

    contents = in_order((is_remote(path), partial(read, path)) for path in paths)
    yield from ((os.path.splitext(os.path.basename(path))[0], data) for path, data in zip(paths, contents))


def _hq_clip_row(uid: str, data: bytes | ValueError, columns: Sequence[tuple[str, str]]) -> Published | ValueError:
    if isinstance(data, ValueError):
        return ValueError(f"{uid}.json: {data}")
    try:
        document = json_object(data)
        texts = {column: _texts(document, field, column) for field, column in columns}
    except ValueError as error:
        return ValueError(f"{uid}.json: {error}")
    if not any(texts.values()):
        fields = ", ".join(field for field, _ in columns)
        return ValueError(f"{uid}.json: no text in {fields}; it has {', '.join(document) or 'no field'}")
    return Published({"uid": uid}, texts, key=uid)


def _texts(document: Mapping[str, Any], field: str, column: str) -> list[str]:
    """The texts of a field; `a.b` is the field b of the object a. Raises ValueError if it holds anything but texts."""
    value: Any = document
    for part in [field] if field in document else field.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    texts = loose_texts(value)
    if value not in (None, "", []) and not texts:
        raise ValueError(f"{field}: expected a text or a list of texts, got {short(value)}")
    if isinstance(value, str) and is_tags(column):
        texts = value.split(",")
    return [text.strip() for text in texts if text.strip()]
