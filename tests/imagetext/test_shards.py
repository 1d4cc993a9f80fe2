import errno
import hashlib
import json
import os
import tarfile
import time
from dataclasses import replace
from datetime import date

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagetext.outputs import UNFINISHED
from imagetext.sample import Record, image_size
from imagetext.shards import SUFFIXES, ShardWriter, check_column, read_marker, read_markers, read_shards
from imagetext.sources import read_records, read_samples
from imagetext.writers.tar import tar_header

X = "syn_text_x"


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def good(key, image, captions=("a dog", "a cat"), syn_text=("one", "two"), members=(), scores=(), **meta):
    return Record(key, image, captions, columns={X: syn_text}, scores=dict(scores), members=dict(members), meta=meta)


def failed(key, error="broken", image=None, **meta):
    return Record(key, image, meta=meta, error=error)


def write(folder, records, name="00000", **options) -> str:
    with ShardWriter(folder, name, **options) as writer:
        for record in records:
            writer.write(record)
    return writer.path


def tar_files(path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}


def test_webdataset_to_the_letter(tmp_path, picture):
    scores = {X: {"logprob": [-1.5, -2.0], "truncated": [False, True]}}
    png = picture(1, "PNG", size=(5, 7))
    path = write(
        tmp_path,
        [
            failed("broken", "no picture", b"text", source="in/broken.jpg"),
            good(
                "a.b/é",
                png,
                members={"npz": b"\0n", "paug.json": b"{ }"},
                source="in/a.png",
                scores=scores,
                license="CC0",
            ),
            good("c", picture(2), captions=()),
        ],
    )
    files = tar_files(path)
    assert list(files) == [
        "a%2Eb/%C3%A9.jpg",
        "a%2Eb/%C3%A9.txt",
        "a%2Eb/%C3%A9.syn.json",
        "a%2Eb/%C3%A9.json",
        "a%2Eb/%C3%A9.npz",
        "a%2Eb/%C3%A9.paug.json",
        "c.jpg",
        "c.syn.json",
        "c.json",
        "broken.syn.json",
        "broken.json",
    ]
    first = [files[f"a%2Eb/%C3%A9.{suffix}"] for suffix in ("jpg", "txt", "syn.json", "npz", "paug.json")]
    assert first == [png, b"a dog", b'{"syn_text_x": ["one", "two"]}', b"\0n", b"{ }"]
    assert json.loads(files["a%2Eb/%C3%A9.json"]) == {
        "uid": "a.b/é",
        "sha256": hashlib.sha256(png).hexdigest(),
        "width": 5,
        "height": 7,
        "captions": ["a dog", "a cat"],
        "error": "",
        "source": "in/a.png",
        "caption_scores": scores,
        "license": "CC0",
    }
    assert json.loads(files["broken.syn.json"]) == {}
    assert json.loads(files["broken.json"]) == {
        "uid": "broken",
        "sha256": hashlib.sha256(b"text").hexdigest(),
        "width": 0,
        "height": 0,
        "captions": [],
        "error": "no picture",
        "source": "in/broken.jpg",
        "caption_scores": {},
    }
    types = [
        {name: type(value) for name, value in json.loads(data).items()}
        for name, data in files.items()
        if name.endswith(".json") and "syn" not in name and "paug" not in name
    ]
    always = ("uid", "sha256", "width", "height", "captions", "error", "source", "caption_scores")
    assert len({tuple((name, types_of_row[name]) for name in always) for types_of_row in types}) == 1


def test_headers_hold_nothing_of_the_machine(tmp_path, picture):
    path = write(tmp_path, [good("a", picture())])
    with tarfile.open(path) as archive:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in archive} == {(0, 0, 0, "", "", 0o644)}


