"""Which columns of a table are its pictures, captions and keys, and its rows by the usual names."""

import ast
import json
import logging
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import groupby
from typing import Any, Literal, NamedTuple

from imagetext import limits
from imagetext.columns import is_column
from imagetext.fields import CAPTION_COLUMNS
from imagetext.readers.chats import CHATS, answer_in, picture_in, without_marks
from imagetext.readers.row_records import IMAGE_COLUMNS, Row, size_of
from imagetext.readers.table_flags import Columns
from imagetext.readers.text_layout import usual_name

logger = logging.getLogger(__name__)

Need = Literal["pictures", "captions", "either"]

PICTURES = (*IMAGE_COLUMNS, "filename", "img", "image_name", "images", "image_file", "img_path", "image_filename")
CAPTIONS = (*CAPTION_COLUMNS, "comment", "description")
LOOKED_AT = 200  # rows of a table without a header, to see what columns it has
BYTES = "the picture's bytes"  # in the place of a column that names the picture


class Reading(NamedTuple):
    """How the rows of one table become rows of usual names."""

    image: str | None  # the column that becomes `image`; "": there is none; None: rows have different ones
    captions: tuple[str, ...]  # those that become `captions`; (): captions stand in a column of a usual name
    text: str  # where captions stand then; "": in different ones
    key: str | None  # the column that becomes `key`
    lists: tuple[str, ...]  # whose cells may hold lists as text
    asked: bool = False  # whether `image` is asked for, so that no other column stands in where a row lacks it
    same: str = ""  # rows that are equal in this column, or BYTES, are one picture's, of one caption each; "": each row is its own

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that captions, keys and pictures are read from."""
        picture = self.image if self.same in ("image", BYTES) else self.same
        return tuple(filter(None, (*self.captions, self.text, self.key, picture)))


def reading_of(
    path: str,
    rows: Sequence[Row],
    asked: Columns,
    needs: Collection[Need] = (),
    *,
    header: Sequence[str] | None = None,
    of_bytes: bool = False,
) -> Reading:
    """How a table with these first rows is read; a warning tells which of several columns is taken.

    header: all columns, where the table has them in one place. of_bytes: whether that of pictures holds their bytes.
    Raises ValueError where a column that is named is not there, of several none is the one, or what is needed is lacking.
    """
    names = tuple(header if header is not None else dict.fromkeys(name for row in rows for name in row))
    named = [("--image-column", asked.image), *(("--caption-column", name) for name in asked.captions)]
    problems = [
        f"{flag} {name}: there is no such column"
        for flag, name in named
        if names and name is not None and name not in names
    ]
    key = next((name for name in asked.keys if name in names), None)
    if names and asked.keys and key is None:
        problems.append(f"--key {', '.join(asked.keys)}: there is no such column")
    others = [row for row in ([dict.fromkeys(header, "x")] if header is not None else rows) if not _is_record(row)]
    pictures, captions = _found(others, PICTURES), _found(others, CAPTIONS)
    image = asked.image or _chosen(path, "pictures", "--image-column", pictures, "image", problems)
    text = (
        None
        if asked.captions
        else _chosen(
            path, "captions", "--caption-column", captions, "captions", problems if "captions" in needs else None
        )
    )
    ours = any(_is_record(row) for row in rows) or header is not None and not others
    has_pictures = asked.image or pictures or ours or any(picture_in(row) for row in rows)
    has_captions = asked.captions or captions or ours or any(name in CHATS for name in names)
    if rows or header is not None:
        if (
            "either" in needs
            and header is not None
            and not (has_pictures or has_captions or any(map(is_column, names)))
        ):
            problems.append(
                f"no column of pictures ({', '.join(IMAGE_COLUMNS)}) or captions ({', '.join(CAPTION_COLUMNS)})"
            )
        elif "pictures" in needs and not has_pictures:
            problems.append("no column of pictures, unless --image-column names it")
        if "captions" in needs and not has_captions:
            problems.append("no column of captions, unless --caption-column names it")
    if problems:
        have = f"it has {', '.join(map(repr, names)) or 'none'}{_advice(path, names)}"
        raise ValueError(f"{path}: {'; '.join(problems)}; {have}")
    moved = asked.captions or ((text,) if text and text not in CAPTION_COLUMNS else ())
    lists = (*(moved or dict.fromkeys(name for group in captions for name in group)), *filter(is_column, names))
    reading = Reading(image, moved, "captions" if moved else text or "", key, lists, asked=bool(asked.image))
    return reading._replace(same=_same(rows, reading, of_bytes) if asked.group else "")


def _same(rows: Sequence[Row], reading: Reading, of_bytes: bool) -> str:
    """The column that names the picture in a table that has one row a caption, BYTES, or ""."""
    usual = [row for row in (usual_row(dict(row), reading) for row in rows) if not isinstance(row, ValueError)]
    if not reading.text or any(
        _is_record(row) or isinstance(row.get(reading.text), list) or any(map(is_column, row)) for row in usual
    ):
        return ""
    if of_bytes:
        return BYTES
    places = ("image",) if reading.image else ("key",) if reading.key else ("image_id",)
    return next((place for place in places if any(place in row for row in usual)), "")


def _found(rows: Sequence[Row], usual: Sequence[str]) -> list[list[str]]:
    """The distinct sets of usual columns that rows fill, in each the most usual column first."""
    order = {name: place for place, name in enumerate(usual)}
    columns: dict[tuple[str, ...], None] = {}
    for row in rows:
        names = [name for name, value in row.items() if value not in (None, "") and usual_name(name) in order]
        if names:
            columns[tuple(sorted(names, key=lambda name: order[usual_name(name)]))] = None
    return [list(names) for names in columns]


def _chosen(
    path: str, what: str, flag: str, candidates: Sequence[Sequence[str]], own: str, problems: list[str] | None
) -> str | None:
    """The one column of pictures or captions; "" where there is none, None where rows have different ones.

    Of several `own` is taken, or, where they are no problem, the most usual: a warning says so.
    """
    several = next((names for names in candidates if len(names) > 1), None)
    if several is not None:
        message = f"{what} may stand in {' or '.join(map(repr, several))}: {flag} names the column"
        if several[0] != own and problems is not None:
            problems.append(message)
        else:
            logger.warning("%s: %s; %r is taken", path, message, several[0])
    names = dict.fromkeys(names[0] for names in candidates)
    return next(iter(names), "") if len(names) < 2 else None


def _is_record(row: Row) -> bool:
    """Whether a row is a record of ours."""
    return isinstance(row.get("error"), str) and "sha256" in row and "captions" in row


def _advice(path: str, names: Collection[str]) -> str:
    """Advice for a table that holds captions alone, as the end of a message."""
    stem = os.path.splitext(path)[0]
    if {"url", "status", "key"} <= set(names):
        return f"; this is img2dataset's list of a shard, and {stem}.tar or the folder {stem} has the pictures"
    if {"annotator_id", "image_id"} <= set(names):
        return f"; did you mean localized-narratives:{path}?"
    if {"url", "URL", "image_url"} & set(names):
        return "; pictures are not fetched from URLs: img2dataset does that"
    if any(re.search(r"\.(jpe?g|png|webp)\b|https?://", name) for name in names):
        return "; the first line is no header, which a table needs"
    return ""


# ---- rows ------------------------------------------------------------------------------------------------------------


def usual_row(row: Row, reading: Reading, kept: Collection[str] = ()) -> Row | ValueError:
    """The row with its picture in `image`, its captions in a column of a usual name and its key in `key`, or what is wrong with it.

    Changes the row. A list that a cell holds as text becomes one. kept: columns that stay where they are, too.
    """
    with_lists(row, (*reading.lists, *kept) if kept else reading.lists)
    if reading.key is not None and row.get(reading.key) not in (None, ""):
        key = str(row[reading.key])
        row["key"] = (
            os.path.splitext(key)[0] if usual_name(reading.key) in PICTURES or reading.key == reading.image else key
        )
    if reading.image != "":
        picture = row.get("image")
        if (not isinstance(picture, str) or picture[:1] == "[" or reading.image != "image") and (
            problem := _set_picture(row, reading)
        ):
            return problem
    if reading.captions:
        texts = [row.get(name) if name in kept else row.pop(name, None) for name in reading.captions]
        texts = [text for text in texts if text not in (None, "")]
        if "captions" in row and "captions" not in reading.captions:
            row.setdefault("other_captions", row["captions"])
        row["captions"] = (
            texts[0]
            if len(texts) == 1
            else [part for text in texts for part in (text if isinstance(text, list) else [text])]
        )
    if CHATS[0] in row or CHATS[1] in row:
        if row.get("image") is None and (picture := picture_in(row)) is not None:
            row["image"] = picture
        if not any(row.get(name) for name in CAPTION_COLUMNS):
            row["captions"] = answer_in(row)
    return row


def _set_picture(row: dict[str, Any], reading: Reading) -> ValueError | None:
    """Sets the row's `image`, or returns what is wrong with it: a list holds one picture."""
    name = reading.image
    if name not in row:
        names = [name for name in row if usual_name(name) in PICTURES]
        if not names:
            return None
        if reading.asked:
            row["image"] = None
            return None
        name = min(names, key=lambda name: PICTURES.index(usual_name(name)))
    picture = row.pop(name)
    if isinstance(picture, str) and picture.startswith("[") and (texts := listed(picture)) is not None:
        picture = texts
    if isinstance(picture, list | tuple):
        if len(picture) > 1:
            return ValueError(f"{name}: {len(picture)} pictures in one row, and captions are of one")
        picture = picture[0] if picture else None
    row["image"] = picture
    if name == "images" and isinstance(text := row.get(reading.text), str):
        row[reading.text] = without_marks(text)
    return None


