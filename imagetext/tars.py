"""Reading tar shards in webdataset's layout: the files of one sample share a key and stand side by side.

So are the reinforced sets laid out, of either kind: `url.txt, syn.json, paug.json, npz, json` without a picture, and with
`jpg`, `txt`, and `pth.gz` in `npz`'s place. What is no picture, text or `json` is carried as bytes and never opened.
"""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from imagetext.keys import SeenKeys, decode_key
from imagetext.rows import caption_columns, captions_of, json_object, known_scores, loose_texts, well_formed
from imagetext.sample import Record, is_caption_column
from imagetext.stores import open_file

# In order of preference, where a sample has several. The last are no pictures that we read, but say so.
PICTURE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "j2k", "jfif", "jpe", "ppm",
                    "pgm", "pnm", "apng", "heic", "heif")
READ_AHEAD = 8 << 20  # bytes asked of a store at once


@dataclass(frozen=True)
class TarRows:
    """The records of one tar, read when iterated; a tar that cannot be read to its end is a ValueError naming it."""

    path: str

    def __iter__(self) -> Iterator[Record]:
        keys = SeenKeys(self.path)
        name, files = None, {}
        for member_name, data in read_members(self.path):
            member_key, suffix = split_name(member_name)
            # The same suffix again is the next sample of the same key.
            if files and (member_key != name or suffix in files):
                yield _record(self.path, keys, name, files)
                files = {}  # a new one: the sample keeps the old
            name, files[suffix] = member_key, data
        if files:
            yield _record(self.path, keys, name, files)


def split_name(name: str) -> tuple[str, str]:
    """Key and suffix of a member: webdataset's rule, the key ends at the first dot of the last part of the path."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, well_formed(suffix.lower().replace("\0", "?"))


def read_members(path: str) -> Iterator[tuple[str, bytes | None]]:
    """Name and bytes of every file of a tar whose name has a key and a suffix; nothing is ever unpacked to disk.

    The bytes of a link, device or sparse file are None. Raises ValueError, naming file and offset, where the tar is cut or
    damaged: `tarfile` itself takes a cut between two files, or a damaged header, for the end.
    """
    with open_file(path, READ_AHEAD) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        offset = 0
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()  # tarfile remembers every header it has seen
                    if archive.offset <= offset or member.size < 0:  # it would go round in circles
                        raise tarfile.ReadError(f"a file of {member.size} bytes")
                    offset = archive.offset
                    stem, suffix = split_name(member.name)
                    if member.isdir() or not suffix or not stem or stem.endswith("/"):
                        continue
                    if not member.isreg() or member.issparse():
                        yield member.name, None
                        continue
                    if member.offset_data + member.size > size:
                        raise tarfile.ReadError("unexpected end of data")
                    yield member.name, archive.extractfile(member).read()
                offset = archive.offset
        except (tarfile.TarError, EOFError, OverflowError, ValueError, RecursionError) as error:
            raise ValueError(f"{path}: cut or damaged near byte {file.tell()}: {error}") from error
        file.seek(offset)
        if file.read(512) != bytes(512):
            raise ValueError(f"{path}: cut or damaged near byte {offset}: no end-of-archive mark")
        while block := file.read(1 << 20):
            if block.strip(b"\0"):
                raise ValueError(f"{path}: there is data behind the end-of-archive mark at byte {offset}")


def _record(path: str, keys: SeenKeys, name: str, files: dict[str, bytes | None]) -> Record:
    """One record of the files that share a key."""
    original, meta, columns = decode_key(name), {}, {}
    errors = [f"{suffix}: no regular file of a tar" for suffix, data in files.items() if data is None]
    files = {suffix: data for suffix, data in files.items() if data is not None}
    if (raw := files.pop("json", None)) is not None:
        try:
            meta = json_object(raw)
        except ValueError as error:
            errors.append(f"json member: {error}")
    failed_before = meta.pop("error", None)
    text = files.pop("txt", b"").decode("utf-8", "replace").strip()
    captions = (text,) if text else ()
    try:
        if isinstance(meta.get("captions"), list) or not captions:  # our own records list them all
            captions = captions_of(meta)
    except ValueError as error:
        errors.append(str(error))
    try:
        columns = caption_columns(files.pop("syn.json", b"{}"))
    except ValueError as error:
        errors.append(str(error))
    if failed_before:  # its captions stand in `json`, where other readers pass them over
        found = {field: loose_texts(value) for field, value in meta.items() if is_caption_column(field)}
        columns |= {column: texts for column, texts in found.items() if texts}
        meta = {field: value for field, value in meta.items() if field not in columns}
    # A record that failed has no picture: whatever else looks like one is carried.
    picture = "jpg" if failed_before else _picture_suffix(files, errors)
    uid = meta.pop("uid", None)
    scores = known_scores(meta.pop("caption_scores", None))
    meta = {"uid": original if uid is None else uid, "source": f"{path}/{name}.{picture or 'json'}", **meta}
    error = well_formed(str("; ".join(errors) or failed_before or ""))
    image = files.pop(picture, None)
    return Record(keys.unique(original), image, captions, columns, scores, files, meta=meta, error=error)


def _picture_suffix(files: dict[str, bytes], errors: list[str]) -> str | None:
    for suffix in PICTURE_SUFFIXES:
        if suffix in files:
            return suffix
    # `key.input.jpg`, or a key with dots in it: the picture, if there is one only.
    pictures = [suffix for suffix in files if suffix.rpartition(".")[2] in PICTURE_SUFFIXES]
    if len(pictures) > 1:
        errors.append(f"several pictures in one sample ({', '.join(pictures)}): a key ends at the first dot of the name")
        return None
    return pictures[0] if pictures else None