def test_bytes_depend_on_the_records_alone(tmp_path, picture):
    records = [good(f"k{i}", picture(i), license=["CC0", None, 3][i % 3]) for i in range(5)] + [failed("f")]
    paths = {
        format: [write(tmp_path / folder, records, format=format) for folder in ("a", "b")] for format in SUFFIXES
    }
    time.sleep(1.1)  # a time in seconds would show
    for format in SUFFIXES:
        paths[format].append(write(tmp_path / "c", records, format=format))
        assert len({open(path, "rb").read() for path in paths[format]}) == 1


def test_text_from_synthetic(tmp_path, picture):
    path = write(
        tmp_path,
        [good("a", picture(), syn_text=("", "one")), good("b", picture(), captions=())],
        text_from_synthetic=True,
    )
    files = tar_files(path)
    assert files["a.txt"] == b"one" and files["b.txt"] == b"one"
    assert [record.captions for record in read_records(path)] == [("a dog", "a cat"), ()]


def test_columns_of_an_earlier_run_stay(tmp_path, picture):
    first = write(tmp_path / "1", [good("a", picture()), good("b", picture(1))])
    samples = list(read_samples(first)[0])
    again = [
        replace(samples[0], columns={**samples[0].columns, "syn_text_y": ("three",)}),
        replace(samples[1], error="rejected"),
    ]
    path = write(tmp_path / "2", again)
    assert json.loads(tar_files(path)["a.syn.json"]) == {X: ["one", "two"], "syn_text_y": ["three"]}
    lost = list(read_records(path))[1]
    assert lost.error == "rejected" and lost.columns == {X: ("one", "two")}  # other readers ignore it
    assert json.loads(tar_files(path)["b.syn.json"]) == {} and json.loads(tar_files(path)["b.json"])[X] == [
        "one",
        "two",
    ]


@pytest.mark.parametrize(
    "change,reason",
    [
        (dict(columns={}), "k: neither captions nor an error"),
        (dict(columns={X: ()}), "k: neither captions nor an error"),
        (dict(columns={X: ("", " ")}), "k: neither captions nor an error"),
        (dict(columns={"text": ("a",)}), "k: neither captions nor"),
        (dict(columns={"syn_text_emb": ("a",)}), "k: neither captions nor"),
        (dict(image=b"text"), "k: a record without an error must have a picture"),
        (dict(key=""), "without a key"),
    ],
)
@pytest.mark.parametrize("format", SUFFIXES)
def test_a_record_that_breaks_the_contract(tmp_path, picture, format, change, reason):
    with pytest.raises(ValueError, match=reason):
        write(tmp_path, [replace(good("k", picture()), **change)], format=format)
    assert not any(name.startswith("00000") for name in os.listdir(tmp_path))


@pytest.mark.parametrize("format", SUFFIXES)
def test_a_record_without_a_picture_says_what_was_known_of_it(tmp_path, format):
    meta = {"sha256": "abc", "width": 3, "height": 2**70, "uid": "u"}
    path = write(
        tmp_path,
        [Record("k", None, ("a dog",), columns={X: ("one",)}, members={"npz": b"n"}, meta=meta)],
        format=format,
    )
    (back,) = read_records(path)
    assert back.error == "" and back.syn_text == {X: ("one",)} and back.image is None and back.members == {"npz": b"n"}
    assert (back.meta["sha256"], back.meta["width"], back.meta["height"]) == ("abc", 3, 0)


