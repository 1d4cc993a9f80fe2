import gzip
import io
import json
import pickle
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from imagetext.sample import Record
from imagetext.sets.room import ColumnClash, room_for, text_embeddings
from imagetext.shards import ShardWriter
from imagetext.sources import read_records, read_samples

X, Y = "syn_text_x", "syn_text_y"


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was opened')",)


PICKLE = gzip.compress(pickle.dumps(Bomb()))


def npz(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def pickled_npz(name: str) -> bytes:
    """An archive with an array that would run code if it were opened."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{name}.npy", pickle.dumps(Bomb()))
    return file.getvalue()


def sample(members=(), columns=None, **more) -> Record:
    return Record("k", b"picture", ("a dog",), columns=columns or {X: ("one", "two")}, members=dict(members), **more)


VECTORS = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize(
    "members,meta,expected",
    [
        ({}, {}, []),
        ({"paug.json": b"{}", "url.txt": b"u", "emb": b"x"}, {"member_id": 3}, []),
        ({}, {"has_embedding": True, "num_embeddings": 2, "text_emb": None}, []),
        ({}, {"clip_embedding": [0.5, 1.0], "img_emb": [1.0], "dino_emb_b14": "H4sI"}, []),
        ({"npz": npz(image_emb=VECTORS)}, {}, []),
        ({"npz": npz(image_emb=VECTORS, text_emb=VECTORS)}, {}, ["npz: text_emb"]),
        (
            {"npz": npz(image_emb=VECTORS, text_emb=VECTORS, syn_text_x_emb=VECTORS)},
            {},
            ["npz: text_emb", "npz: syn_text_x_emb"],
        ),
        ({"npz": pickled_npz("syn_text_emb_coca")}, {}, ["npz: syn_text_emb_coca"]),
        ({"npz": pickled_npz("image_emb")}, {}, []),
        ({"pth.gz": PICKLE}, {}, ["pth.gz, which is never opened"]),
        ({"a.npz": b"no archive"}, {}, ["a.npz, which does not open: "]),
        (
            {},
            {"text_emb": "H4sI", "syn_text_x_embedding": [1.0], "image_emb": "H4sI"},
            ["text_emb", "syn_text_x_embedding"],
        ),
    ],
)
def test_text_embeddings_are_known_by_name(members, meta, expected):
    record = sample(members, meta=meta)
    names = text_embeddings(record)
    assert len(names) == len(expected) and all(map(str.startswith, names, expected))
    if not expected:
        assert room_for(record, [Y]) == record
        return
    with pytest.raises(ColumnClash, match="k: has text embeddings .*, but none for .*--drop-text-embeddings"):
        room_for(record, [Y])
    room = room_for(record, [Y], drop_text_embeddings=True)
    assert text_embeddings(room) == [] and room.columns == record.columns
    assert room.members.get("paug.json") == members.get("paug.json")
    assert room.meta == {name: value for name, value in meta.items() if name == "image_emb"}


def test_what_is_dropped_and_what_stays():
    pictures = npz(image_emb=VECTORS)
    record = sample(
        {
            "npz": npz(image_emb=VECTORS, text_emb=VECTORS),
            "pth.gz": PICKLE,
            "b.npz": npz(text_emb=VECTORS),
            "url.txt": b"u",
            "c.npz": pictures,
        },
        meta={"text_emb": "x", "license": "CC0"},
    )
    less = room_for(record, [Y], drop_text_embeddings=True)
    assert list(less.members) == ["url.txt", "npz", "c.npz"] and less.meta == {"license": "CC0"}
    arrays = np.load(io.BytesIO(less.members["npz"]))
    assert arrays.files == ["image_emb"] and (arrays["image_emb"] == VECTORS).all()
    assert less == room_for(record, [Y], drop_text_embeddings=True) and room_for(less, [Y]) == less
    damaged = npz(image_emb=VECTORS, text_emb=VECTORS)
    damaged = damaged[:40] + b"\xff\xff\xff" + damaged[43:]
    assert "npz" not in room_for(sample({"npz": damaged}), [Y], drop_text_embeddings=True).members


def test_a_column_that_is_there():
    record = sample(
        columns={X: ("one",), "alt_captions": ("an",)}, scores={X: {"logprob": [-1.0]}, Y: {"logprob": [-2.0]}}
    )
    with pytest.raises(ColumnClash, match="k: has the column syn_text_x already"):
        room_for(record, [X])
    room = room_for(record, [X], overwrite=True)
    assert room.columns == {"alt_captions": ("an",)} and room.scores == {Y: {"logprob": [-2.0]}}
    assert room_for(room, [X]) == room


def test_a_failed_sample_gets_nothing_and_stays():
    broken = sample({"pth.gz": PICKLE}, error="broken")
    assert room_for(broken, [X]) is broken


# ---- the published reinforced sets, in both layouts ----------------------------------------------------------------

LEGACY = {
    "url.txt": b"http://e.org/a.jpg",
    "syn.json": b'{"syn_text": ["s1", "s2"]}',
    "paug.json": b'{"param_aug": "[[14, 347]]"}',
    "npz": npz(image_emb=VECTORS, text_emb=VECTORS),
    "json": b'{"uid": "u1", "sha256": "abc"}',
}


@pytest.mark.parametrize("layout", ["legacy", "npz", "pth.gz"])
def test_a_second_captioner_beside_the_first(tmp_path, write_tar, picture, layout):
    files = LEGACY
    if layout != "legacy":
        files = {
            "url.txt": files["url.txt"],
            "jpg": picture(),
            "txt": b"a dog",
            "paug.json": b'{"param_aug": [[[14, 347]]]}',
            "syn.json": b'{"syn_text_coca": ["s1", ""], "alt_captions": ["an"]}',
            **({"npz": npz(image_emb=VECTORS)} if layout == "npz" else {"pth.gz": PICKLE}),
            "json": LEGACY["json"],
        }
    files = {**files, "odd.bin": b"\0\xff"}
    path = write_tar(tmp_path / "00000.tar", [(f"k.{suffix}", data) for suffix, data in files.items()])
    (sample,) = read_samples(path)[0]
    assert sample.meta["uid"] == "u1" and sample.image == files.get("jpg")
    assert sample.captions == (() if layout == "legacy" else ("a dog",))
    room = sample
    if layout != "pth.gz":  # which is kept if it is not refused
        room = room_for(sample, [Y], drop_text_embeddings=layout == "legacy")
    added = replace(room, columns={**room.columns, Y: ("new",)})
    with ShardWriter(tmp_path / "out", "00000") as writer:
        writer.write(added)
    (back,) = read_samples(writer.path)[0]
    assert {name: list(texts) for name, texts in back.columns.items()} == json.loads(files["syn.json"]) | {Y: ["new"]}
    carried = {"url.txt", "paug.json", "odd.bin", *({"npz", "pth.gz"} & files.keys() if layout != "legacy" else ())}
    assert {name: back.members[name] for name in carried} == {name: files[name] for name in carried}
    assert back.image == sample.image and back.meta["uid"] == "u1"
    (record,) = read_records(writer.path)
    with ShardWriter(tmp_path / "again", "00000") as writer:
        writer.write(record)
    (again,) = read_samples(writer.path)[0]
    assert again.members == back.members and again.meta["sha256"] == back.meta["sha256"]
    assert again.columns == back.columns
    if layout == "legacy":
        assert back.meta["sha256"] == "abc" and back.captions == ()


def test_jsonl_of_the_reference_tool(tmp_path, picture):
    """Its columns of embeddings are pickles in base64, and not captions."""
    import base64

    row = {
        "uid": "u",
        "image": base64.b64encode(picture()).decode(),
        "text": "a dog",
        "syn_text_coca": ["s1"],
        "text_emb": base64.b64encode(PICKLE).decode(),
        "syn_text_coca_emb": base64.b64encode(PICKLE).decode(),
    }
    (tmp_path / "00000.jsonl").write_text(json.dumps(row))
    (record,) = read_samples(str(tmp_path / "00000.jsonl"))[0]
    assert record.columns == {"syn_text_coca": ("s1",)}
    assert text_embeddings(record) == ["text_emb", "syn_text_coca_emb"]
    assert record.meta["text_emb"] == row["text_emb"]
