"""Shards in webdataset's layout: a tar in which the files of each record follow one another."""

import tarfile
from collections.abc import Iterable
from typing import Any

from imagetext.columns import is_other_column
from imagetext.keys import encode_key
from imagetext.outputs import Output
from imagetext.sample import Record
from imagetext.writers.record_fields import json_text, json_types, record_fields, record_members, with_caption_fields
from imagetext.writers.writer import OneFile


class TarShard(OneFile):
    """webdataset: members jpg, txt, syn.json, json and all other files of a sample.

    Failed records have no jpg and txt.

    Columns of negatives and tags are in `json`, in every record of a run that makes such columns.
    """

    def __init__(self, file: Output, *, columns: Iterable[str] = (), **_: Any):
        self.file, self.others = file, dict.fromkeys(filter(is_other_column, columns), ())

    def write(self, key: str, record: Record, text: str | None) -> None:
        others = {name: texts for name, texts in record.columns.items() if is_other_column(name)}
        columns = {name: texts for name, texts in record.columns.items() if name not in others}
        fields = with_caption_fields(record_fields(record), self.others | others)
        files = {}
        if not record.error:
            files |= {"jpg": record.image} if record.image is not None else {}
            files |= {"txt": text.encode()} if text is not None else {}
        else:  # captions of an earlier run stay readable
            fields |= {name: texts for name, texts in json_types(columns).items() if name not in fields}
            columns = {}
        files["syn.json"] = json_text(columns).encode()
        files["json"] = json_text(fields).encode()
        parts = []
        for suffix, data in (files | record_members(record)).items():
            parts += [
                tar_header(f"{encode_key(key)}.{suffix}", len(data)),
                data,
                bytes(-len(data) % tarfile.BLOCKSIZE),
            ]
        self.file.write(b"".join(parts))

    def close(self) -> None:
        end = 2 * tarfile.BLOCKSIZE  # the end mark, then zeros up to a whole record
        self.file.write(bytes(end + -(self.file.tell() + end) % tarfile.RECORDSIZE))


def tar_header(name: str, size: int) -> bytes:
    """The header of a file in a tar, as `tarfile` writes it.

    Owner and time are 0 and the mode is 0644, so that the bytes of a shard depend on its content only.
    """
    encoded = name.encode("utf-8", "surrogateescape")
    if not name.isascii() or len(encoded) > tarfile.LENGTH_NAME or size >= 8**11:
        member = tarfile.TarInfo(name)
        member.size = size
        return member.tobuf()
    header = b"%b%b%011o%b" % (encoded.ljust(tarfile.LENGTH_NAME, b"\0"), _HEADER[100:124], size, _HEADER[135:])
    return b"%b%06o%b" % (header[:148], sum(header) - sum(header[148:156]) + 8 * ord(" "), header[154:])


_HEADER = tarfile.TarInfo("").tobuf()  # the header of an empty file without a name