def test_every_column_stays_in_every_format(tmp_path, picture):
    arrays = {
        "syn_text": ("a", ""),
        "alt_captions": ("b",),
        "other": ("c",),
        "syn_text_none": (),
        "syn_text_blank": (" ",),
    }
    record = replace(good("k", picture()), columns={**arrays, X: ("one", "two")})
    path = write(tmp_path, [record, replace(record, columns=arrays, error="broken")])
    files = tar_files(path)
    others = {"syn_text": ["a", ""], "alt_captions": ["b"], "other": ["c"]}
    assert json.loads(files["k.syn.json"]) == others | {X: ["one", "two"]}
    assert others.items() <= json.loads(files["k%7E2.json"]).items() and json.loads(files["k%7E2.syn.json"]) == {}
    for format in SUFFIXES:
        (back,) = read_records(write(tmp_path, [record], format=format))
        assert back.columns == {name: tuple(texts) for name, texts in others.items()} | {X: ("one", "two")}
        assert back.syn_text == {"syn_text": ("a", ""), X: ("one", "two")}
    row = json.loads(
        open(write(tmp_path, [record], format="jsonl")).read()
    )  # where they cannot be taken for columns of the table
    assert (
        row["caption_fields"] == {"alt_captions": ["b"], "other": ["c"]} and not {"alt_captions", "other"} & row.keys()
    )


@pytest.mark.parametrize("field", [3, "x", ["a"], {"a": "text"}, {"a": [1]}])
def test_a_field_that_only_has_the_name_of_ours_stays(tmp_path, picture, field):
    record = good("k", picture(), caption_fields=field)
    for format in SUFFIXES:
        (back,) = read_records(write(tmp_path, [record], format=format))
        assert back.meta["caption_fields"] == field and back.columns == {X: ("one", "two")}


def test_only_the_runs_own_columns_are_counted(tmp_path, picture):
    record = replace(good("k", picture()), columns={"syn_text_old": ("old",), X: ("one", "two")})
    for run_columns, counts in (([X], {X: 2}), ([], {X: 2, "syn_text_old": 1})):
        write(tmp_path, [record], columns=run_columns)
        assert read_marker(tmp_path, "00000")["captions"] == counts
    for name in ("text", "syn_text_emb", "syn_text_member", "syn_text_my_captions"):
        with pytest.raises(ValueError, match=f"columns: '{name}': not a valid name for a column of captions"):
            ShardWriter(tmp_path, "00000", columns=[X, name])


def test_captions_alone_have_no_text_and_no_old_columns(tmp_path, picture):
    members = {"npz": b"n", "url.txt": b"http://e.org/\xff"}
    scores = {"syn_text_old": {"logprob": [-1.0]}, X: {"logprob": [-2.0, -3.0]}}
    record = good("k", picture(), members=members, scores=scores)
    records = [replace(record, columns={"syn_text_old": ("old",), **record.columns}), failed("f", image=b"a text")]
    files = tar_files(write(tmp_path, records, images=False, columns=[X]))
    assert list(files) == ["k.syn.json", "k.json", "f.syn.json", "f.json"] and json.loads(files["k.syn.json"]) == {
        X: ["one", "two"]
    }
    fields = json.loads(files["k.json"])
    assert fields["sha256"] == hashlib.sha256(picture()).hexdigest() and fields["url"] == "http://e.org/\ufffd"
    assert fields["captions"] == ["a dog", "a cat"] and fields["caption_scores"] == {X: {"logprob": [-2.0, -3.0]}}
    assert json.loads(files["f.json"])["sha256"] == hashlib.sha256(b"a text").hexdigest()


def test_a_text_of_its_own(tmp_path, picture):
    with ShardWriter(tmp_path, "0") as writer:
        writer.write(good("a", picture()), "drawn")
        writer.write(good("b", picture()))
    files = tar_files(writer.path)
    assert (
        files["a.txt"] == b"drawn"
        and files["b.txt"] == b"a dog"
        and json.loads(files["a.json"])["captions"] == ["a dog", "a cat"]
    )


@pytest.mark.parametrize("format", SUFFIXES)
def test_scores_of_any_kind_are_written(tmp_path, picture, format):
    scores = [
        {X: {"logprob": "high", "n": 1}},
        {X: {"logprob": [1, 2.5], "n": True}},
        {X: {"logprob": {"a": True}}},
        {X: {}},
        {X: {"logprob": 2**70}},
    ]
    path = write(tmp_path, [good(str(i), picture(i), scores=values) for i, values in enumerate(scores)], format=format)
    assert len(list(read_records(path))) == len(scores)


