"""Malformed views and embeddings of every kind, drawn by number: `CAPSMITH_FUZZ=1000` draws 1,000 inputs.

Reading any input returns tables of finite numbers that fit the record, or raises an error. It runs no code and takes
little memory.
"""

import gzip
import io
import json
import os
import random
import resource
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from generate.reinforce.config import ReinforceConfig
from generate.reinforce.run import run
from imagetext.reinforced.embeddings import named_texts, pack, to_newer_layout, unpack
from imagetext.reinforced.views import read_views, replay, write_views
from imagetext.sample import Record
from imagetext.shards import ShardWriter
from imagetext.sources import read_records

CASES = int(os.environ.get("CAPSMITH_FUZZ", 48))
SECONDS = 60  # seconds; no case takes one
LARGEST = 2**20  # bytes, here
MEMORY = 2 * 10**9  # bytes of address space that a case may add
COLUMNS = {"syn_text_a": ("a dog", "a cat"), "syn_text_b": ("a bird",)}
TEXTS = named_texts("a photo", ["a photo"], COLUMNS)
COUNTS = {"image_emb": 2, **{name: len(texts) for name, texts in TEXTS.items()}}
VIEWS = [[[0, 0, 6, 7], [[1, 0.1], [10, 6.0]]], [[1, 2, 3, 4], None]]


class Case:
    """The random numbers of a case, and the folder that it must not create."""

    def __init__(self, number: int, folder: Path):
        self.rng, self.attacked = random.Random(number), folder / "attacked"

    def damaged(self, data: bytes) -> bytes:
        """Return the bytes with some of them changed, removed or zeroed."""
        for _ in range(self.rng.choice([1, 1, 2, 8])):
            start, length = self.rng.randrange(len(data)), self.rng.choice([1, 4, 512])
            data = data[:start] + self.rng.choice([self.rng.randbytes(1), b"", bytes(length)]) + data[start + length :]
        return data


class Attack:
    """An object whose pickle creates a folder when it is loaded."""

    def __init__(self, case: Case):
        self.path = str(case.attacked)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (9, 7), "red").save(file, "JPEG")
    return file.getvalue()


def embeddings(case: Case) -> dict[str, torch.Tensor]:
    """Good embeddings in either layout."""
    rows = {
        name: torch.from_numpy(np.frombuffer(case.rng.randbytes(count * 5), np.uint8).reshape(count, 5) / 256).float()
        for name, count in COUNTS.items()
    }
    if case.rng.random() < 0.5:
        rows = {"image_emb": rows.pop("image_emb"), "text_emb": torch.cat([*rows.values()])}
    return rows


