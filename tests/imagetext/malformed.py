"""Malformed input of every kind. Each function writes an input, drawn by the case's number, and returns its SPEC."""

import base64
import csv
import gzip
import io
import json
import os
import random
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

X = "syn_text_x"


def spelt(fields: dict, **options) -> bytes:
    try:
        return json.dumps(fields, **options).encode("utf-8", "surrogatepass")
    except RecursionError:
        return b'{"lengths": ' + b"[" * 5000 + b"]" * 5000 + b"}"


class Case:
    """The random numbers of a case, and the folder that it writes to."""

    def __init__(self, number: int, folder: Path):
        self.rng, self.folder = random.Random(number), folder
        self.whole: dict[str, bytes] = {}  # pictures that must be read unchanged, by key
        self.keys: list[str] | None = None  # the number of rows that must be read, if the file as a whole is sound

    def picture(self, format: str = "JPEG", mode: str = "RGB", size: tuple[int, int] = (9, 7), **options) -> bytes:
        pixels = np.frombuffer(self.rng.randbytes(size[0] * size[1] * 4), np.uint8).reshape(size[1], size[0], 4)[
            ..., :3
        ]
        file = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(file, format, **options)
        return file.getvalue()

    def text(self) -> bytes:
        return self.rng.choice(
            [
                b"a dog",
                b"",
                b" \n ",
                b"\0",
                b"a\0b",
                b"one\ntwo\r\nthree\rfour",
                b"\xff\xfe\xfa",
                b"gr\xfcn",
                "a\u2028b\u0085c".encode(),
                b"\xed\xa0\x80",
                b"\xf0\x9f",
                "\U0001f436".encode(),
                b"x" * 100_000,
                self.rng.randbytes(30),
                b"\xef\xbb\xbfbom",
                b'"',
                b"<b>&amp;",
            ]
        )

    def value(self, depth: int = 0):
        """Draw a value that JSON can express."""
        deep: list = []
        for _ in range(self.rng.choice([5, 99, 101, 3000])):
            deep = [deep]
        kinds = [
            None,
            True,
            False,
            0,
            -1,
            10**30,
            1e308,
            float("nan"),
            float("inf"),
            "",
            "a",
            "\ud800",
            "\0",
            "x" * 2000,
            [],
            {},
            [[]],
            [1, "a", None],
            {"a": {"b": [None]}},
            ["a", "b"],
            [""],
            {"syn_text_x": 3},
            {"bytes": 5},
            {"bytes": [1, 2]},
            deep,
        ]
        value = self.rng.choice(kinds)
        return (
            {"a": self.value(depth + 1), "": self.value(depth + 1)} if self.rng.random() < 0.1 and depth < 3 else value
        )

    def json(self, names: list[str]) -> bytes:
        """Draw a JSON object with odd values, or another JSON value."""
        fields = {name: self.value() for name in names if self.rng.random() < 0.6}
        text = spelt(fields, ensure_ascii=self.rng.random() < 0.5)
        others = [b"", b"{", b"[1]", b"null", b"3" * 5000, b"\xff" + text, text + b"x", text.replace(b'"', b"'")]
        return self.rng.choice([text] * 8 + others)

    def damaged(self, data: bytes) -> bytes:
        """Return the bytes with some of them changed, removed, repeated or swapped."""
        data = bytearray(data)
        for _ in range(self.rng.choice([1, 1, 2, 8])):
            start, length = self.rng.randrange(len(data) + 1), self.rng.choice([1, 4, 512])
            match self.rng.randrange(4):
                case 0:
                    data[start : start + 1] = self.rng.randbytes(1)
                case 1:
                    del data[start : start + length]
                case 2:
                    data[start:start] = data[start : start + length]
                case 3:
                    data[start : start + length] = bytes(length)
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
        """Return the files of good samples, and note their pictures."""
        files = []
        for number in range(count):
            self.whole[f"good{number}"] = self.picture()
            good = {"jpg": self.whole[f"good{number}"], "txt": b"a dog", "json": b"{}"}
            files += [(f"good{number}.{suffix}", data) for suffix, data in good.items()]
        return files


# ---- the kinds of malformed input: each writes something and returns the SPEC --------------------------------------


def tar_cut(case: Case) -> str:
    data = case.tar(case.samples())
    return case.put("x.tar", data[: case.rng.randrange(len(data))])


def tar_damaged(case: Case) -> str:
    case.samples()
    files, case.whole = case.samples(), {}
    format = case.rng.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
    return case.put("x.tar", case.damaged(case.tar(files, format)))