def test_a_picture_whose_file_name_is_no_text(tmp_path, picture):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")
    open(path, "wb").write(picture())
    (back,) = read_records(write(tmp_path, [good("k", picture(), source=path)], format="jsonl"))
    assert back.image == picture()


def test_a_full_disk_leaves_no_shard(tmp_path, picture):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    os.symlink("/dev/full", tmp_path / f"00000.tar{UNFINISHED}")
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/00000.tar'"):
        write(tmp_path, [good(str(number), picture(number)) for number in range(300)])
    assert os.listdir(tmp_path) == []


def test_files_with_a_name_of_ours_cannot_be_carried(tmp_path, picture):
    for name in ("jpg", "txt", "json", "a/b", "NPZ", ""):
        with pytest.raises(ValueError, match="k: a file"):
            write(tmp_path, [good("k", picture(), members={name: b""})])


def test_what_json_has_no_type_for(tmp_path, picture):
    meta = {"score": float("nan"), "when": date(2026, 1, 2), "raw": b"\0", "half": "a\ud800", "pair": (1, None)}
    data = tar_files(write(tmp_path, [good("k", picture(), **meta)]))["k.json"]
    fields = json.loads(data, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert {name: fields[name] for name in meta} == {
        "score": None,
        "when": "2026-01-02",
        "raw": "AA==",
        "half": "a?",
        "pair": [1, None],
    }


@pytest.mark.parametrize("format", SUFFIXES)
def test_a_failed_record_keeps_its_other_files(tmp_path, picture, format):
    record = failed("k", image=b"a text")
    members = {"npz": b"n", "png": picture(1, "PNG")}  # not the picture that failed
    path = write(tmp_path, [replace(record, members=members)], format=format)
    (back,) = read_records(path)
    assert back.image is None and back.members == members and back.error == "broken"


def test_records_of_one_key_are_written_under_keys_of_their_own(tmp_path, picture, caplog):
    path = write(tmp_path, [good("a", picture(1)), good("a", picture(2)), failed("a")])
    assert [record.key for record in read_records(path)] == ["a", "a~2", "a~3"]
    assert "seen twice" in caplog.text


# ---- the marker, and what an accident leaves ------------------------------------------------------------------------


@pytest.mark.parametrize("format", SUFFIXES)
def test_a_marker_tells_counts_hashes_and_its_input(tmp_path, picture, format):
    with ShardWriter(
        tmp_path, "s", format=format, columns=[X], input={"path": "in.tar", "stamp": {"size": 3}}
    ) as writer:
        writer.write(good("a", picture()))
        writer.write(failed("b"))
        writer.info["seconds"] = 1.5
        assert not os.path.exists(writer.path) and read_marker(tmp_path, "s") is None
    data = open(writer.path, "rb").read()
    assert read_marker(tmp_path, "s") == {
        "name": "s",
        "file": "s" + SUFFIXES[format],
        "format": format,
        "size": len(data),
        "rows": 2,
        "failed": 1,
        "sha256": hashlib.sha256(data).hexdigest(),
        "captions": {X: 2},
        "input": {"path": "in.tar", "stamp": {"size": 3}},
        "seconds": 1.5,
    }
    with open(writer.path, "ab") as file:
        file.write(b"x")
    assert read_marker(tmp_path, "s") is None
    os.unlink(writer.path)
    assert read_marker(tmp_path, "s") is None
    (tmp_path / "s.done.json").write_text("{")
    assert read_marker(tmp_path, "s") is None


@pytest.mark.parametrize(
    "changes",
    [
        {"input": None},
        {"rows": "3"},
        {"captions": "3"},
        {"captions": {"a": []}},
        {"sha256": 3},
        {"file": "/dev/zero"},
        {"failed_before": "3"},
        {"licences": "by"},
        {"repeats": {"a": {}}},
        {"refused": {"a": 3}},
        {"overlap": 3},
        {"joined": {"a": "3"}},
    ],
)
def test_a_marker_whose_fields_are_not_those_of_a_marker_vouches_for_nothing(tmp_path, picture, changes):
    with ShardWriter(tmp_path, "s") as writer:
        writer.write(Record("a", picture(), columns={X: ("a dog",)}))
    path = tmp_path / "s.done.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert read_marker(tmp_path, "s") is None and read_markers(tmp_path) == {}


def test_a_marker_is_read_within_limits(tmp_path, picture, monkeypatch):
    with ShardWriter(tmp_path, "s") as writer:
        writer.write(Record("a", picture(), columns={X: ("a dog",)}))
    path = tmp_path / "s.done.json"
    path.write_text("[" * 100_000)
    assert read_marker(tmp_path, "s") is None
    monkeypatch.setattr("imagetext.limits.DOCUMENT", 1 << 20)
    path.unlink()
    path.symlink_to("/dev/zero")  # a file without an end
    (tmp_path / "run.json").symlink_to("/dev/zero")
    assert read_marker(tmp_path, "s") is None and read_shards(tmp_path) is None


@pytest.mark.parametrize("format", SUFFIXES)
def test_an_accident_leaves_no_new_shard_and_the_old_one_with_its_marker(tmp_path, picture, format):
    path = write(tmp_path, [good("a", picture())], format=format)
    before, marker = open(path, "rb").read(), read_marker(tmp_path, "00000")
    with pytest.raises(KeyboardInterrupt):
        with ShardWriter(tmp_path, "00000", format=format) as writer:
            writer.write(good("b", picture(2)))
            raise KeyboardInterrupt
    assert open(path, "rb").read() == before and read_marker(tmp_path, "00000") == marker is not None
    assert [record.image for record in read_records(path)] == [picture()]
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


def test_the_marker_is_last(tmp_path, picture, monkeypatch):
    names = []
    real = os.replace
    monkeypatch.setattr(
        os, "replace", lambda source, target: (names.append(os.path.basename(target)), real(source, target))
    )
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(len(names)))
    write(tmp_path, [good("a", picture())])
    assert names == ["00000.tar", "00000.done.json"]
    assert synced == [0, 1, 1, 2]  # data before each rename, the name after it


