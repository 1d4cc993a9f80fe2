"""Malicious files take no more memory or time than the limits allow, and the error names the limit."""

import gzip
import io
import json
import os
import resource
import signal
import tarfile
import time
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diversity.inputs.specs import open_sources
from imagetext import limits
from imagetext.configurations import read_config_file
from imagetext.keys import SeenKeys
from imagetext.sample import decode_image
from imagetext.sources import read_samples

MEMORY = 1 << 28  # bytes of address space for the readers, besides their libraries; the limits are smaller here, too
SMALLER = {
    "LINE": 1 << 20,
    "VALUES": 1 << 16,
    "DOCUMENT": 1 << 20,
    "DOCUMENT_VALUES": 1 << 18,
    "FILE": 1 << 24,
    "PAGE": 1 << 25,
    "PADDING": 1 << 22,
    "BATCH": 1 << 24,
    "UNPACKED": 1 << 26,
}
SECONDS = 60  # seconds of processor time


def member(name: str, data: bytes = b"", size: int | None = None, kind: bytes = b"0") -> bytes:
    """Return a file of a tar, with a size in its header that may be false, and of any kind."""
    header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    size = len(data) if size is None else size
    header[124:136] = b"\x80" + size.to_bytes(11, "big")
    header[156:157] = kind
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data + bytes(-len(data) % 512)


def pax(count: int, kind: bytes, name: str = "k") -> bytes:
    return member(
        "pax", b"".join(b"%d %s%06d=v\n" % (13, name.encode(), number) for number in range(count)), kind=kind
    )


def sparse(path: Path, start: bytes, size: int, end: bytes = b"") -> None:
    """Write a file with a gap between its beginning and its end that takes no room on the disk."""
    with open(path, "wb") as file:
        file.write(start)
        file.seek(size, os.SEEK_CUR)
        file.write(end)
        file.truncate()


def repeated(text: str, count: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), [text])


def table(path: Path, **columns: pa.Array) -> None:
    pq.write_table(pa.table(columns), path, compression="zstd", store_schema=False)


def lying(path: Path) -> None:
    """Return a footer that claims 2^55 rows."""
    table(path, image=pa.array(["a.jpg"] * 20))
    data = path.read_bytes()
    size = int.from_bytes(data[-8:-4], "little")
    footer = data[-8 - size : -8].replace(b"\x16\x28", b"\x16" + b"\xfe" + b"\xff" * 7 + b"\x7f")
    assert len(footer) > size
    path.write_bytes(data[: -8 - size] + footer + len(footer).to_bytes(4, "little") + b"PAR1")


def zipped(path: Path, start: bytes, mebibytes: int) -> None:
    with gzip.open(path, "wb", 1) as file:
        file.write(start)
        for _ in range(mebibytes):
            file.write(b"x" * (1 << 20))