def tar_header_lies(case: Case) -> str:
    """A header has a wrong value in one field, and a correct checksum."""
    data, case.whole = bytearray(case.tar(case.samples())), {}
    with tarfile.open(fileobj=io.BytesIO(bytes(data))) as archive:
        offset = case.rng.choice([member.offset for member in archive])
    size = case.rng.choice(
        [
            b"0" * 12,
            b"00000000001\0",
            b"77777777777\0",
            b"\xff" * 12,
            b"\x80" + b"\xff" * 11,
            b"\xff" * 11 + b"\0",
            b"           \0",
            b"-0000000512\0",
            b"00000001000\0",
            b"\xff" * 9 + b"\xfe\0\0",
            b"xyz\0" * 3,
        ]
    )
    kind = case.rng.choice([b"1", b"2", b"5", b"7", b"S", b"L", b"K", b"x", b"g", b"\xff"])
    others = [(156, kind), (0, case.rng.randbytes(100)), (257, case.rng.randbytes(8)), (345, case.rng.randbytes(155))]
    start, field = case.rng.choice([(124, size)] * 4 + others)
    data[offset + start : offset + start + len(field)] = field
    data[offset + 148 : offset + 156] = b" " * 8
    data[offset + 148 : offset + 156] = b"%06o\0 " % sum(data[offset : offset + 512])
    return case.put("x.tar", bytes(data))


def tar_of_long_headers(case: Case) -> str:
    """Thousands of headers that each extend the next one."""
    archive = io.BytesIO()
    member = tarfile.TarInfo("x" * case.rng.choice([120, 3000]) + ".jpg")
    header = member.tobuf(tarfile.GNU_FORMAT)
    archive.write(header[:-512] * case.rng.choice([2, 3000]) + header + bytes(10240))
    return case.put("x.tar", archive.getvalue())