@pytest.mark.parametrize("failing, files", [(0, []), (1, ["00000.tar"]), (2, ["00000.tar"]), (3, ["00000.tar"])])
def test_a_marker_whose_name_may_not_last_vouches_for_nothing(failing, files, tmp_path, picture, monkeypatch):
    """Data and name of the shard, then of the marker, are flushed to the disk; one of these steps fails."""
    synced = []

    def fsync(handle):
        synced.append(handle)
        if len(synced) == failing + 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, [good("a", picture())])
    assert sorted(os.listdir(tmp_path)) == files and read_marker(tmp_path, "00000") is None


def test_pictures_and_their_names_are_on_the_disk_before_the_rows_that_name_them(tmp_path, picture, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}")))
    write(tmp_path, [good("a", picture(1)), good("b", picture(2))], format="jsonl")
    images = "00000.images"
    assert [os.path.relpath(path, tmp_path) for path in synced] == [
        f"{images}/000000000.jpg",
        f"{images}/000000001.jpg",
        images,
        "00000.jsonl" + UNFINISHED,
        ".",
        "00000.done.json" + UNFINISHED,
        ".",
    ]


# ---- JSONL and Parquet ---------------------------------------------------------------------------------------------


def test_jsonl_to_the_letter(tmp_path, picture):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(picture(1))
    records = [
        failed("f", source="gone.jpg"),
        replace(good("a", picture(1), license="CC0"), path=str(tmp_path / "in/a.jpg")),
        good("b", picture(2, "PNG"), source="x.tar/b.png", members={"npz": b"\0\1"}),
    ]
    path = write(tmp_path / "out", records, format="jsonl")
    rows = [json.loads(line) for line in open(path)]
    assert list(rows[0]) == [
        "key",
        "image",
        "captions",
        X,
        "sha256",
        "width",
        "height",
        "error",
        "caption_scores",
        "uid",
        "source",
        "license",
    ]
    assert [row["image"] for row in rows] == ["../in/a.jpg", "00000.images/000000001.png", None]
    assert (tmp_path / "out/00000.images/000000001.png").read_bytes() == picture(2, "PNG")
    assert rows[1]["members"] == {"npz": "AAE="} and rows[2][X] == [] and rows[2]["error"] == "broken"
    (tmp_path / "in/a.jpg").write_bytes(picture(1)[::-1])  # the picture has been replaced since it was captioned
    path = write(tmp_path / "out2", records, format="jsonl")
    assert json.loads(open(path).readline())["image"] == "00000.images/000000000.jpg"


