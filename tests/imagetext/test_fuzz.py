"""Malformed input of every kind, drawn by number: `CAPSMITH_FUZZ=1000` draws so many.

Whatever comes, reading ends, either with all rows, each with its picture or a reason, or with an error that names the file
after rows that are whole; and what was read can be written and read again in every format without losing a row.
"""

import base64
import csv
import gzip
import io
import json
import os
import random
import signal
import struct
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from imagetext.columns import room_for, text_embeddings
from imagetext.join import name_of
from imagetext.sample import Record, decode_image
from imagetext.shards import SUFFIXES, ShardWriter
from imagetext.sources import read_samples

CASES = int(os.environ.get("CAPSMITH_FUZZ", 48))
SECONDS = 60  # no case takes a second
X = "syn_text_x"


def spelt(fields: dict, **options) -> bytes:
    try:
        return json.dumps(fields, **options).encode("utf-8", "surrogatepass")
    except RecursionError:
        return b'{"lengths": ' + b"[" * 5000 + b"]" * 5000 + b"}"


class Case:
    """What a case draws from, and writes."""

    def __init__(self, number: int, folder: Path):
        self.rng, self.folder = random.Random(number), folder
        self.whole: dict[str, bytes] = {}   # pictures that must come through as they are, by key
        self.keys: list[str] | None = None  # all rows that must be there, where the file as a whole is in order

    def picture(self, format: str = "JPEG", mode: str = "RGB", size: tuple[int, int] = (9, 7), **options) -> bytes:
        pixels = np.frombuffer(self.rng.randbytes(size[0] * size[1] * 4), np.uint8).reshape(size[1], size[0], 4)[..., :3]
        file = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(file, format, **options)
        return file.getvalue()

    def text(self) -> bytes:
        return self.rng.choice([b"a dog", b"", b" \n ", b"\0", b"a\0b", b"one\ntwo\r\nthree\rfour", b"\xff\xfe\xfa", b"gr\xfcn",
                                "a\u2028b\u0085c".encode(), b"\xed\xa0\x80", b"\xf0\x9f", "\U0001f436".encode(), b"x" * 100_000,
                                self.rng.randbytes(30), b"\xef\xbb\xbfbom", b'"', b"<b>&amp;"])

    def value(self, depth: int = 0):
        """Something that JSON can spell."""
        deep: list = []
        for _ in range(self.rng.choice([5, 99, 101, 3000])):
            deep = [deep]
        kinds = [None, True, False, 0, -1, 10**30, 1e308, float("nan"), float("inf"), "", "a", "\ud800", "\0", "x" * 2000, [], {},
                 [[]], [1, "a", None], {"a": {"b": [None]}}, ["a", "b"], [""], {"syn_text_x": 3}, {"bytes": 5}, {"bytes": [1, 2]}, deep]
        value = self.rng.choice(kinds)
        return {"a": self.value(depth + 1), "": self.value(depth + 1)} if self.rng.random() < 0.1 and depth < 3 else value

    def json(self, names: list[str]) -> bytes:
        """An object with odd values, or no object."""
        fields = {name: self.value() for name in names if self.rng.random() < 0.6}
        text = spelt(fields, ensure_ascii=self.rng.random() < 0.5)
        others = [b"", b"{", b"[1]", b"null", b"3" * 5000, b"\xff" + text, text + b"x", text.replace(b'"', b"'")]
        return self.rng.choice([text] * 8 + others)

    def damaged(self, data: bytes) -> bytes:
        """The bytes with some of them changed, lost, doubled or swapped."""
        data = bytearray(data)
        for _ in range(self.rng.choice([1, 1, 2, 8])):
            at, length = self.rng.randrange(len(data) + 1), self.rng.choice([1, 4, 512])
            match self.rng.randrange(4):
                case 0:
                    data[at:at + 1] = self.rng.randbytes(1)
                case 1:
                    del data[at:at + length]
                case 2:
                    data[at:at] = data[at:at + length]
                case 3:
                    data[at:at + length] = bytes(length)
            data = data or bytearray(b"\0")
        return bytes(data)

    def put(self, name: str, data: bytes) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return str(path)

    def tar(self, files: list[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> bytes:
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w", format=format) as archive:
            for name, content in files:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return data.getvalue()

    def samples(self, count: int = 4) -> list[tuple[str, bytes]]:
        """The files of good samples, which are noted."""
        files = []
        for number in range(count):
            self.whole[f"good{number}"] = self.picture()
            good = {"jpg": self.whole[f"good{number}"], "txt": b"a dog", "json": b"{}"}
            files += [(f"good{number}.{suffix}", data) for suffix, data in good.items()]
        return files


# ---- the kinds of malformed input: each writes something and returns the SPEC ------------------------------------------


def tar_cut(case: Case) -> str:
    data = case.tar(case.samples())
    return case.put("x.tar", data[:case.rng.randrange(len(data))])


def tar_damaged(case: Case) -> str:
    case.samples()
    files, case.whole = case.samples(), {}
    format = case.rng.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
    return case.put("x.tar", case.damaged(case.tar(files, format)))


def tar_header_lies(case: Case) -> str:
    """A field of a header says something else, and the checksum agrees."""
    data, case.whole = bytearray(case.tar(case.samples())), {}
    with tarfile.open(fileobj=io.BytesIO(bytes(data))) as archive:
        offset = case.rng.choice([member.offset for member in archive])
    size = case.rng.choice([b"0" * 12, b"00000000001\0", b"77777777777\0", b"\xff" * 12, b"\x80" + b"\xff" * 11,
                            b"\xff" * 11 + b"\0", b"           \0", b"-0000000512\0", b"00000001000\0",
                            b"\xff" * 9 + b"\xfe\0\0", b"xyz\0" * 3])
    kind = case.rng.choice([b"1", b"2", b"5", b"7", b"S", b"L", b"K", b"x", b"g", b"\xff"])
    others = [(156, kind), (0, case.rng.randbytes(100)), (257, case.rng.randbytes(8)), (345, case.rng.randbytes(155))]
    start, field = case.rng.choice([(124, size)] * 4 + others)
    data[offset + start:offset + start + len(field)] = field
    data[offset + 148:offset + 156] = b" " * 8
    data[offset + 148:offset + 156] = b"%06o\0 " % sum(data[offset:offset + 512])
    return case.put("x.tar", bytes(data))


def tar_of_long_headers(case: Case) -> str:
    """Thousands of headers that say something of the next one."""
    archive = io.BytesIO()
    member = tarfile.TarInfo("x" * case.rng.choice([120, 3000]) + ".jpg")
    header = member.tobuf(tarfile.GNU_FORMAT)
    archive.write(header[:-512] * case.rng.choice([2, 3000]) + header + bytes(10240))
    return case.put("x.tar", archive.getvalue())


def tar_names(case: Case) -> str:
    names = ["/etc/passwd", "../../x", "..", "a/../b", "//x", "./y", "C:\\z", "é", "a b", "%41", "%", "~", "x" * 300, "d/" * 90 + "e",
             "\udcff", "n\nl", "UPPER", "-rf", "*", "$(id)", "key~2", "key"]
    files, case.keys = case.samples(2), ["good0", "good1"]
    for name in case.rng.sample(names, 6):
        others = ["txt", "json", "syn.json", "n\udcffz", "npz", "a" * 200]
        suffixes = [case.rng.choice(["jpg", "JPG", "png", "input.jpg"]), *case.rng.sample(others, 2)]
        case.rng.shuffle(suffixes)
        files += [(f"{name}.{suffix}", {"json": b"{}", "syn.json": b"{}"}.get(suffix, b"x")) for suffix in suffixes]
    return case.put("x.tar", case.tar(files))


def tar_of_keys(case: Case) -> str:
    """Keys that come again, keys with dots, files that come late, links and devices."""
    files, case.keys = case.samples(), [f"good{number}" for number in range(4)]
    case.whole = {}
    case.rng.shuffle(files)
    files += [(f"photo.{number}.jpg", case.picture()) for number in range(3)] + [("good0.jpg", case.picture())] * 2
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for number, kind in enumerate([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]):
            member = tarfile.TarInfo(f"link{number}.jpg")
            member.type, member.linkname = kind, case.rng.choice(["/etc/passwd", "good0.jpg", "../x", ""])
            archive.addfile(member)
    case.keys += [*(f"photo.{number}" for number in range(3)), *(f"link{number}" for number in range(4))]
    return case.put("x.tar", data.getvalue())


def tar_pictures(case: Case) -> str:
    files, case.keys = case.samples(2), [f"good{number}" for number in range(2)]
    for number in range(6):
        name, data = odd_picture(case)
        files.append((f"{number}-{name}.{case.rng.choice(['jpg', 'png', 'heic'])}", data))
        case.keys.append(f"{number}-{name}")
    return case.put("x.tar", case.tar(files))


def tar_texts(case: Case) -> str:
    files, case.keys = [], []
    for number in range(6):
        names = ["uid", "sha256", "width", "height", "captions", "caption", "text", "error", "source", "caption_scores", "url",
                 "text_emb", "é"]
        files += [(f"k{number}.jpg", case.picture()), (f"k{number}.txt", case.text()), (f"k{number}.json", case.json(names)),
                  (f"k{number}.syn.json", case.json([X, "syn_text", "alt_captions", "error", "captions", "syn_text_x_emb"])),
                  (f"k{number}.npz", case.rng.randbytes(50)), (f"k{number}.url.txt", case.text())]
        case.keys.append(f"k{number}")
    return case.put("x.tar", case.tar(files))


def jsonl(case: Case) -> str:
    names = ["key", "uid", "id", "image", "path", "captions", "text", "error", X, "syn_text_x_emb", "members", "json",
             "caption_scores", "width"]
    lines = [case.json(names).replace(b"\n", b" ").replace(b"\r", b" ") or b"{}" for _ in range(8)]
    encoded = base64.b64encode(picture := case.picture()).decode()
    good = {"key": "good", "image": encoded, "captions": [case.text().decode("utf-8", "replace") or "a"]}
    lines.insert(case.rng.randrange(8), json.dumps(good).encode())
    case.whole["good"], data = picture, b"\n".join(lines)
    match case.rng.randrange(4):
        case 0:
            return case.put("x.jsonl", data)
        case 1:
            case.whole = {}
            return case.put("x.jsonl.gz", case.damaged(gzip.compress(data)))
        case 2:
            case.whole, sink = {}, pa.BufferOutputStream()
            with pa.CompressedOutputStream(sink, "zstd") as stream:
                stream.write(data)
            return case.put("x.jsonl.zst", case.damaged(sink.getvalue().to_pybytes()))
        case 3:
            case.whole = {}
            return case.put("x.jsonl", case.damaged(data))


def table_of_text(case: Case) -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file, "excel-tab" if (tabs := case.rng.random() < 0.5) else "excel")
    names = case.rng.sample(["key", "image", "path", "text", "captions", X, "error", "members", "json", "width"], 5) + ["caption"]
    writer.writerow(names)
    for _ in range(8):
        writer.writerow([case.text().decode("utf-8", "replace") for _ in names])
    data = file.getvalue().encode("utf-8", "surrogatepass")
    data = case.rng.choice([data, case.damaged(data), data.replace(b"dog", b"d\xffg"), data.replace(b'"', b"")])
    return case.put("x.tsv" if tabs else "x.csv", data)


def parquet(case: Case) -> str:
    texts = pa.array([b"a", b"\xff", None, b"\0", b"c"]).view(pa.string())
    columns = {"image": pa.array([case.picture() for _ in range(5)]), "text": texts}
    odd = {"image": pa.array([1, 2, None, 4, 5]), "path": pa.array([["a"]] * 5), "captions": pa.array([[1.5]] * 5),
           X: pa.array([[["a"]]] * 5), "key": pa.array([b"\xff"] * 5), "uid": pa.array([float("nan")] * 5),
           "error": pa.array([True] * 5), "width": pa.array([2**63] * 5, pa.uint64()), "json": pa.array(["[" * 5000] * 5),
           "members": pa.array([[{"name": "a", "data": 10**12}]] * 5), "when": pa.array([2**62] * 5, pa.timestamp("us")),
           "caption_scores": pa.array([[{"a": 1}]] * 5), "map": pa.array([[("a", 1)]] * 5, pa.map_(pa.string(), pa.int64()))}
    for name in case.rng.sample(list(odd), 5):
        columns[name] = odd[name]
    path = case.folder / "x.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=case.rng.choice([2, 5]))
    if case.rng.random() < 0.5:
        path.write_bytes(case.damaged(path.read_bytes()))
    return str(path)


def folder(case: Case) -> str:
    case.put("in/good.jpg", picture := case.picture())
    case.whole["good"] = picture
    for number in range(4):
        name, data = odd_picture(case)
        case.put(f"in/{number}-{name}.{case.rng.choice(['jpg', 'heic', 'PNG', 'tiff'])}", data)
    case.put("in/good.txt", case.text())
    case.put("in/metadata.jsonl", b"\n".join(case.json(["file_name", "text", "captions", "error"]) for _ in range(4)))
    os.mkdir(case.folder / "in/folder.jpg")
    os.mkfifo(case.folder / "in/pipe.jpg")
    os.symlink("nowhere", case.folder / "in/link.jpg")
    os.symlink(".", case.folder / "in/loop")
    Path(os.fsdecode(os.fsencode(case.folder) + b"/in/\xff\n.jpg")).write_bytes(case.picture())
    return str(case.folder / "in")


def listing(case: Case) -> str:
    case.put("00000.tar", case.tar(case.samples(2)))
    names = case.rng.choice([{"00000.tar": case.value()}, {"": 1}, {"gone.tar": 1}, {"info.json": 1}, {"\0": 1}, {"/": 1}, {"..": 1},
                             case.value()])
    case.whole, data = {}, spelt({"lengths": names, "totalLength": case.value()})
    return case.put("info.json", case.json(["lengths"]) if case.rng.random() < 0.5 else data)


KINDS = [tar_cut, tar_damaged, tar_header_lies, tar_of_long_headers, tar_names, tar_of_keys, tar_pictures, tar_texts, jsonl,
         table_of_text, parquet, folder, listing, tar_pictures, tar_header_lies, tar_texts]


def odd_picture(case: Case) -> tuple[str, bytes]:
    """A picture that is none, lies of its size, or is of an unusual kind."""
    side = case.rng.choice([0, 31623, 65535, 2**31 - 1])
    exif, icc = case.rng.randbytes(40), case.rng.randbytes(40)
    frames = [Image.new("RGB", (9, 7), colour) for colour in ("red", "blue")]
    animated = io.BytesIO()
    frames[0].save(animated, case.rng.choice(["GIF", "WEBP", "PNG", "TIFF"]), save_all=True, append_images=frames[1:])
    size = struct.pack(">II", side, side)
    png, jpeg, gif, bmp = case.picture("PNG"), case.picture(), case.picture("GIF"), case.picture("BMP")
    frame, small = jpeg.index(b"\xff\xc0") + 5, struct.pack(">HH", side & 65535, side & 65535)
    huge = {"png": png[:16] + size + png[24:29] + struct.pack(">I", zlib.crc32(b"IHDR" + size + png[24:29])) + png[33:],
            "jpeg": jpeg[:frame] + small + jpeg[frame + 4:], "gif": gif[:6] + small + gif[10:],
            "bmp": bmp[:18] + struct.pack("<ii", side, side) + bmp[26:], "ppm": b"P6 %d %d 255\n" % (side, side) + bytes(100),
            "webp": b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + struct.pack("<I", side & 0xFFFFFF)[:3] * 2,
            "tiff": b"II*\0\x08\0\0\0\x02\0" + b"".join(struct.pack("<HHII", tag, 4, 1, side) for tag in (256, 257)) + bytes(4),
            "jp2": b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 \0\0\0\0jp2 \0\0\0\x2djp2h\0\0\0\x16ihdr" + size + b"\0\3\7\7\0\0"}
    of_size = case.rng.choice(list(huge))
    cut = case.picture(case.rng.choice(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF", "JPEG2000"]))
    return case.rng.choice([
        ("empty", b""), ("text", b"<html>"), ("random", case.rng.randbytes(200)), (f"size-{of_size}-{side}", huge[of_size]),
        ("exif", case.picture(exif=b"Exif\0\0" + exif)), ("icc", case.picture(icc_profile=icc)),
        ("icc-png", case.picture("PNG", icc_profile=icc)), ("cmyk", case.picture(mode="CMYK")),
        ("bits", case.picture("PNG", "I;16") if case.rng.random() < 0.5 else case.picture("TIFF", "F")),
        ("palette", case.picture("PNG", "P", transparency=case.rng.randbytes(3))), ("one-bit", case.picture("PNG", "1")),
        ("animated", animated.getvalue()), ("heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + case.rng.randbytes(50)),
        ("cut", cut[:case.rng.randrange(len(cut))]), ("damaged", case.damaged(cut)), ("huge-strip", case.picture(size=(1, 60000))),
        ("eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), ("svg", b"<svg/>"), ("zip", b"PK\3\4" + bytes(100))])


# ---- what must hold ----------------------------------------------------------------------------------------------------


@pytest.fixture
def limit_on_time():
    def late(*_):
        raise TimeoutError("the case hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("number", range(CASES))
def test_malformed_input(number, tmp_path, limit_on_time, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    case = Case(number, tmp_path)
    spec = KINDS[number % len(KINDS)](case)
    samples, reason = read(spec)
    if reason:
        assert os.path.basename(spec) in reason or "x.tar" in reason or "00000.tar" in reason, reason
    keys = [sample.key for sample in samples]
    assert len(keys) == len(set(keys))
    assert case.keys is None or not reason and set(case.keys) <= set(keys), (reason, keys)
    images = {sample.key: sample.image for sample in samples}
    lost = case.whole.keys() - images.keys()
    assert all(images[key] == image for key, image in case.whole.items() if key in images) and (not lost or reason), lost
    records = [decoded(sample) for sample in samples]
    for sample in samples:
        assert room_for(sample, ["syn_text_new"], overwrite=True, drop_text_embeddings=True).key == sample.key
        assert not name_of(sample, "url") == "" and text_embeddings(sample) is not None
    for format in SUFFIXES:
        for images in (True, False):
            check_round_trip(tmp_path / f"{format}{images}", records, format, images)


def read(spec: str) -> tuple[list[Record], str]:
    """The rows of the SPEC, and why there are no more."""
    samples = []
    try:
        for shard in read_samples(spec):
            samples += shard
    except ValueError as error:
        assert str(error)
        return samples, str(error)
    return samples, ""


def decoded(sample: Record) -> Record:
    """The record that a captioner would make of the sample."""
    error = sample.error
    try:
        if not error:
            image = decode_image(sample.image)
            assert image.mode == "RGB" and image.width * image.height > 0
    except ValueError as problem:
        error = str(problem)
        assert error
    made = {} if error else {"syn_text_new": ("a dog\0", "b\nc")}
    return replace(sample, columns={**sample.columns, **made}, error=error)


def check_round_trip(folder: Path, records: list[Record], format: str, images: bool) -> None:
    with ShardWriter(folder, "out", format=format, images=images, columns=["syn_text_new"]) as writer:
        for record in records:
            writer.write(record)
    back = list(read_samples(writer.path)[0]) if records or format == "webdataset" else []
    written = sorted(records, key=lambda record: bool(record.error))
    assert [(sample.key, sample.error) for sample in back] == [(one.key, one.error) for one in written]
    for sample, record in zip(back, written):
        assert sample.image == (record.image if images and not record.error else None)
        columns = sample.columns
        assert columns.get("syn_text_new", ()) == record.syn_text.get("syn_text_new", ())
