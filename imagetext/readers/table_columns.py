"""Find the columns of pictures, captions and keys in a table, and give its rows the usual names."""

import ast
import json
import logging
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Literal, NamedTuple

from imagetext.columns import is_column
from imagetext.fields import CAPTION_COLUMNS, captions_in
from imagetext.keys import text_of
from imagetext.readers.chats import CHATS, answer_in, answers_of, is_chat, picture_in, without_marks
from imagetext.readers.row_records import IMAGE_COLUMNS, Row
from imagetext.readers.suffixes import table_kind
from imagetext.readers.table_flags import Columns
from imagetext.readers.text_layout import usual_name

logger = logging.getLogger(__name__)

Need = Literal["pictures", "captions", "either"]

PICTURES = (*IMAGE_COLUMNS, "filename", "img", "image_name", "images", "image_file", "img_path", "image_filename")
CAPTIONS = (*CAPTION_COLUMNS, "comment", "description", "completion")
LOOKED_AT = 200  # rows of a table without a header that are read to find its columns
BYTES = "the picture's bytes"  # instead of the name of a column that names the picture


class TableReading(NamedTuple):
    """How the rows of a table are given the usual names."""

    image: str | None  # the column that becomes `image`; "": there is none; None: rows have different columns
    captions: tuple[str, ...]  # the columns that become `captions`; (): captions are in a column of a usual name
    text: str  # the column of captions after renaming; "": rows have different columns
    key: str | None  # the column that becomes `key`
    lists: tuple[str, ...]  # columns whose cells may hold lists as text
    image_is_named: bool = False  # whether the user named `image`: then no other column replaces a missing one
    # Rows with the same value in this column, or the same BYTES, belong to one picture and have one caption each.
    # "": each row is a record.
    group_by: str = ""

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns that captions and keys are read from."""
        return tuple(filter(None, (*self.captions, self.text, self.key)))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that captions, keys and names of pictures are read from."""
        picture = self.image if self.group_by in ("image", BYTES) else self.group_by
        return tuple(filter(None, (*self.text_columns, picture)))


def reading_of(
    path: str,
    rows: Sequence[Row],
    columns: Columns,
    needs: Collection[Need] = (),
    *,
    header: Sequence[str] | None = None,
    of_bytes: bool = False,
) -> TableReading:
    """Find out how a table with these first rows is read. A warning says which of several columns is used.

    columns: the columns that the user named.
    needs: what the table must have.
    header: the names of all columns, if the table has a header.
    of_bytes: whether the column of pictures holds their bytes.

    Raises ValueError if a column that the user named is missing, if it is not clear which of several columns is meant,
    or if something that is needed is missing.
    """
    names = tuple(header if header is not None else dict.fromkeys(name for row in rows for name in row))
    problems = _missing_columns(columns, names)
    key = next((name for name in columns.keys if name in names), None)
    examples = rows if header is None else [dict.fromkeys(header, "x")]  # of a header, as if all its cells had values
    foreign = [row for row in examples if not _is_record(row)]
    pictures, captions = _usual_columns(foreign, PICTURES), _usual_columns(foreign, CAPTIONS)
    image, text = columns.image, None
    if not image:
        image = _choose(path, "pictures", "--image-column", candidates=pictures, best="image", problems=problems)
    if not columns.captions:
        caption_problems = problems if "captions" in needs else None
        text = _choose(
            path, "captions", "--caption-column", candidates=captions, best="captions", problems=caption_problems
        )
    ours = any(_is_record(row) for row in rows) or header is not None and not foreign
    has_pictures = columns.image or pictures or ours or any(picture_in(row) for row in rows)
    has_captions = columns.captions or captions or ours or any(name in CHATS for name in names)
    if rows or header is not None:
        # Without a header, later rows may have other columns.
        may_have_either = has_pictures or has_captions or header is None or any(map(is_column, names))
        problems += _unmet_needs(
            needs, pictures=bool(has_pictures), captions=bool(has_captions), either=bool(may_have_either)
        )
    if problems:
        advice = "" if pictures else _advice(path, names)
        present = f"it has {', '.join(map(repr, names)) or 'none'}{advice}"
        raise ValueError(f"{path}: {'; '.join(problems)}; {present}")
    moved = columns.captions or ((text,) if text and text not in CAPTION_COLUMNS else ())
    reading = TableReading(
        image=image,
        captions=moved,
        text="captions" if moved else text or "",
        key=key,
        lists=(*(moved or dict.fromkeys(chain.from_iterable(captions))), *filter(is_column, names)),
        image_is_named=bool(columns.image),
    )
    return reading._replace(group_by=_grouping_column(rows, reading, of_bytes)) if columns.group else reading


