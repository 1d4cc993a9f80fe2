"""Make room for a new column of captions in a record, which its text embeddings may prevent.

Reinforced sets hold a vector for each caption, in `npz` or `pth.gz`. Their reference reader takes a caption's vector
from the array `NAME_emb` of its column. If `text_emb` has more rows than there are original captions, it takes the
vector from there, by position. With a column without vectors, training would stop with a KeyError, or use vectors of
other captions.
"""

import io
import re
import shutil
import zipfile
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from imagetext.columns import OF_EMBEDDINGS, is_caption_column
from imagetext.sample import Record

PICKLED = ("pth.gz", "pth", "pt")  # never opened, so they are assumed to hold text embeddings


def check_pattern(pattern: str) -> str:
    """Return the pattern if it is a regular expression; otherwise raise ValueError."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from error
    return pattern


class ColumnClash(ValueError):
    """A record already has a column that is to be written, or embeddings that belong to its captions."""


def room_for(
    record: Record,
    names: Collection[str],
    *,
    new_text: bool = False,
    overwrite: bool = False,
    drop_text_embeddings: bool = False,
) -> Record:
    """Return the record without anything that prevents new columns of these names.

    new_text: whether the record gets another `txt`, whose embedding would be that of the old one.
    overwrite: remove columns that have these names, with their scores.
    drop_text_embeddings: remove embeddings of texts: these arrays of an `npz`, and pickled files as a whole.

    Raises ColumnClash if that is necessary and the flag is not set. A record with an error gets no captions, and is
    returned unchanged. Columns of negatives and tags do not affect embeddings, because no reader looks for theirs.
    """
    if record.error:
        return record
    if (clash := sorted(record.columns.keys() & set(names))) and not overwrite:
        raise ColumnClash(
            f"{record.key}: has the column {', '.join(clash)} already; --replace-columns replaces its captions, or "
            "give the new ones a column of another name"
        )
    embedded = text_embeddings(record) if new_text or any(map(is_caption_column, names)) else []
    if embedded and not drop_text_embeddings:
        raise ColumnClash(
            f"{record.key}: has text embeddings ({', '.join(embedded)}), but none for the new captions: the reference "
            "reader would use those of other captions, or fail; --drop-text-embeddings removes them, or `capsmith "
            "generate --captions-only` writes captions alone, for `capsmith join`"
        )
    columns = {name: texts for name, texts in record.columns.items() if name not in names}
    scores = {name: values for name, values in record.scores.items() if name not in names}
    record = replace(record, columns=columns, scores=scores)
    return _without_text_embeddings(record) if embedded else record


def text_embeddings(record: Record) -> list[str]:
    """The members, arrays of an `npz` and fields of a record that hold embeddings of texts, judged by their names."""
    arrays = []
    for member, data in record.members.items():
        if _is(member, PICKLED):
            arrays.append(f"{member}, which is never opened")
        elif _is(member, ("npz",)):
            try:
                with zipfile.ZipFile(io.BytesIO(data)) as archive:
                    arrays += [
                        f"{member}: {_array(name)}" for name in archive.namelist() if _embeds_text(_array(name))
                    ]
            except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
                arrays.append(f"{member}, which does not open: {error}")
    return arrays + [name for name, value in record.meta.items() if _holds_embedding(name, value)]


def _without_text_embeddings(record: Record) -> Record:
    members = {name: data for name, data in record.members.items() if not _is(name, PICKLED)}
    for name in [name for name in members if _is(name, ("npz",))]:
        if smaller := _without_text_arrays(members.pop(name)):
            members[name] = smaller
    return replace(
        record,
        members=members,
        meta={name: value for name, value in record.meta.items() if not _holds_embedding(name, value)},
    )


def _without_text_arrays(npz: bytes) -> bytes:
    """The archive without arrays of text embeddings, all other arrays unchanged; b"" if no array remains."""
    output = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(npz)) as archive, zipfile.ZipFile(output, "w") as smaller:
            for info in archive.infolist():
                if not _embeds_text(_array(info.filename)):
                    member = zipfile.ZipInfo(info.filename, info.date_time)
                    member.compress_type = info.compress_type
                    with archive.open(info) as source, smaller.open(member, "w") as target:
                        shutil.copyfileobj(source, target)
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError, RuntimeError):
        return b""  # a damaged archive, whose content is unknown
    return output.getvalue() if smaller.namelist() else b""


def _is(member: str, suffixes: Sequence[str]) -> bool:
    return any(member == suffix or member.endswith(f".{suffix}") for suffix in suffixes)


def _array(name: str) -> str:
    return name.removesuffix(".npy")


def _holds_embedding(name: str, value: Any) -> bool:
    """Whether a field holds vectors of texts, judged by its name; a single number, true, false or null holds none.

    Other sets name vectors of their pictures in many ways; the reference tools' fields of texts say `text`.
    """
    return _embeds_text(name) and "text" in name and not isinstance(value, bool | int | float | None)


def _embeds_text(name: str) -> bool:
    """Whether an array or field of this name holds vectors of texts, not of pictures, by the reference tools' rule."""
    return (name.endswith(OF_EMBEDDINGS) or "_emb_" in name) and not name.startswith("image")