def tar_names(case: Case) -> str:
    names = [
        "/etc/passwd",
        "../../x",
        "..",
        "a/../b",
        "//x",
        "./y",
        "C:\\z",
        "é",
        "a b",
        "%41",
        "%",
        "~",
        "x" * 300,
        "d/" * 90 + "e",
        "\udcff",
        "n\nl",
        "UPPER",
        "-rf",
        "*",
        "$(id)",
        "key~2",
        "key",
    ]
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
        for number, kind in enumerate(
            [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
        ):
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
        names = [
            "uid",
            "sha256",
            "width",
            "height",
            "captions",
            "caption",
            "text",
            "error",
            "source",
            "caption_scores",
            "url",
            "text_emb",
            "é",
        ]
        files += [
            (f"k{number}.jpg", case.picture()),
            (f"k{number}.txt", case.text()),
            (f"k{number}.json", case.json(names)),
            (f"k{number}.syn.json", case.json([X, "syn_text", "alt_captions", "error", "captions", "syn_text_x_emb"])),
            (f"k{number}.npz", case.rng.randbytes(50)),
            (f"k{number}.url.txt", case.text()),
        ]
        case.keys.append(f"k{number}")
    return case.put("x.tar", case.tar(files))


def jsonl(case: Case) -> str:
    names = [
        "key",
        "uid",
        "id",
        "image",
        "path",
        "captions",
        "text",
        "error",
        X,
        "syn_text_x_emb",
        "members",
        "json",
        "caption_scores",
        "width",
    ]
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
    names = case.rng.sample(
        ["key", "image", "path", "text", "captions", X, "error", "members", "json", "width"], 5
    ) + ["caption"]
    writer.writerow(names)
    for _ in range(8):
        writer.writerow([case.text().decode("utf-8", "replace") for _ in names])
    data = file.getvalue().encode("utf-8", "surrogatepass")
    data = case.rng.choice([data, case.damaged(data), data.replace(b"dog", b"d\xffg"), data.replace(b'"', b"")])
    return case.put("x.tsv" if tabs else "x.csv", data)


def parquet(case: Case) -> str:
    texts = pa.array([b"a", b"\xff", None, b"\0", b"c"]).view(pa.string())
    columns = {"image": pa.array([case.picture() for _ in range(5)]), "text": texts}
    odd = {
        "image": pa.array([1, 2, None, 4, 5]),
        "path": pa.array([["a"]] * 5),
        "captions": pa.array([[1.5]] * 5),
        X: pa.array([[["a"]]] * 5),
        "key": pa.array([b"\xff"] * 5),
        "uid": pa.array([float("nan")] * 5),
        "error": pa.array([True] * 5),
        "width": pa.array([2**63] * 5, pa.uint64()),
        "json": pa.array(["[" * 5000] * 5),
        "members": pa.array([[{"name": "a", "data": 10**12}]] * 5),
        "when": pa.array([2**62] * 5, pa.timestamp("us")),
        "caption_scores": pa.array([[{"a": 1}]] * 5),
        "map": pa.array([[("a", 1)]] * 5, pa.map_(pa.string(), pa.int64())),
    }
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
    names = case.rng.choice(
        [
            {"00000.tar": case.value()},
            {"": 1},
            {"gone.tar": 1},
            {"info.json": 1},
            {"\0": 1},
            {"/": 1},
            {"..": 1},
            case.value(),
        ]
    )
    case.whole, data = {}, spelt({"lengths": names, "totalLength": case.value()})
    return case.put("info.json", case.json(["lengths"]) if case.rng.random() < 0.5 else data)


def tar_that_promises(case: Case) -> str:
    """Extended headers that claim terabytes or holes, or that repeat without end."""
    files = case.samples(2)
    case.whole = {}
    size = str(case.rng.choice([2**40, 2**63, 10**30, -1]))
    headers = case.rng.choice(
        [
            {"size": size},
            {
                "GNU.sparse.major": "1",
                "GNU.sparse.minor": "0",
                "GNU.sparse.realsize": size,
                "GNU.sparse.name": "good0.jpg",
            },
            {"GNU.sparse.map": f"0,1,{size},1", "GNU.sparse.size": size},
            {"path": "x" * 200_000},
            {f"x{number}": "y" for number in range(2000)},
            {"hdrcharset": "BINARY", "path": "\udcff"},
            {"mtime": "nan", "uid": size},
        ]
    )
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files * case.rng.choice([1, 1, 300]):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.pax_headers = headers if case.rng.random() < 0.2 else {}
            archive.addfile(member, io.BytesIO(content))
    return case.put("x.tar", data.getvalue())


def line_without_end(case: Case) -> str:
    """A few compressed bytes that unpack to gigabytes, on one line or on blank lines."""
    piece = case.rng.choice([b"a", b" ", b"[", b'"', b"\0", b"\n", b"{},\n"]) * (1 << 20)
    start = case.rng.choice([b"", b'{"image": "', b'{"key": "a"}\n{"key": "', b'[{"key": "a"}, "', b"key,text\na,"])
    times = case.rng.choice([40, 3000])
    if piece.startswith(b"{},") and start.startswith(b"key,"):
        start = b""  # otherwise these are millions of rows, which are all read
    name = case.rng.choice(["x.jsonl", "x.csv", "x.json", "x.tsv"])
    if case.rng.random() < 0.5:
        return case.put(f"{name}.gz", gzip.compress(start) + gzip.compress(piece, 9) * times)
    frames = [pa.compress(data, "zstd", asbytes=True) for data in (start or b" ", piece)]
    return case.put(f"{name}.zst", frames[0] + frames[1] * times)


def json_deep(case: Case) -> str:
    """JSON nested a hundred thousand times, or with numbers and names of enormous length."""
    deep = case.rng.choice([900, 100_000])
    value = case.rng.choice(
        [
            "[" * deep + "]" * deep,
            '{"a":' * deep + "1" + "}" * deep,
            "[" * deep,
            "3" * 10 * deep,
            '"' + "x" * deep * 20,
            "1e" + "9" * 5000,
            '{"a":1,' * 3 + '"a":' + "[" * deep,
        ]
    )
    text = (
        case.rng.choice(
            [
                "{}",
                '{{"key": "a", "captions": {}}}',
                '{{"a": {}, "text": "a dog"}}',
                '[{{"key": "a", "text": {}}}]',
                '{{"images": {}, "annotations": []}}',
            ]
        )
        .format(value)
        .encode()
    )
    name = case.rng.choice(["x.json", "x.jsonl", "in/metadata.jsonl", "x.tar"])
    if name == "x.tar":
        return case.put(
            name,
            case.tar([("a.jpg", case.picture()), ("a.json", text), ("b.jpg", case.picture()), ("b.syn.json", text)]),
        )
    path = case.put(name, text)
    return str(Path(case.put("in/a.jpg", case.picture())).parent) if name.startswith("in/") else path


def parquet_that_lies(case: Case) -> str:
    """A changed footer, or one value that is repeated in many rows and packed into a few bytes."""
    path = case.folder / "x.parquet"
    if case.rng.random() < 0.3:
        value = case.rng.choice([bytes, lambda size: b"\xff\xd8\xff" + bytes(size)])(
            case.rng.choice([10**6, 2 * 10**7])
        )
        rows = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), pa.array([value]))
        texts = pa.DictionaryArray.from_arrays(
            pa.array([0] * 100, pa.int32()), pa.array(["a" * case.rng.choice([9, 10**7])])
        )
        pq.write_table(
            pa.table({"image": rows, "text": texts}), path, compression=case.rng.choice(["zstd", "gzip", "snappy"])
        )
        return str(path)
    columns = {"image": [case.picture() for _ in range(9)], "text": ["a dog"] * 9}
    pq.write_table(pa.table(columns), path, row_group_size=3, compression=case.rng.choice(["zstd", "none"]))
    data = path.read_bytes()
    length = int.from_bytes(data[-8:-4], "little")
    footer, body = data[-8 - length : -8], data[: -8 - length]
    changed = bytearray(footer)
    for _ in range(case.rng.choice([1, 2, 5])):
        changed[case.rng.randrange(length)] = case.rng.choice([0, 0x7F, 0xFF, case.rng.randrange(256)])
    size = case.rng.choice([length] * 6 + [0, 2**31 - 1, length + 8])
    path.write_bytes(body + bytes(changed) + size.to_bytes(4, "little") + b"PAR1")
    return str(path)