def _missing_columns(columns: Columns, names: Sequence[str]) -> list[str]:
    """The problems of columns that the user named and the table does not have."""
    if not names:
        return []
    named = [("--image-column", columns.image), *(("--caption-column", name) for name in columns.captions)]
    problems = [
        f"{flag} {name}: there is no such column" for flag, name in named if name is not None and name not in names
    ]
    if columns.keys and not any(name in names for name in columns.keys):
        problems.append(f"--key {', '.join(columns.keys)}: there is no such column")
    return problems


def _unmet_needs(needs: Collection[Need], *, pictures: bool, captions: bool, either: bool) -> Iterator[str]:
    """Yield the problems of a table that does not have what is needed."""
    if "either" in needs and not either:
        yield f"no column of pictures ({', '.join(IMAGE_COLUMNS)}) or captions ({', '.join(CAPTION_COLUMNS)})"
    elif "pictures" in needs and not pictures:
        yield "no column of pictures, unless --image-column names it"
    if "captions" in needs and not captions:
        yield "no column of captions, unless --caption-column names it"


def _grouping_column(rows: Sequence[Row], reading: TableReading, of_bytes: bool) -> str:
    """The column that names the picture, or BYTES, in a table with one row for each caption; "" in other tables."""
    usual = [row for row in (usual_row(dict(row), reading) for row in rows) if not isinstance(row, ValueError)]
    if not reading.text or any(
        _is_record(row) or isinstance(row.get(reading.text), list) or any(map(is_column, row)) for row in usual
    ):
        return ""
    if of_bytes:
        return BYTES
    column = "image_id"
    if reading.image:
        column = "image"
    elif reading.key:
        column = "key"
    return column if any(column in row for row in usual) else ""


def _usual_columns(rows: Sequence[Row], usual: Sequence[str]) -> list[list[str]]:
    """The distinct combinations of usual columns that rows have values in, each with the most usual column first."""
    order = {name: index for index, name in enumerate(usual)}
    combinations: dict[tuple[str, ...], None] = {}
    for row in rows:
        names = [name for name, value in row.items() if value not in (None, "") and usual_name(name) in order]
        if names:
            combinations[tuple(sorted(names, key=lambda name: order[usual_name(name)]))] = None
    return [list(names) for names in combinations]


def _choose(
    path: str,
    what: str,
    flag: str,
    *,
    candidates: Sequence[Sequence[str]],
    best: str,
    problems: list[str] | None,
) -> str | None:
    """The column of pictures or captions; "" if there is none, None if rows have different columns.

    Of several columns, `best` is used, with a warning. If it is not among them, that is added to `problems`; if
    `problems` is None, the most usual column is used, with a warning.
    """
    several = next((names for names in candidates if len(names) > 1), None)
    if several is not None:
        if several[0] != best and problems is not None:
            problems.append(_several(what, flag, several))
        else:
            warn_of_several(path, what, flag, candidates=several)
    names = dict.fromkeys(names[0] for names in candidates)
    return next(iter(names), "") if len(names) < 2 else None


def warn_of_several(path: str, what: str, flag: str, *, candidates: Sequence[str]) -> None:
    """Warn that the first of several possible columns is used."""
    logger.warning("%s: %s; %r is used", path, _several(what, flag, candidates), candidates[0])


def _several(what: str, flag: str, candidates: Sequence[str]) -> str:
    return f"{what} may be in {' or '.join(map(repr, candidates))}: {flag} names the column"


def _is_record(row: Row) -> bool:
    """Whether a row is a record that we wrote."""
    return isinstance(row.get("error"), str) and "sha256" in row and "captions" in row


def _advice(path: str, names: Collection[str]) -> str:
    """Advice for a table without pictures, by its columns, as the end of a message."""
    stem = os.path.splitext(path)[0]
    if {"url", "status", "key"} <= set(names):
        return f"; this is img2dataset's list of a shard, whose pictures are in {stem}.tar or in the folder {stem}"
    if {"annotator_id", "image_id"} <= set(names):
        return f"; did you mean localized-narratives:{path}?"
    if {"url", "URL", "image_url"} & set(names):
        return "; pictures are not fetched from URLs: img2dataset does that"
    if table_kind(path) != ".parquet" and any(re.search(r"\.(jpe?g|png|webp)\b|https?://", name) for name in names):
        return "; the first line is not a header, which a table needs"
    return ""


# ---- rows ----------------------------------------------------------------------------------------------------------