def test_parquet_has_the_same_columns_in_every_shard(tmp_path, picture):
    scores = {X: {"logprob": [-1.5], "truncated": [False]}}
    paths = [
        write(tmp_path, records, name, format="parquet", columns=[X])
        for name, records in [
            ("0", [good("a", picture(), license="CC0", scores=scores), failed("f")]),
            ("1", [failed("f", size=3)]),
            ("2", [good("b", picture(), license=7, members={"npz": b"n"})]),
        ]
    ]
    schemas = [pq.read_schema(path) for path in paths]
    assert schemas[0].equals(schemas[1], check_metadata=True) and schemas[0].equals(schemas[2], check_metadata=True)
    assert schemas[0].names == [
        "key",
        "image",
        "captions",
        X,
        "sha256",
        "width",
        "height",
        "error",
        "caption_scores",
        "uid",
        "source",
        "json",
        "members",
    ]


@pytest.mark.parametrize("format", SUFFIXES)
def test_scores_come_back_as_they_were(tmp_path, picture, format):
    scores = [{X: {"logprob": [-1.5, None]}}, {X: {"logprob": [], "tries": 3, "why": {"cut": True}}}, {}]
    path = write(tmp_path, [good(str(i), picture(i), scores=values) for i, values in enumerate(scores)], format=format)
    assert [record.scores for record in read_records(path)] == scores


def test_parquet_of_many_rows(tmp_path, picture):
    records = [good(f"{i:03d}", picture(i)) for i in range(250)]
    path = write(tmp_path, records, format="parquet")
    assert pq.ParquetFile(path).num_row_groups == 3
    assert [record.image for record in read_records(path)] == [record.image for record in records]


# ---- names of columns ----------------------------------------------------------------------------------------------


def test_only_names_of_columns_are_accepted():
    for name in ("syn_text_x", "syn_text_coca_vit_l_14", "syn_text_0", "neg_text_x", "tags_x", "neg_tags_x"):
        assert check_column(name) == name
    for name in (
        "tags",
        "neg_text_",
        "neg_text_member",
        "my_tags_x",
        "syn_text_",
        "syn_text",
        "text_x",
        "syn_text_X",
        "syn_text_a-b",
        "syn_text_é",
        "syn_text_x\n",
        "syn_text_a b",
        "syn_text_member",
        "syn_text_my_captions",
    ):
        with pytest.raises(ValueError, match="column"):
            check_column(name)


# ---- round trips ---------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
WORDS = TEXT.filter(str.strip)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
RESERVED = {
    "uid",
    "sha256",
    "width",
    "height",
    "captions",
    "error",
    "source",
    "caption_scores",
    "caption_fields",
    "key",
    "image",
    "members",
    "json",
}
META = st.dictionaries(
    TEXT.filter(lambda name: name not in RESERVED and not name.startswith("syn_text")), JSON, max_size=3
)
MEMBERS = st.dictionaries(
    st.from_regex(r"[a-z0-9_.-]{1,8}", fullmatch=True).filter(
        lambda name: name not in ("jpg", "txt", "json", "syn.json")
    ),
    st.binary(max_size=20),
    max_size=3,
)


