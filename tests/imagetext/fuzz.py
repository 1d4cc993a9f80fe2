"""Read malformed input of every kind, write what was read and read it again; run as a script by test_fuzz.py."""

import os
from dataclasses import replace
from pathlib import Path

from imagetext.sample import Record, decode_image
from imagetext.sets.join import name_of
from imagetext.sets.room import room_for, text_embeddings
from imagetext.shards import SUFFIXES, ShardWriter
from imagetext.sources import read_samples
from tests.fuzzing import take
from tests.imagetext.malformed import KINDS, Case


def check(number: int, folder: Path) -> None:
    case = Case(number, folder)
    spec = KINDS[number % len(KINDS)](case)
    samples, reason = read(spec)
    if reason:
        assert os.path.basename(spec) in reason or "x.tar" in reason or "00000.tar" in reason, reason
    keys = [sample.key for sample in samples]
    assert len(keys) == len(set(keys))
    assert case.keys is None or not reason and set(case.keys) <= set(keys), (reason, keys)
    images = {sample.key: sample.image for sample in samples}
    lost = case.whole.keys() - images.keys()
    assert all(images[key] == image for key, image in case.whole.items() if key in images) and (not lost or reason), (
        lost
    )
    records = [decoded(sample) for sample in samples]
    for sample in samples:
        assert room_for(sample, ["syn_text_new"], overwrite=True, drop_text_embeddings=True).key == sample.key
        assert not name_of(sample, "url") == "" and text_embeddings(sample) is not None
    for format in SUFFIXES:
        for images in (True, False):
            check_round_trip(folder / f"{format}{images}", records, format, images=images)


def read(spec: str) -> tuple[list[Record], str]:
    """Return the rows of a SPEC, and the error with which reading ended, if any."""
    samples = []
    try:
        for shard in read_samples(spec):
            samples += shard
    except ValueError as error:
        assert str(error)
        return samples, str(error)
    return samples, ""


def decoded(sample: Record) -> Record:
    """Return the record that a captioner would make of a sample."""
    error = sample.error
    try:
        if not error:
            image = decode_image(sample.image)
            assert image.mode == "RGB" and image.width * image.height > 0
    except ValueError as problem:
        error = str(problem)
        assert error
    columns = {} if error else {"syn_text_new": ("a dog\0", "b\nc")}
    return replace(sample, columns={**sample.columns, **columns}, error=error)


def check_round_trip(folder: Path, records: list[Record], format: str, images: bool) -> None:
    with ShardWriter(folder, "out", format=format, images=images, columns=["syn_text_new"]) as writer:
        for record in records:
            writer.write(record)
    back = list(read_samples(writer.path)[0]) if records or format == "webdataset" else []
    written = sorted(records, key=lambda record: bool(record.error))
    assert [(sample.key, sample.error) for sample in back] == [(original.key, original.error) for original in written]
    for sample, record in zip(back, written):
        assert sample.image == (record.image if images and not record.error else None)
        columns = sample.columns
        assert columns.get("syn_text_new", ()) == record.syn_text.get("syn_text_new", ())


if __name__ == "__main__":
    os.fsync = lambda handle: None
    take(check)