def jpeg_scans(case: Case) -> str:
    """Pictures of hundreds of scans, whose last scan is repeated."""
    files, case.keys = [], []
    for number in range(3):
        side = case.rng.choice([9, 500, 3000])
        file = io.BytesIO()
        Image.new("RGB", (side, side), "red").save(file, "JPEG", progressive=True)
        data = file.getvalue()
        scan = data[data.rindex(b"\xff\xda") : -2]
        files.append((f"k{number}.jpg", data[:-2] + scan * case.rng.choice([1, 50, 700]) + data[-2:]))
        case.keys.append(f"k{number}")
    return case.put("x.tar", case.tar(files))


KINDS = [
    tar_cut,
    tar_damaged,
    tar_header_lies,
    tar_of_long_headers,
    tar_names,
    tar_of_keys,
    tar_pictures,
    tar_texts,
    jsonl,
    table_of_text,
    parquet,
    folder,
    listing,
    tar_pictures,
    tar_header_lies,
    tar_texts,
    tar_that_promises,
    line_without_end,
    json_deep,
    parquet_that_lies,
    parquet_that_lies,
    jpeg_scans,
]


def odd_picture(case: Case) -> tuple[str, bytes]:
    """A file that is not a picture, a picture with a false size, or one of an unusual kind."""
    side = case.rng.choice([0, 31623, 65535, 2**31 - 1])
    exif, icc = case.rng.randbytes(40), case.rng.randbytes(40)
    frames = [Image.new("RGB", (9, 7), colour) for colour in ("red", "blue")]
    animated = io.BytesIO()
    frames[0].save(animated, case.rng.choice(["GIF", "WEBP", "PNG", "TIFF"]), save_all=True, append_images=frames[1:])
    size = struct.pack(">II", side, side)
    png, jpeg, gif, bmp = case.picture("PNG"), case.picture(), case.picture("GIF"), case.picture("BMP")
    frame, small = jpeg.index(b"\xff\xc0") + 5, struct.pack(">HH", side & 65535, side & 65535)
    huge = {
        "png": png[:16] + size + png[24:29] + struct.pack(">I", zlib.crc32(b"IHDR" + size + png[24:29])) + png[33:],
        "jpeg": jpeg[:frame] + small + jpeg[frame + 4 :],
        "gif": gif[:6] + small + gif[10:],
        "bmp": bmp[:18] + struct.pack("<ii", side, side) + bmp[26:],
        "ppm": b"P6 %d %d 255\n" % (side, side) + bytes(100),
        "webp": b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + struct.pack("<I", side & 0xFFFFFF)[:3] * 2,
        "tiff": b"II*\0\x08\0\0\0\x02\0"
        + b"".join(struct.pack("<HHII", tag, 4, 1, side) for tag in (256, 257))
        + bytes(4),
        "jp2": b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 \0\0\0\0jp2 \0\0\0\x2djp2h\0\0\0\x16ihdr"
        + size
        + b"\0\3\7\7\0\0",
    }
    of_size = case.rng.choice(list(huge))
    cut = case.picture(case.rng.choice(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF", "JPEG2000"]))
    return case.rng.choice(
        [
            ("empty", b""),
            ("text", b"<html>"),
            ("random", case.rng.randbytes(200)),
            (f"size-{of_size}-{side}", huge[of_size]),
            ("exif", case.picture(exif=b"Exif\0\0" + exif)),
            ("icc", case.picture(icc_profile=icc)),
            ("icc-png", case.picture("PNG", icc_profile=icc)),
            ("cmyk", case.picture(mode="CMYK")),
            ("bits", case.picture("PNG", "I;16") if case.rng.random() < 0.5 else case.picture("TIFF", "F")),
            ("palette", case.picture("PNG", "P", transparency=case.rng.randbytes(3))),
            ("one-bit", case.picture("PNG", "1")),
            ("animated", animated.getvalue()),
            ("heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + case.rng.randbytes(50)),
            ("cut", cut[: case.rng.randrange(len(cut))]),
            ("damaged", case.damaged(cut)),
            ("huge-strip", case.picture(size=(1, 60000))),
            ("eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
            ("svg", b"<svg/>"),
            ("zip", b"PK\3\4" + bytes(100)),
        ]
    )
