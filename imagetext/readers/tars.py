"""Read tar shards in webdataset's layout: the files of one sample share a key and follow one another.

Reinforced sets of both kinds have this layout: `url.txt, syn.json, paug.json, npz, json` without a picture, or `jpg,
txt` and `pth.gz` instead of `npz`. Files that are not a picture, a text or `json` are kept as bytes and never opened.
A `txt` is a single caption, with its line breaks. Beside `NAME.jpg`, it may be called `NAME.jpg.txt`.
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
from imagetext.readers.chats import answer_in_fields
from imagetext.readers.row_records import caption_columns
from imagetext.readers.suffixes import PICTURE_SUFFIXES
from imagetext.readers.tar_members import Member, read_members
from imagetext.sample import Record, is_picture
from imagetext.stores import is_remote

logger = logging.getLogger(__name__)

PICTURES = frozenset(PICTURE_SUFFIXES)
Files = dict[str, Member]  # the files of one sample, by suffix


@dataclass(frozen=True)
class TarRows:
    """The records of one tar, read when iterated.

    Raises ValueError, which names the tar, if it cannot be read to its end.
    """

    path: str

    def __iter__(self) -> Iterator[Record]:
        return (record for record, _ in self.with_files())

    def with_files(self) -> Iterator[tuple[Record, Files]]:
        """Yield the records, and the files of which each is made."""
        keys, has_pictures = SeenKeys(self.path), False
        for name, files in _split_by_picture(self.path, _samples(self.path)):
            files = _with_usual_suffixes(files)
            original = decode_key(name)
            key = keys.unique(original)
            record = _record(self.path, name, key, files=files)
            has_pictures = has_pictures or record.image is not None
            if has_pictures and record.image is None and not record.error and key != original:
                record = replace(
                    record,
                    error=f"{', '.join(files)}: not beside the picture of this key in the tar; the files of a "
                    "sample must follow one another, as `tar --sort=name` writes them",
                )
            yield record, files


def _samples(path: str) -> Iterator[tuple[str, Files]]:
    """Yield name and files of each sample. A suffix that comes again begins the next sample of the same name.

    In a tar on this machine in which the other files come after all pictures, or before them, each picture gets the
    files of its name. A tar without an end mark is cut if its last sample lacks a file that all others have; otherwise
    there is only a warning.
    """
    members = read_members(path)
    first_members = list(islice(members, 2))
    members = chain(first_members, members)
    separate: dict[str, Files] = {}  # files that are no pictures, by key, in a tar that is sorted by suffix
    if _may_be_sorted_by_suffix(first_members) and not is_remote(path):
        separate = _files_without_pictures(path)
    if separate:
        members = read_members(path, skip=_is_not_picture)
    name, files, size, usual = "", {}, 0, None
    for member in members:
        if member is None:
            _check_end(path, name, (usual or set()) - files.keys())
            break
        if files and (member.key != name or member.suffix in files):
            yield name, files | separate.pop(name, {}) if separate else files
            usual = files.keys() if usual is None else usual & files.keys()
            files, size = {}, 0  # a new dict, because the last sample still uses the old one
        name, files[member.suffix], size = member.key, member, size + len(member.data or b"")
        if size > limits.SAMPLE:
            raise ValueError(
                f"{path}: the {len(files):,} files of the one key {name!r} are more than {limits.SAMPLE:,} bytes: a "
                "key ends at the first dot of a name"
            )
    if files:
        yield name, files | separate.pop(name, {})
    yield from separate.items()


def _check_end(path: str, name: str, missing: Collection[str]) -> None:
    """Check a tar without an end mark: raise ValueError if files of its last sample are missing, otherwise warn."""
    if missing:
        raise ValueError(
            f"{path}: cut: no end-of-archive mark, and its last sample, {name!r}, has no {', '.join(sorted(missing))}"
        )
    logger.warning(
        "%s: has no end-of-archive mark: its writer did not close it, or it is cut between two samples; the samples "
        "that are there are read",
        path,
    )


def _may_be_sorted_by_suffix(first: Sequence[Member | None]) -> bool:
    """Whether a tar with these first two members may be sorted by suffix instead of by name."""
    if len(first) < 2 or first[0] is None or first[1] is None:
        return False
    return first[0].key != first[1].key and first[0].suffix == first[1].suffix


def _files_without_pictures(path: str) -> dict[str, Files]:
    """The files of a tar that are not pictures, by key.

    {} if a key has two files of one suffix, because it is not known to which sample each belongs.
    """
    files, size = {}, 0
    for member in filter(None, read_members(path, skip=_is_picture_name)):
        if member.suffix in files.setdefault(member.key, {}):
            return {}
        files[member.key][member.suffix], size = member, size + len(member.data or b"")
        if size > limits.SAMPLE:
            raise ValueError(
                f"{path}: the files of a sample do not follow one another, and files that are no pictures have more "
                f"than {limits.SAMPLE:,} bytes; write the tar again with `tar --sort=name`"
            )
    return files


def _is_picture_name(suffix: str) -> bool:
    return suffix.rpartition(".")[2] in PICTURES


def _is_not_picture(suffix: str) -> bool:
    return not _is_picture_name(suffix)


def _split_by_picture(path: str, samples: Iterable[tuple[str, Files]]) -> Iterator[tuple[str, Files]]:
    """Yield the samples, and split those in which several files are pictures, and none has only a picture's suffix.

    Then keys have dots (`a.1.jpg, a.1.txt, a.2.jpg`): each picture is a sample, and files of no picture belong to
    each. The key of a single picture has dots, too, if those of all other files are the same (`a.1.jpg, a.1.txt`).
    """
    for name, files in samples:
        parts: dict[str, Files] = {}  # the files of each picture, by the part of its name before the suffix
        if PICTURES.isdisjoint(files):
            parts = {suffix.rpartition(".")[0]: {} for suffix in files if _is_picture_name(suffix)}
        has_dots = len(files) > 1 and any(all(suffix.startswith(f"{stem}.") for suffix in files) for stem in parts)
        if not parts or len(parts) == 1 and not has_dots:
            yield name, files
            continue
        shared: Files = {}
        for suffix, member in files.items():
            stem = suffix
            while stem and stem not in parts:
                stem = stem.rpartition(".")[0]
            if stem:
                parts[stem][suffix[len(stem) + 1 :]] = member
            else:
                shared[suffix] = member
        if len(parts) * (len(shared) + sum(len(member.data or b"") for member in shared.values())) > limits.SAMPLE:
            raise ValueError(
                f"{path}: {len(shared):,} files of the key {name!r} belong to each of its {len(parts):,} pictures, "
                f"together more than {limits.SAMPLE:,} bytes: a key ends at the first dot of a name"
            )
        for stem, part in parts.items():
            yield f"{name}.{stem}", shared | part


def _with_usual_suffixes(files: Files) -> Files:
    """The files of a sample, in which `jpg.txt` beside `jpg` is called `txt` if there is no `txt`.

    `jpg.json` stays as it is: Google's holds the name of the picture as its title.
    """
    picture = next((suffix for suffix in PICTURE_SUFFIXES if suffix in files), None)
    usual = {f"{picture}.{suffix}": suffix for suffix in ("txt", "caption") if picture and suffix not in files}
    return {usual.get(suffix, suffix): member for suffix, member in files.items()}


def _record(path: str, name: str, key: str, *, files: Files) -> Record:
    """Make a record of the files of a sample. name: its key in the tar."""
    errors = [f"{suffix}: {member.problem}" for suffix, member in files.items() if member.data is None]
    contents = {suffix: member.data for suffix, member in files.items() if member.data is not None}
    fields = json_fields(contents.pop("json", b"{}"))
    text = readable(contents.pop("txt", contents.get("caption", b"")), f"{path}: {name}.txt").strip()
    columns = caption_columns(contents.pop("syn.json", b"{}"), errors)
    # A failed record that we wrote has no picture; another file that looks like one is only kept.
    picture = "jpg" if is_ours(fields) and fields["error"] else _picture_suffix(contents, errors)
    image = contents.pop(picture, None) if picture else None
    captions, other_columns, scores, earlier_error, others = sort_fields(
        fields, [text] if text else answer_in_fields(fields), picture=image is not None
    )
    if earlier_error:  # the captions of a failed record are in `json`, where other readers ignore them
        for field, value in others.items():
            if is_caption_column(field) and (texts := loose_texts(value)):
                columns[field] = texts
        others = {field: value for field, value in others.items() if field not in columns}
    uid = others.pop("uid", None)
    source = f"{os.path.basename(path)}/{name}.{picture or 'json'}"
    return Record(
        key,
        image,
        captions=captions,
        columns=other_columns | columns,
        scores=scores,
        members=contents,
        meta={"uid": decode_key(name) if uid in (None, "") else uid, "source": source, **others},
        error=well_formed("; ".join(errors) or earlier_error),
        failed_before=bool(earlier_error) and not errors,
    )


def _picture_suffix(contents: dict[str, bytes], errors: list[str]) -> str | None:
    """The suffix of the file that is the picture, by the suffix itself, otherwise by the file's bytes."""
    for suffix in PICTURE_SUFFIXES:
        if suffix in contents:
            return suffix
    pictures = list(filter(_is_picture_name, contents)) or [
        suffix for suffix, data in contents.items() if is_picture(data[:32])
    ]
    if len(pictures) > 1:
        errors.append(f"several pictures in one sample, and none has only a picture's suffix: {', '.join(pictures)}")
        return None
    return pictures[0] if pictures else None
