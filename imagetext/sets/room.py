"""A new column of captions beside those that a record has, and the text embeddings that stand in its way.

Reinforced sets keep a vector for each caption, in `npz` or `pth.gz`. Their reference reader takes a caption's vector from
the array `NAME_emb` of its column, or, where `text_emb` has more rows than there are originals, from there by position. A
column without vectors would end its training with a KeyError, or be trained on the vectors of other captions.
"""

import io
import re
import shutil
import zipfile
from collections.abc import Collection, Sequence
from dataclasses import replace

from imagetext.columns import is_caption_column
from imagetext.sample import Record

PICKLED = ("pth.gz", "pth", "pt")  # never opened, so taken to hold text embeddings


def check_pattern(pattern: str) -> str:
    """A regular expression of columns' names, if it is one; ValueError otherwise."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from error
    return pattern


class ColumnClash(ValueError):
    """A record has captions in a column that is to be written, or embeddings that go with its captions."""


def room_for(
    record: Record, names: Collection[str], *, overwrite: bool = False, drop_text_embeddings: bool = False
) -> Record:
    """The record as it is to be written with new columns of these names.

    overwrite: columns that have these names are taken out, with their scores.
    drop_text_embeddings: so are embeddings of texts: these arrays of an `npz`, and a pickled file as a whole.

    Raises ColumnClash where that is necessary and not asked for. A record with an error gets no captions and stays as it is.
    Columns that are no captions disturb no embeddings: no reader looks for theirs.
    """
    if record.error:
        return record
    if (clash := sorted(record.columns.keys() & set(names))) and not overwrite:
        raise ColumnClash(f"{record.key}: has the column {', '.join(clash)} already")
    embedded = text_embeddings(record) if any(map(is_caption_column, names)) else []
    if embedded and not drop_text_embeddings:
        raise ColumnClash(
            f"{record.key}: has text embeddings ({', '.join(embedded)}) and none of the new captions: the reference "
            "reader would take others' for theirs, or fail; write captions only, or drop the text embeddings"
        )
    columns = {name: texts for name, texts in record.columns.items() if name not in names}
    scores = {name: values for name, values in record.scores.items() if name not in names}
    record = replace(record, columns=columns, scores=scores)
    return _without_text_embeddings(record) if embedded else record


def text_embeddings(record: Record) -> list[str]:
    """Where the record has embeddings of texts, by the names of members, of an `npz`'s arrays and of fields alone."""
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
    return arrays + [name for name in record.meta if _embeds_text(name)]


def _without_text_embeddings(record: Record) -> Record:
    members = {name: data for name, data in record.members.items() if not _is(name, PICKLED)}
    for name in [name for name in members if _is(name, ("npz",))]:
        if kept := _kept_arrays(members.pop(name)):
            members[name] = kept
    return replace(
        record, members=members, meta={name: value for name, value in record.meta.items() if not _embeds_text(name)}
    )


def _kept_arrays(npz: bytes) -> bytes:
    """The archive without arrays of text embeddings, the others' bytes as they are; nothing where none is left."""
    kept = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(npz)) as archive, zipfile.ZipFile(kept, "w") as smaller:
            for info in archive.infolist():
                if not _embeds_text(_array(info.filename)):
                    member = zipfile.ZipInfo(info.filename, info.date_time)
                    member.compress_type = info.compress_type
                    with archive.open(info) as old, smaller.open(member, "w") as new:
                        shutil.copyfileobj(old, new)
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError, RuntimeError):
        return b""  # cannot be told what it holds
    return kept.getvalue() if smaller.namelist() else b""


def _is(member: str, suffixes: Sequence[str]) -> bool:
    return any(member == suffix or member.endswith(f".{suffix}") for suffix in suffixes)


def _array(name: str) -> str:
    return name.removesuffix(".npy")


def _embeds_text(name: str) -> bool:
    """Whether an array or field of this name holds vectors of texts, by the rule of the reference tools: not of pictures."""
    return (name.endswith(("emb", "embedding", "embeddings")) or "_emb_" in name) and not name.startswith("image")
