"""Reading tar shards in webdataset's layout: the files of one sample share a key and stand side by side.

So are the reinforced sets laid out, of either kind: `url.txt, syn.json, paug.json, npz, json` without a picture, and with
`jpg`, `txt`, and `pth.gz` in `npz`'s place. What is no picture, text or `json` is carried as bytes and never opened. A `txt` is
one caption, line breaks and all.
"""

import logging
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

from imagetext import limits
from imagetext.columns import is_caption_column
from imagetext.fields import is_ours, json_fields, loose_texts, readable, sort_fields, well_formed
from imagetext.keys import SeenKeys, decode_key
from imagetext.readers.row_records import caption_columns
from imagetext.readers.suffixes import PICTURE_SUFFIXES
from imagetext.readers.tar_members import Member, read_members
from imagetext.sample import Record, is_picture
from imagetext.stores import is_remote

logger = logging.getLogger(__name__)

PICTURES = frozenset(PICTURE_SUFFIXES)
Files = dict[str, Member]  # of one sample, by suffix


@dataclass(frozen=True)
class TarRows:
    """The records of one tar, read when iterated; a tar that cannot be read to its end is a ValueError naming it."""

    path: str

    def __iter__(self) -> Iterator[Record]:
        return (record for record, _ in self.with_files())

    def with_files(self) -> Iterator[tuple[Record, Files]]:
        """The records, and the files that each is made of."""
        keys, pictures = SeenKeys(self.path), False
        for name, files in _told_apart(self.path, _samples(self.path)):
            key = keys.unique(original := decode_key(name))
            record = _record(self.path, name, key, files)
            pictures = pictures or record.image is not None
            if pictures and record.image is None and not record.error and key != original:
                record = replace(
                    record,
                    error=f"{', '.join(files)}: not beside the picture of this key in the tar; the files of a "
                    "sample stand side by side, as `tar --sort=name` puts them",
                )
            yield record, files


def _samples(path: str) -> Iterator[tuple[str, Files]]:
    """Name and files of each sample, which stand side by side; the same suffix again is the next sample of the same name.

    In a tar on this machine whose texts stand behind all pictures, or before them, each picture gets those of its name. A tar that
    has no mark of its end is cut where its last sample lacks a file that all others have; else that is a warning.
    """
    members = read_members(path)
    first = list(islice(members, 2))
    members = chain(first, members)
    held = _texts_apart(path) if _may_be_sorted(first) and not is_remote(path) else {}
    if held:
        members = read_members(path, skip=_is_no_picture)
    name, files, size, usual = "", {}, 0, None
    for member in members:
        if member is None:
            _tell_of_end(path, name, (usual or set()) - files.keys())
            break
        if files and (member.key != name or member.suffix in files):
            yield name, files | held.pop(name, {}) if held else files
            usual = files.keys() if usual is None else usual & files.keys()
            files, size = {}, 0  # a new one: the sample keeps the old
        name, files[member.suffix], size = member.key, member, size + len(member.data or b"")
        if size > limits.SAMPLE:
            raise ValueError(
                f"{path}: the {len(files):,} files of the one key {name!r} are more than {limits.SAMPLE:,} bytes: a key "
                "ends at the first dot of a name"
            )
    if files:
        yield name, files | held.pop(name, {})
    yield from held.items()


def _tell_of_end(path: str, name: str, lacking: Collection[str]) -> None:
    """Raises ValueError where files of the last sample are lacking, and warns where the tar just has no mark of its end."""
    if lacking:
        raise ValueError(
            f"{path}: cut: no end-of-archive mark, and its last sample, {name!r}, has no {', '.join(sorted(lacking))}"
        )
    logger.warning(
        "%s: ends without the mark of an end: its writer did not close it, or it is cut between two samples; what is there "
        "is read",
        path,
    )


def _may_be_sorted(first: Sequence[Member | None]) -> bool:
    """Whether a tar that begins with these two may be sorted by suffix, not by name."""
    if len(first) < 2 or first[0] is None or first[1] is None:
        return False
    return first[0].key != first[1].key and first[0].suffix == first[1].suffix