def usual_row(row: Row, reading: TableReading, selected: Collection[str] = ()) -> Row | ValueError:
    """Give a row the usual names: picture in `image`, captions in a column of a usual name, key in `key`.

    Returns what is wrong with the row, if anything. Changes the row. Texts that spell a list become lists. Captions
    and keys in bytes become texts, because some programs do not mark texts in Parquet as such.

    selected: columns that also stay under their own names.
    """
    for name in reading.text_columns:
        if isinstance(value := row.get(name), bytes):
            row[name] = value.decode("utf-8", "replace")
    with_lists(row, (*reading.lists, *selected) if selected else reading.lists)
    if reading.key is not None and row.get(reading.key) not in (None, ""):
        key = text_of(row[reading.key])
        is_file = usual_name(reading.key) in PICTURES or reading.key == reading.image
        row["key"] = os.path.splitext(key)[0] if is_file else key
    if reading.image != "":
        picture = row.get("image")
        is_set = isinstance(picture, str) and picture[:1] != "[" and reading.image == "image"
        if not is_set and (problem := _set_picture(row, reading)):
            return problem
    if reading.captions:
        texts = [_take_texts(row, name, stays=name in selected) for name in reading.captions]
        texts = [text for text in texts if text not in (None, "")]
        if "captions" in row and "captions" not in reading.captions:
            row.setdefault("other_captions", row["captions"])
        row["captions"] = texts[0] if len(texts) == 1 else flat(texts)
    if any(is_chat(row.get(name)) for name in CHATS):
        if row.get("image") is None and (picture := picture_in(row)) is not None:
            row["image"] = picture
        if not any(captions_in(row.get(name)) for name in CAPTION_COLUMNS):
            row["captions"] = answer_in(row)
    return row


def _take_texts(row: dict[str, Any], name: str, *, stays: bool) -> Any:
    """The captions in a column, which is removed from the row; a conversation stays, and its caption is its answer."""
    value = row.get(name)
    if is_chat(value):
        answers = answers_of(value)
        return answers if len(answers) == 1 else []
    return value if stays else row.pop(name, None)


def flat(values: Iterable[Any]) -> list[Any]:
    """The values, with the items of lists instead of the lists."""
    items = []
    for value in values:
        if isinstance(value, list):
            items += value
        else:
            items.append(value)
    return items


def _set_picture(row: dict[str, Any], reading: TableReading) -> ValueError | None:
    """Set the row's `image`, or return an error: a list must hold a single picture."""
    name = reading.image
    if name not in row:
        names = [name for name in row if usual_name(name) in PICTURES]
        if not names:
            return None
        if reading.image_is_named:
            row["image"] = None
            return None
        name = min(names, key=lambda name: PICTURES.index(usual_name(name)))
    picture = row.pop(name)
    if isinstance(picture, str) and picture.startswith("[") and (texts := parse_list(picture)) is not None:
        picture = texts
    # A list of numbers or of lists is a single picture, of a kind that is not read.
    if isinstance(picture, list | tuple) and not any(isinstance(item, int | float | list) for item in picture[:1]):
        if len(picture) > 1:
            return ValueError(f"{name}: {len(picture)} pictures in one row, but captions are of a single picture")
        picture = picture[0] if picture else None
    row["image"] = picture
    if name == "images" and isinstance(text := row.get(reading.text), str):
        row[reading.text] = without_marks(text)
    return None


def with_lists(row: dict[str, Any], names: Iterable[str]) -> None:
    """Replace the texts in these columns that spell a list by that list."""
    for name in names:
        if isinstance(text := row.get(name), str) and text[:1] == "[" and (texts := parse_list(text)) is not None:
            row[name] = texts or None


_TEXT = r"""'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+\""""
_NOTHING = "None|nan|null"
_LIST = re.compile(rf"\[[\s,]*+(?:(?:{_TEXT}|{_NOTHING})[\s,]*+)*+\]", re.DOTALL)


def parse_list(cell: str) -> list[str] | None:
    """The texts in a cell that holds a list of texts, in the notation of JSON, Python or NumPy.

    None and nan in the list are left out. Returns None for any other cell.
    """
    try:
        texts = json.loads(cell)
    except (ValueError, RecursionError):
        if not _LIST.fullmatch(cell.strip()):
            return None
        try:
            texts = [ast.literal_eval(text) for text in re.findall(_TEXT, cell, re.DOTALL)]
        except (ValueError, SyntaxError):  # an invalid escape sequence
            return None
    if not isinstance(texts, list):
        return None
    texts = [text for text in texts if text is not None and text == text]  # nan differs from itself
    return texts if all(isinstance(text, str) for text in texts) else None