def with_lists(row: dict[str, Any], names: Iterable[str]) -> None:
    """Makes lists of the texts in these columns that spell one."""
    for name in names:
        if isinstance(text := row.get(name), str) and text[:1] == "[" and (texts := listed(text)) is not None:
            row[name] = texts or None


_TEXT = r"""'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+\""""
_NOTHING = "None|nan|null"
_LIST = re.compile(rf"\[[\s,]*+(?:(?:{_TEXT}|{_NOTHING})[\s,]*+)*+\]", re.DOTALL)


def listed(cell: str) -> list[str] | None:
    """The texts in a cell that holds a list of them as JSON, or as Python or NumPy print one; None where it is no such list.

    What is nothing in the list, None or nan, is no text.
    """
    try:
        texts = json.loads(cell)
    except (ValueError, RecursionError):
        if not _LIST.fullmatch(cell.strip()):
            return None
        try:
            texts = [ast.literal_eval(text) for text in re.findall(_TEXT, cell, re.DOTALL)]
        except (ValueError, SyntaxError):  # of an escape that is none
            return None
    if not isinstance(texts, list):
        return None
    texts = [text for text in texts if text is not None and text == text]  # nan is unlike itself
    return texts if all(isinstance(text, str) for text in texts) else None


# ---- rows that are one picture's -------------------------------------------------------------------------------------