def _texts_apart(path: str) -> dict[str, Files]:
    """The files that are no pictures, by key; {} where one key has two files of one suffix, which may be of either sample."""
    held, size = {}, 0
    for member in filter(None, read_members(path, skip=_is_picture_name)):
        if member.suffix in held.setdefault(member.key, {}):
            return {}
        held[member.key][member.suffix], size = member, size + len(member.data or b"")
        if size > limits.SAMPLE:
            raise ValueError(
                f"{path}: the files of a sample do not stand side by side, and texts and the like are more than "
                f"{limits.SAMPLE:,} bytes; write it anew by `tar --sort=name`"
            )
    return held


def _is_picture_name(suffix: str) -> bool:
    return suffix.rpartition(".")[2] in PICTURES


def _is_no_picture(suffix: str) -> bool:
    return not _is_picture_name(suffix)


def _told_apart(path: str, samples: Iterable[tuple[str, Files]]) -> Iterator[tuple[str, Files]]:
    """The samples, those of one key told apart where several of its files are pictures, and none by its mere suffix.

    Then keys have dots (`a.1.jpg, a.1.txt, a.2.jpg`): each picture is a sample, and what is of none is of each.
    """
    for name, files in samples:
        own = (
            {suffix.rpartition(".")[0]: {} for suffix in files if _is_picture_name(suffix)}
            if PICTURES.isdisjoint(files)
            else {}
        )
        if len(own) < 2:
            yield name, files
            continue
        shared = {}
        for suffix, member in files.items():
            stem = suffix
            while stem and stem not in own:
                stem = stem.rpartition(".")[0]
            (own[stem] if stem else shared)[suffix[len(stem) + 1 :] if stem else suffix] = member
        if len(own) * (len(shared) + sum(len(member.data or b"") for member in shared.values())) > limits.SAMPLE:
            raise ValueError(
                f"{path}: {len(shared):,} files of the key {name!r} are of each of its {len(own):,} pictures, together more "
                f"than {limits.SAMPLE:,} bytes: a key ends at the first dot of a name"
            )
        for stem, own_files in own.items():
            yield f"{name}.{stem}", shared | own_files


def _record(path: str, name: str, key: str, files: Files) -> Record:
    """One record of the files of a sample; name: its key in the tar."""
    columns = {}
    errors = [f"{suffix}: {member.problem}" for suffix, member in files.items() if member.data is None]
    contents = {suffix: member.data for suffix, member in files.items() if member.data is not None}
    fields = json_fields(contents.pop("json", b"{}"))
    text = readable(contents.pop("txt", contents.get("caption", b"")), f"{path}: {name}.txt").strip()
    try:
        columns = caption_columns(contents.pop("syn.json", b"{}"))
    except ValueError as error:
        errors.append(str(error))
    # A record of ours that failed has no picture: whatever else looks like one is carried.
    picture = "jpg" if is_ours(fields) and fields["error"] else _picture_suffix(contents, errors)
    image = contents.pop(picture, None) if picture else None
    captions, others, scores, failed, rest = sort_fields(fields, [text] if text else (), picture=image is not None)
    if failed:  # its captions stand in `json`, where other readers pass them over
        columns |= {
            field: texts for field, value in rest.items() if is_caption_column(field) and (texts := loose_texts(value))
        }
        rest = {field: value for field, value in rest.items() if field not in columns}
    columns = others | columns
    uid = rest.pop("uid", None)
    source = f"{os.path.basename(path)}/{name}.{picture or 'json'}"
    meta = {"uid": decode_key(name) if uid in (None, "") else uid, "source": source, **rest}
    error = well_formed("; ".join(errors) or failed)
    return Record(
        key,
        image,
        captions,
        columns,
        scores,
        contents,
        meta=meta,
        error=error,
        failed_before=bool(failed) and not errors,
    )


def _picture_suffix(contents: dict[str, bytes], errors: list[str]) -> str | None:
    """The file that is the picture: by its suffix, or else by its bytes."""
    for suffix in PICTURE_SUFFIXES:
        if suffix in contents:
            return suffix
    pictures = list(filter(_is_picture_name, contents)) or [
        suffix for suffix, data in contents.items() if is_picture(data[:32])
    ]
    if len(pictures) > 1:
        errors.append(f"several pictures in one sample, and none has the suffix of one alone: {', '.join(pictures)}")
        return None
    return pictures[0] if pictures else None