@st.composite
def records(draw, images):
    image = draw(st.sampled_from(images))
    error = draw(st.just("") | WORDS)
    names = draw(st.lists(st.sampled_from(["syn_text_a", "syn_text_b"]), min_size=1, unique=True))
    syn_text = {} if error else {name: tuple(draw(st.lists(WORDS, min_size=1, max_size=3))) for name in names}
    scores = {
        name: {"logprob": [-0.5] * len(texts), "truncated": [False] * len(texts), "tries": len(texts)}
        for name, texts in syn_text.items()
    }
    others = draw(st.dictionaries(st.sampled_from(["neg_text_a", "tags"]), st.just(("other", ""))))
    columns = syn_text | others if syn_text else {}
    meta = draw(META) | {"uid": draw(WORDS), "source": draw(TEXT)}
    captions = tuple(draw(st.lists(WORDS, max_size=2)))
    return Record(
        draw(WORDS), image, captions, columns=columns, scores=scores, members=draw(MEMBERS), meta=meta, error=error
    )


@pytest.mark.parametrize("format", SUFFIXES)
def test_written_records_are_read_back_unchanged(tmp_path_factory, picture, format):
    images = [picture(1), picture(2, "PNG"), picture(3, "WEBP"), picture(4, "GIF")]

    @settings(max_examples=25, deadline=None)
    @given(st.lists(records(images), min_size=1, max_size=6, unique_by=lambda record: record.key))
    def check(written):
        folder = tmp_path_factory.mktemp("trip")
        path = write(folder, written, format=format)
        expected = [as_read(record) for record in sorted(written, key=lambda record: bool(record.error))]
        got = list(read_records(path))
        assert got == expected
        again = write(folder / "again", got, format=format)
        if format != "jsonl":
            assert open(again, "rb").read() == open(path, "rb").read()

    check()


def as_read(record: Record) -> Record:
    """Return the record as it is read: with the picture's hash and size, and without a picture if it failed."""
    size = image_size(record.image)
    meta = {**record.meta, "sha256": hashlib.sha256(record.image).hexdigest(), "width": size[0], "height": size[1]}
    return replace(record, image=None if record.error else record.image, meta=meta)


NAMES = (
    st.text("ab/%-_0.", min_size=1, max_size=130)
    | st.text(min_size=1, max_size=130)
    | st.sampled_from(["a" * 100, "a" * 101, "é.jpg"])
)


@settings(max_examples=200, deadline=None)
@given(NAMES.filter(lambda name: "\0" not in name), st.sampled_from([0, 1, 511, 512, 513, 8**11 - 1, 8**11]))
def test_the_header_of_a_file_in_a_tar_is_the_librarys(name, size):
    name, member = name.encode("utf-8", "surrogateescape" if name.isascii() else "replace").decode(), tarfile.TarInfo()
    member.name, member.size = name, size
    assert tar_header(name, size) == member.tobuf()


@pytest.mark.parametrize("sizes", [[], [0], [1, 512, 513], [9000], [10240 - 2048 - 1024 - 512], [20000] * 3])
def test_a_tar_has_the_bytes_that_the_library_gives_it(tmp_path, picture, sizes):
    image = picture(0)
    path = write(
        tmp_path, [good(f"k/{number}", image, members={"npz": bytes(size)}) for number, size in enumerate(sizes)]
    )
    with tarfile.open(path) as archive, tarfile.open(tmp_path / "library.tar", "w") as other:
        for file in archive:
            member = tarfile.TarInfo(file.name)
            member.size = file.size
            other.addfile(member, archive.extractfile(file))
    with open(path, "rb") as ours, open(tmp_path / "library.tar", "rb") as theirs:
        assert ours.read() == theirs.read()