def png(width: int, height: int, chunks: int = 0) -> bytes:
    """Return a grey picture with an alpha channel and empty chunks."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    pixels = zlib.compress((b"\0" + bytes(2 * width)) * height, 1)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x04\0\0\0")
        + chunk(b"prIv", b"") * chunks
        + chunk(b"IDAT", pixels)
        + chunk(b"IEND", b"")
    )


def jpeg(scans: int = 0) -> bytes:
    """Return a progressive picture whose last scan is repeated."""
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:end] + data[last:end] * scans + data[end:]


GOOD = b"".join(member(f"good.{suffix}", data) for suffix, data in {"jpg": jpeg(), "txt": b"a dog"}.items())
END = bytes(1024)
DEEP = b"[" * 30_000 + b"]" * 30_000
BIG = "x" * (5 << 20)

# Each writes a file of the name; then the reasons of its rows, in order, "" for good ones, or one that the whole file
# is refused for.
HOSTILE = {
    "holds.tar": (
        lambda path: sparse(path, GOOD + member("big.jpg", size=3 << 40), 3 << 40, end=GOOD + END),
        ["", "jpg: 3,298,534,883,328 bytes, more than 16,777,216", ""],
    ),
    "claims.tar": (
        lambda path: path.write_bytes(GOOD + member("big.jpg", size=5 << 40) + END),
        "unexpected end of data",
    ),
    "sparse.tar": (
        lambda path: path.write_bytes(GOOD + member("s.jpg", bytes(512), kind=b"S") + END),
        ["", "not a regular file"],
    ),
    "padded.tar": (lambda path: sparse(path, GOOD + END, 1 << 40), [""]),
    "headers.tar": (
        lambda path: path.write_bytes(pax(10_000, b"g") * 20 + GOOD + END),
        "headers of a file are more than 1,048,576",
    ),
    "globals.tar": (
        lambda path: path.write_bytes(b"".join(pax(2000, b"g", chr(97 + n)) + GOOD for n in range(20)) + END),
        [""] * 20,
    ),
    "name.tar": (
        lambda path: path.write_bytes(member("L", b"a." * 20_000, kind=b"L") + member("x") + END),
        "a name of 40,000 char",
    ),
    "shared.tar": (
        lambda path: path.write_bytes(
            b"".join(member(f"a.{n}.jpg", b"x") for n in range(200)) + member("a.b", bytes(8 << 20)) + END
        ),
        "1 files of the key 'a' belong to each of its 200 pictures",
    ),
    "packed.tar.gz": (
        lambda path: zipped(path, GOOD + member("big.jpg", size=1 << 40), 1),
        "more than the 67,108,864 that are",
    ),
    "wide.tar": (
        lambda path: path.write_bytes(
            member("a.jpg", jpeg()) + member("a.json", b"[" + b"[]," * 100_000 + b"[]]") + END
        ),
        [""],
    ),
    "line.jsonl": (lambda path: sparse(path, b'{"text": "a"}\n', 1 << 40), "a line of more than 1,048,576 bytes"),
    "deep.jsonl": (
        lambda path: path.write_bytes(b'{"text": "a"}\n{"text": ' + DEEP + b"}\n"),
        ["", "not a line of JSON: maximum recursion"],
    ),
    "wide.jsonl": (
        lambda path: path.write_bytes(b'{"text": "a"}\n{"text": "b", "c": [' + b"[]," * 100_000 + b"[]]}\n"),
        ["", "JSON of more than 65,536 values"],
    ),
    "line.jsonl.gz": (lambda path: zipped(path, b'{"text": "', 2), "a line of more than 1,048,576 bytes"),
    "line.csv.gz": (lambda path: zipped(path, b"image,text\na.jpg,", 2), "a line of more than 1,048,576 bytes"),
    "deep.json": (lambda path: path.write_bytes(b'[{"text": "a"}, ' + DEEP + b"]"), "line 1: maximum recursion"),
    "open.json": (lambda path: sparse(path, b'[{"text": "', 1 << 40), "line 1: not JSON"),
    "info.json": (lambda path: sparse(path, b'{"lengths": {"', 1 << 40), "has more than the 1,048,576 bytes"),
    "dictionary.parquet": (
        lambda path: table(path, image=pa.array([f"{n}.jpg" for n in range(50)]), text=repeated(BIG, 50)),
        ["missing picture"] * 50,
    ),
    "list.parquet": (
        lambda path: table(
            path,
            image=pa.array(["a.jpg"]),
            captions=pa.ListArray.from_arrays(pa.array([0, 20_000], pa.int32()), repeated(BIG, 20_000)),
        ),
        ["a row of 104,857,600,005 bytes, more than 16,777,216"],
    ),
    "lists.parquet": (
        lambda path: table(
            path,
            image=pa.array(["a.jpg"]),
            captions=pa.ListArray.from_arrays(pa.array([0, 1_000_000], pa.int32()), repeated("a", 1_000_000)),
        ),
        "lists of 1,000,000 values in a row group",
    ),
    "rows.parquet": (
        lambda path: table(path, image=repeated("a.jpg", 100_000)),
        "its footer claims 100,000 rows in",
    ),
    "lies.parquet": (lying, "its footer claims "),
    "line.txt": (lambda path: sparse(path, b"a dog\n", 1 << 40), "a line of more than 1,048,576 bytes"),
    "document.json": (lambda path: sparse(path, b'{"a": "', 1 << 40), "has more than the 1,048,576 bytes"),
}


def read(path: Path) -> list[str] | str:
    """Return the errors of the rows, or the error with which reading ends."""
    try:
        if path.name in ("line.txt", "document.json"):
            return [
                row.error
                for source in open_sources([str(path)], None, None)[0]
                for piece in source.pieces
                for row in piece.read(None, ())
            ]
        return [record.error for shard in read_samples(str(path)) for record in shard]
    except ValueError as error:
        return str(error)
    except MemoryError:
        return "out of memory"


def in_bounds(call):
    """Return what a call returns in a process with little memory and time."""
    ends = os.pipe()
    if not (child := os.fork()):
        try:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY,) * 2)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            with open(ends[1], "w") as file:
                json.dump(call(), file)
        finally:
            os._exit(0)
    os.close(ends[1])
    with open(ends[0]) as file:
        report = file.read()
    os.waitpid(child, 0)
    return json.loads(report or "null")


def test_hostile_inputs_are_read_in_little_memory_and_time(tmp_path, monkeypatch):
    for name, value in SMALLER.items():
        monkeypatch.setattr(limits, name, value)
    for name, (write, _) in HOSTILE.items():
        write(tmp_path / name)
    results = in_bounds(lambda: {name: read(tmp_path / name) for name in HOSTILE})
    assert results is not None, "killed, or out of memory"
    for name, (_, expected) in HOSTILE.items():
        if isinstance(expected, str):
            assert isinstance(results[name], str) and expected in results[name], (name, results[name])
        else:
            assert len(results[name]) == len(expected) and all(
                reason in error and bool(reason) == bool(error) for reason, error in zip(expected, results[name])
            ), (name, results[name])


@pytest.mark.parametrize(
    "data, reason",
    [
        (jpeg(200), "JPEG picture of 206 scans, more than 100"),
        (png(2, 2, 100_001), "PNG picture of more than 100,000 chunks"),
        (png(20_000, 20_000)[:100], "400,000,000 is more than 200,000,000"),
    ],
)
def test_pictures_that_would_take_too_long_are_refused(data, reason):
    with pytest.raises(ValueError, match=reason):
        decode_image(data)


def test_scans_behind_a_picture_are_not_its_own():
    assert decode_image(jpeg(80)).size == decode_image(jpeg() + b"\xff\xda" * 1000).size == (64, 64)


def test_a_large_picture_is_converted_in_parts(monkeypatch):
    """Alpha over white and grey of 16 bits need no second picture of four bytes for each pixel."""
    monkeypatch.setattr("imagetext.sample.BAND", 100)
    pixels = np.random.default_rng(0).integers(0, 256, (37, 23, 4), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    white = Image.new("RGBA", (23, 37), "white")
    assert (
        decode_image(file.getvalue()).tobytes()
        == Image.alpha_composite(white, Image.fromarray(pixels)).convert("RGB").tobytes()
    )


def test_a_picture_file_has_a_largest_size(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "FILE", 1000)
    (tmp_path / "a.jpg").write_bytes(bytes(1001))
    (tmp_path / "t.jsonl").write_text('{"image": "a.jpg", "text": "a dog"}\n')
    (shard,) = read_samples(str(tmp_path / "t.jsonl"))
    assert [record.error for record in shard] == [
        "'a.jpg': has more than the 1,000 bytes that are read of such a file"
    ]


def test_a_key_that_comes_again_takes_no_longer_each_time(caplog):
    keys = SeenKeys("s")
    # it would take minutes if each value were counted from the beginning
    assert len({keys.unique("a") for _ in range(100_000)}) == 100_000
    assert len(caplog.records) == SeenKeys.MAX_WARNINGS + 1


def test_many_columns_take_no_longer_each(tmp_path):
    names = ["image", "text", *(f"feature_{number}" for number in range(16_000))]
    (tmp_path / "t.csv").write_text(f"{','.join(names)}\na.jpg{',1' * (len(names) - 1)}\n")
    table(tmp_path / "t.parquet", **{name: pa.array(["1"]) for name in names[:4000]})
    began = time.process_time()
    for name in ("t.csv", "t.parquet"):
        assert [len(record.meta) > 3900 for shard in read_samples(str(tmp_path / name)) for record in shard] == [True]
    # it took half a minute when each column was compared with each
    assert time.process_time() - began < 10


def test_rows_after_a_large_one_take_no_longer_each(tmp_path):
    rows = [{"key": "large", "text": "x" * (9 << 20)}, *({"key": str(n), "text": "a dog " * 120} for n in range(8000))]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    began = time.process_time()
    records = [record for shard in read_samples(str(tmp_path / "t.json")) for record in shard]
    assert [record.key for record in records] == [row["key"] for row in rows]
    assert time.process_time() - began < 10  # it took a minute when each row was looked for in eight MiB


@pytest.mark.parametrize(
    "text, reason",
    [
        (
            "a: &a [x, x, x, x, x, x, x, x]\n"
            + "".join(f"{two}: &{two} [{', '.join([f'*{name}'] * 8)}]\n" for name, two in zip("abcdefgh", "bcdefghi")),
            "holds more than 10,000 values",
        ),
        ("a: &a [*a]", "holds more than 10,000 values"),
        (
            "a0: &a0 {x: 1}\n"
            + "".join(f"a{number + 1}: &a{number + 1} {{<<: [*a{number}, *a{number}]}}\n" for number in range(60)),
            "holds more than 10,000 values",
        ),
        ("a: &a " + "x" * 500_000 + "\nb: [*a, *a]", "or 1,048,576 characters"),
        ("a: [" + "b," * 20_001 + "]", "holds more than 10,000 values"),
        ("a: 1" + ":59" * 100_000, "holds a number of 300,001 characters"),
        ("a: " + "[" * 9_000 + "]" * 9_000, "is nested more than 100 levels deep"),
        ("a: " + "x" * (1 << 20), "more than the 1,048,576"),
    ],
)
def test_a_configuration_holds_no_more_than_a_person_writes(tmp_path, text, reason):
    (tmp_path / "c.yaml").write_text(text)
    fields, (problem,) = read_config_file(str(tmp_path / "c.yaml"))
    assert not fields and reason in problem


@pytest.mark.parametrize(
    "name, pack", [("t.csv.gz", gzip.compress), ("t.tsv.zst", lambda data: pa.compress(data, "zstd", asbytes=True))]
)
@pytest.mark.parametrize("images", [["a.jpg", "a.jpg", "b.jpg"], ["a.jpg", "b.jpg", "a.jpg"]])
def test_compressed_tables_of_cells_are_read_as_they_are_unpacked(tmp_path, name, pack, images):
    text = (
        "image,text\n"
        + "".join(f'{image},"a dog, no. {number}"\n' for number, image in enumerate(images))
        + 'c.jpg,"5 nails\n'
    )
    text = text.replace(",a", "\ta").replace(',"', '\t"').replace("image,", "image\t") if ".tsv" in name else text
    plain = tmp_path / name.rpartition(".")[0]
    plain.write_text(text)
    (tmp_path / name).write_bytes(pack(text.encode()))
    (packed,), (unpacked,) = read_samples(str(tmp_path / name)), read_samples(str(plain))
    assert [(record.key.replace(name, ""), record.captions) for record in packed] == [
        (record.key, record.captions) for record in unpacked
    ]
    assert [record.captions[:1] for record in packed] == [
        (f"a dog, no. {images.index(image)}",) for image in ("a.jpg", "b.jpg")
    ] + [('"5 nails',)]