def picture_named(row: Row | ValueError, reading: Reading) -> str | None:
    """The picture that a row describes, with its key where it has one; None where the row is not one caption."""
    if isinstance(row, ValueError):
        return None
    picture = _hashed(row.get("image")) if reading.same == BYTES else row.get(reading.same)
    if not picture or picture.__class__ not in (str, int) or row.get(reading.text).__class__ is not str:
        return None
    own = row.get("key", row.get("uid"))  # a row that says which sample it is
    return str(picture) if own is None else f"{own}\0{picture}"


def _hashed(picture: Any) -> str | None:
    """A hash of a picture's bytes, or of `datasets`' bytes; None where there are none."""
    data = picture.get("bytes") if isinstance(picture, dict) else picture
    return blake2b(data, digest_size=16).hexdigest() if data and isinstance(data, bytes) else None


def grouped(
    rows: Iterable[tuple[int, Row | ValueError]],
    reading: Reading,
    kept: Collection[str] = (),
    firsts: Mapping[int, int] | None = None,
) -> Iterator[tuple[int, Row | ValueError]]:
    """Rows next to each other that are one picture's as one, the first with the captions of all; kept: more such columns.

    firsts: the number of the first row of each row's picture, where the rows do not tell.
    """
    for same, several in groupby(
        rows, lambda row: picture_named(row[1], reading) if firsts is None else firsts[row[0]]
    ):
        if same is None:
            yield from several
            continue
        number, first = next(several)
        if isinstance(first, ValueError):
            yield number, first
            continue
        together, size = [first], 0
        for _, row in several:  # noqa: B031  (the first was taken)
            if not isinstance(row, ValueError):
                texts = {name: row.get(name) for name in (*kept, reading.text)}  # and not its picture
                size += size_of(texts)
                if size <= limits.BATCH:
                    together.append(texts)
        if size > limits.BATCH:
            first = ValueError(f"rows of one picture with captions of {size:,} bytes, more than {limits.BATCH:,}")
        elif len(together) > 1:
            texts = {name: [row.get(name) for row in together] for name in kept}
            # What is the same in all rows is said once of the picture.
            first |= {
                name: _texts_in(cells) for name, cells in texts.items() if any(cell != cells[0] for cell in cells)
            }
            first[reading.text] = _texts_in([row.get(reading.text) for row in together])
        yield number, first


def _texts_in(cells: Iterable[Any]) -> list[str]:
    """The texts of cells that hold one or several; empty ones are none."""
    return [
        text
        for cell in cells
        for text in (cell if isinstance(cell, list) else [cell])
        if text and isinstance(text, str)
    ]