def npz(arrays: dict) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def pth(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return gzip.compress(file.getvalue(), 1)


def zipped(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


# ---- the kinds of malformed members: each returns those that replace the good ones ---------------------------------


def damaged(case: Case) -> dict[str, bytes]:
    kind = case.rng.choice(["npz", "pth.gz"])
    data = pack(embeddings(case), kind)
    if kind == "pth.gz" and case.rng.random() < 0.5:
        return {kind: gzip.compress(case.damaged(gzip.decompress(data)), 1)}
    return {kind: case.damaged(data)}


def cut(case: Case) -> dict[str, bytes]:
    kind = case.rng.choice(["npz", "pth.gz", "paug.json"])
    data = write_views(VIEWS) if kind == "paug.json" else pack(embeddings(case), kind)
    return {kind: data[: case.rng.randrange(len(data))]}


def header_promises(case: Case) -> dict[str, bytes]:
    """An array's header claims more numbers than there are, or an invalid type."""
    shape = case.rng.choice(
        [(10**6, 10**6), (10**5, 10**5), (2, 10**12), (-1, 5), (0, 10**12), (3, 5), (2**62, 2**62)]
    )
    kind = case.rng.choice(["<f4", "<f4", "<f4", "<f2", ">f8", "|O", "<U9", "|V8", "<i8", "<c8", "|S0", "<M8[us]"])
    return promising(shape, kind, case.rng.choice([0, 40, 4000]), by_columns=case.rng.random() < 0.5)


def promising(shape: tuple[int, int], kind: str, bytes_there: int, by_columns: bool = False) -> dict[str, bytes]:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": kind, "fortran_order": by_columns, "shape": shape})
    return {"npz": zipped({"image_emb.npy": header.getvalue() + bytes(bytes_there)})}


def bombs() -> dict[str, dict[str, bytes]]:
    """Files of few bytes that become many, by the way in which they do."""
    tensor = torch.zeros(5 * LARGEST // 4, 1)
    file = io.BytesIO()
    torch.save({"image_emb": tensor}, file)
    with zipfile.ZipFile(file) as archive:
        deflated = zipped({name: archive.read(name) for name in archive.namelist()})
    array, half = io.BytesIO(), io.BytesIO()
    np.save(array, tensor[: LARGEST // 8].numpy())
    np.save(half, tensor[: LARGEST // 3].half().numpy())
    lying = bytearray(zipped({"image_emb.npy": array.getvalue()}))
    start = lying.index(b"PK\1\2") + 24
    lying[start : start + 4] = (200).to_bytes(4, "little")
    strided = torch.zeros(1, dtype=torch.bfloat16)
    return {
        "arrays": {"npz": zipped({f"{number}_emb.npy": array.getvalue() for number in range(9)})},
        "arrays that grow in float32": {"npz": zipped({"image_emb.npy": half.getvalue()})},
        "a directory that says that the file is small": {"npz": bytes(lying)},
        "a header that promises": promising((10**6, 10**6), "<f4", 40),
        "gzip": {"pth.gz": gzip.compress(bytes(10 * LARGEST), 1)},
        "a torch file": {"pth.gz": gzip.compress(file.getvalue(), 1)},
        "a deflated torch file": {"pth.gz": gzip.compress(deflated, 1)},
        "strides": {"pth.gz": pth({"image_emb": strided.expand(10**6, 10**6)})},
        "less than memory holds by strides": {"pth.gz": pth({"image_emb": strided.expand(1000, 1000)})},
    }


def bomb(case: Case) -> dict[str, bytes]:
    return case.rng.choice(list(bombs().values()))


def attack(case: Case) -> dict[str, bytes]:
    array = np.array([Attack(case)] * 2, dtype=object)
    return case.rng.choice(
        [
            {"npz": npz({"image_emb": array})},
            {"pth.gz": pth({"image_emb": Attack(case)})},
            {"pth.gz": pth(Attack(case))},
            {"npz": pth(Attack(case))},
            {"paug.json": pth(Attack(case))},
        ]
    )


def other_numbers(case: Case) -> dict[str, bytes]:
    """NaN, infinities, other shapes, values that are not numbers, other lengths."""
    rows = embeddings(case)
    name = case.rng.choice(list(rows))
    length = len(rows[name])
    values = [
        torch.full((length, 5), float("nan")),
        torch.full((length, 5), -torch.inf),
        torch.ones(length, 5, dtype=torch.int64),
        torch.ones(length, 4),
        torch.ones(length),
        torch.ones(length, 5, 1),
        torch.ones(length, 0),
        torch.tensor(1.0),
        torch.ones(length + 1, 5),
        torch.full((length, 5), 1e300, dtype=torch.float64),
        torch.ones(length, 5).T.contiguous().T,
        torch.ones(length, 5, dtype=torch.complex64),
    ]
    rows[case.rng.choice([name, name, "other_emb", ""])] = case.rng.choice(values)
    if case.rng.random() < 0.5:
        return {"npz": npz({name: rows.numpy() for name, rows in rows.items()})}
    return {"pth.gz": pth({name: rows.clone() for name, rows in rows.items()})}


def other_types(case: Case) -> dict[str, bytes]:
    """Objects that are not a dictionary of tensors."""
    rows = torch.ones(2, 5)
    values = [
        [rows],
        rows,
        {},
        {"image_emb": [1.0]},
        {"image_emb": None},
        {1: rows},
        {"image_emb": {"a": rows}},
        "text",
        5,
        {"image_emb": rows.to_sparse()},
        {"image_emb": torch.nn.Parameter(rows)},
        {"image_emb": rows.to("meta")},
        {"image_emb": rows > 0},
    ]
    return {"pth.gz": pth(case.rng.choice(values))}


def other_views(case: Case) -> dict[str, bytes]:
    numbers = [0, 1, -1, 5, 10**6, 10**30, 10**400, 0.5, 1e308, float("nan"), float("inf"), True, None, "1", [], {}]

    def number():
        return case.rng.choice(numbers)

    views = [
        [
            [*(number() for _ in range(case.rng.choice([4, 4, 3])))],
            [[number(), number()], [case.rng.randrange(14), number()]],
        ],
        [[0, 0, 5, 5], [[case.rng.randrange(-1, 15), number()]]],
        [[number(), 0, 5, 5], None],
        number(),
    ]
    chosen = case.rng.choices(views, k=2)
    spelled = case.rng.choice([chosen, json.dumps(chosen), json.dumps(chosen)[:-1], "[" * 5000, "1", 1, None])
    document = json.dumps({"param_aug": spelled}).encode()
    return {
        "paug.json": case.rng.choice(
            [document] * 8 + [b"", b"[1]", b"null", b"\xff" + document, document + b"x", b"3" * 5000]
        )
    }


KINDS: list[Callable[[Case], dict[str, bytes]]] = [
    damaged,
    cut,
    header_promises,
    bomb,
    attack,
    other_numbers,
    other_types,
    other_views,
]


def members(case: Case, number: int) -> dict[str, bytes]:
    """Return a record's members, one or two of which are malformed."""
    kind = case.rng.choice(["npz", "pth.gz"])
    malformed = KINDS[number % len(KINDS)](case)
    good = (
        {"paug.json": write_views(VIEWS)}
        if malformed.keys() & {"npz", "pth.gz"}
        else {kind: pack(embeddings(case), kind)}
    )
    return {**good, **malformed}


# ---- what must hold ------------------------------------------------------------------------------------------------


@pytest.fixture
def limits(monkeypatch):
    """Limits of time, of embeddings and of memory."""

    def late(*_):
        raise TimeoutError("the case hangs")

    monkeypatch.setattr("imagetext.limits.EMBEDDINGS", LARGEST)
    handler = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, handler)


@pytest.mark.parametrize("number", range(CASES))
def test_malformed_views_and_embeddings(number, tmp_path, limits):
    files = members(Case(number, tmp_path), number)
    for reader in (
        lambda: to_newer_layout(unpack(files), 2, TEXTS),
        lambda: read_views(files.get("paug.json", b"{}")),
    ):
        try:
            value = reader()
        except ValueError as error:
            assert str(error)
            continue
        if isinstance(value, dict):
            assert {name: len(rows) for name, rows in value.items()} == COUNTS
            assert len({rows.shape[1] for rows in value.values()}) == 1 and all(
                rows.isfinite().all() for rows in value.values()
            )
        else:
            assert all(replay(view, Image.new("RGB", (9, 7)), 8).shape == (3, 8, 8) for view in value)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("kind", bombs())
def test_few_bytes_that_become_many_are_refused_before_they_do(kind, limits):
    reason = {
        "a directory that says that the file is small": "Bad CRC-32",
        "a header that promises": "cannot reshape array of size 10",
    }
    with pytest.raises(ValueError, match=reason.get(kind, f"bytes once unpacked, more than {LARGEST:,}")):
        unpack(bombs()[kind])


@pytest.mark.parametrize(
    "view",
    [
        [[0, 0, 10**6, 10**6], None],
        [[10**9, 0, 1, 1], None],
        [[0, 0, 5, 5], [[6, 10**400]]],
        [[0, 0, 5, 5], [[6, float("nan")]]],
        [[0, 0, 5, 5], [[10, 9]]],
        [[0, 0, 5, 5], [[10, -1]]],
        [[0, 0, 5, 5], [[14, 0]]],
        [[0, 0, 0, 5], None],
        [[0, -1, 5, 5], None],
    ],
)
def test_views_that_no_picture_can_have_are_refused(view):
    with pytest.raises(ValueError, match="paug.json: view 1 is not a crop"):
        read_views(write_views([VIEWS[0], view]))


@pytest.mark.parametrize("format", ["webdataset", "jsonl", "parquet"])
def test_malformed_records_are_rows_when_converted_and_replaced_when_reinforced(format, tmp_path, limits, monkeypatch):
    count = max(48, CASES // 10)
    with ShardWriter(tmp_path / "in", "x", format=format) as writer:
        for number in range(count):
            case = Case(number, tmp_path)
            writer.write(Record(str(number), jpeg(), ("a photo",), columns=COLUMNS, members=members(case, number)))
    settings = {"input": [writer.path], "device": "cpu", "num_workers": 0, "format": format, "max_error_rate": 1}
    assert run(ReinforceConfig(**settings, convert=True, output=tmp_path / "converted")) == 0
    records = list(read_records(str(next((tmp_path / "converted").glob(f"*{Path(writer.path).suffix}")))))
    assert sorted(int(record.key) for record in records) == list(range(count))
    assert 0 < sum(not record.error for record in records) < count / 2
    for record in records:
        if record.error:
            assert not record.members.keys() & {"npz", "pth.gz", "paug.json"}
        else:
            views = read_views(record.members["paug.json"])
            assert len(to_newer_layout(unpack(record.members), len(views), TEXTS)) == len(COUNTS)
    assert run(ReinforceConfig(**settings, embeddings="none", views=2, output=tmp_path / "anew")) == 0
    anew = list(read_records(str(next((tmp_path / "anew").glob(f"*{Path(writer.path).suffix}")))))
    assert len(anew) == count
    assert all(not record.error and record.members.keys() == {"paug.json"} for record in anew)
    assert not (tmp_path / "attacked").exists()
