"""Files that a table, metadata or a link names are read only in the folders that the user named."""

import errno
import json
import os
import unicodedata
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagetext import picture_files, problems
from imagetext.picture_files import PictureFolders, PictureReader, PictureReference, check_inside, read_picture
from imagetext.read_ahead import in_order
from imagetext.readers.table_flags import Columns
from imagetext.sample import decode_image
from imagetext.shards import ShardWriter
from imagetext.sources import read_samples
from imagetext.stores import StoreError

SECRET = b"ssh-rsa AAAAB3Nza"


@pytest.fixture
def place(tmp_path, picture):
    """A set with two pictures; outside it a secret, a picture and a device, and links to them in the set."""
    for folder in ("set/sub", "out"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("set/a.jpg", "set/sub/b.jpg", "out/photo.jpg"):
        (tmp_path / name).write_bytes(picture())
    (tmp_path / "out/secret").write_bytes(SECRET)
    (tmp_path / "set/link.jpg").symlink_to("../out/photo.jpg")
    (tmp_path / "set/within.jpg").symlink_to("sub/b.jpg")
    (tmp_path / "set/up").symlink_to("../out")
    return tmp_path


OUTSIDE = [
    "../out/secret",
    "sub/../../out/photo.jpg",
    "{}/out/photo.jpg",
    "file://{}/out/secret",
    "link.jpg",
    "up/photo.jpg",
    "/etc/passwd",
    "/proc/self/environ",
    "s3://bucket/a.jpg",
    "../../../../gone/.ssh/id_rsa",
    "..",
    "/dev/zero",
    "../set-2/a.jpg",
]
INSIDE = [
    "a.jpg",
    "./sub/b.jpg",
    "sub/../a.jpg",
    "within.jpg",
    ".\\sub\\b.jpg",  # as Windows writes it
    "../set/a.jpg",
    "{}/set/a.jpg",
    "file://{}/set/sub/b.jpg",
    "file://{}/set/su%62/b%2Ejpg",  # as URLs have blanks
]
NO_PATHS = ["gone.jpg", "https://x.org/a.jpg", "", "a\0.jpg", "/9j/" + "A" * 70, "\ud800.jpg", "x" * 5000, "/" * 5000]


def table(path: Path, names: list[str], format: str) -> str:
    rows = [{"image": name, "caption": f"one {index}"} for index, name in enumerate(names)]
    if format == "parquet":
        pq.write_table(pa.table({name: [row[name] for row in rows] for name in rows[0]}), path)
    elif format == "coco":
        path.write_text(
            json.dumps(
                {
                    "images": [{"id": index, "file_name": name} for index, name in enumerate(names)],
                    "annotations": [{"image_id": index, "caption": "x"} for index in range(len(names))],
                }
            )
        )
    elif format == "llava":
        path.write_text(
            json.dumps(
                [
                    {"id": str(index), "image": name, "conversations": [{"from": "gpt", "value": "x"}]}
                    for index, name in enumerate(names)
                ]
            )
        )
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return f"coco:{path}" if format == "coco" else str(path)


@pytest.mark.parametrize("format", ["jsonl", "parquet", "coco", "llava"])
def test_rows_that_lead_outside_are_one_error_before_any_work(place, format, monkeypatch):
    monkeypatch.setattr(picture_files, "read_picture", None)  # nothing is opened
    names = [name.format(place) for name in INSIDE + OUTSIDE]
    path = table(
        place / f"set/t.{'parquet' if format == 'parquet' else 'json' if format != 'jsonl' else format}", names, format
    )
    with pytest.raises(ValueError) as caught:
        read_samples(path)
    (message,) = str(caught.value).splitlines()
    first = f"the first, row {len(INSIDE) + 1}, names '../out/secret'"
    assert f": {len(OUTSIDE)} of its rows lead outside {place}/set; {first}" in message
    assert f"add --images {place}/set --images {place}/out, or" in message and "ssh-rsa" not in message


@pytest.mark.parametrize("name", INSIDE)
def test_what_lies_inside_is_read(place, picture, name):
    (shard,) = read_samples(table(place / "set/t.jsonl", [name.format(place)], "jsonl"))
    assert [record.image for record in shard] == [picture()]


@pytest.mark.parametrize("in_file, in_table", [("NFD", "NFC"), ("NFC", "NFD"), ("NFC", "NFC")])
def test_a_name_may_be_in_the_other_form_of_unicode(place, picture, in_file, in_table):
    (place / "set" / unicodedata.normalize(in_file, "café.jpg")).write_bytes(picture())
    (shard,) = read_samples(table(place / "set/t.jsonl", [unicodedata.normalize(in_table, "café.jpg")], "jsonl"))
    assert [record.image for record in shard] == [picture()]


@pytest.mark.parametrize("in_file, in_table", [("a.jpg", "a.JPG"), ("b.PNG", "b.png"), ("c.JPG", "c.jpg")])
def test_a_suffix_may_be_in_the_other_case(place, picture, in_file, in_table):
    """Windows and macOS take them as equal, and tables are made there."""
    (place / "set" / in_file).write_bytes(picture())
    path = table(place / "set/t.jsonl", [in_table, f"gone{in_table}"], "jsonl")
    found, gone = read_samples(path)[0]
    assert found.image == picture() and not found.error
    assert f"missing picture file: 'gone{in_table}'" in gone.error


def test_what_can_be_no_path_is_its_rows_error(place):
    names = [name for name in NO_PATHS if name.isprintable()]
    (shard,) = read_samples(table(place / "set/t.jsonl", names, "jsonl"))
    errors = [record.error for record in shard]
    assert all(errors) and "not fetched from URLs" in errors[1] and "base64" in errors[3]
    for name in NO_PATHS[:4] + NO_PATHS[5:]:
        check_inside("t", [(0, PictureReference(name))], PictureFolders(str(place / "set")))


@pytest.mark.parametrize("name", ["..\\out\\photo.jpg", "up\\photo.jpg", "C:\\set\\a.jpg"])
def test_backslashes_lead_nowhere_outside(place, name):
    (shard,) = read_samples(table(place / "set/t.jsonl", [name], "jsonl"))
    assert [(record.image, "missing picture file" in record.error) for record in shard] == [(None, True)]


@pytest.mark.parametrize("name", [name for name in OUTSIDE if "s3://" not in name])
def test_what_leads_outside_is_refused_when_it_is_opened_too(place, name):
    reader = PictureReader(PictureFolders(str(place / "set")))
    with pytest.raises(ValueError, match="outside the set") as caught:
        reader.read(PictureReference(name.format(place)))
    assert "ssh-rsa" not in str(caught.value)


def test_a_link_that_comes_later_is_its_rows_error(place, picture):
    (shard,) = read_samples(table(place / "set/t.jsonl", ["sub/b.jpg", "a.jpg"], "jsonl"))
    (place / "set/sub/b.jpg").unlink()
    (place / "set/sub").rmdir()
    (place / "set/sub").symlink_to(place / "out")
    (place / "out/b.jpg").write_bytes(picture(5))
    first, second = shard
    assert first.image is None and "outside the set" in first.error and second.image == picture()
    with pytest.raises(ValueError, match="outside the set"):  # without folders, as when training reads a picture again
        read_picture(str(place / "set/sub/b.jpg"))


def test_folders_that_flags_name(place, picture, monkeypatch):
    path = table(
        place / "set/t.jsonl",
        ["photo.jpg", "../out/photo.jpg", f"{place}/out/photo.jpg", "sub/../../out/photo.jpg"],
        "jsonl",
    )
    (shard,) = read_samples(path, str(place / "out"))
    assert [record.image for record in shard] == [picture()] * 4
    with pytest.raises(ValueError, match="1 of its rows"):  # with --images, the folder of the file is not allowed
        read_samples(table(place / "set/u.jsonl", ["../set/a.jpg"], "jsonl"), str(place / "out"))
    monkeypatch.chdir(place)
    (shard,) = read_samples("set/t.jsonl", ["set", "out"])  # looked for in each folder in turn
    assert [record.image for record in shard] == [picture()] * 4
    (place / "set/photo.jpg").write_bytes(picture(9))
    assert [record.image for record in read_samples("set/t.jsonl", ["set", "out"])[0]][0] == picture(9)
    assert [record.image for record in read_samples("set/t.jsonl", ["out", "set"])[0]][0] == picture()


@pytest.mark.parametrize("format", ["jsonl", "parquet", "coco", "llava"])
def test_paths_that_start_from_the_current_folder(place, picture, format, monkeypatch, caplog):
    monkeypatch.chdir(place)
    path = Path(f"set/t.{format if format in ('jsonl', 'parquet') else 'json'}")
    spec = table(path, ["set/a.jpg", "set/sub/b.jpg"], format)
    (shard,) = read_samples(spec)
    assert [record.image for record in shard] == [None, None]
    assert caplog.messages == [
        f"{path}: paths of pictures start from set, where 'set/a.jpg' is not; if they start from the current "
        "folder, add --images ."
    ]
    caplog.clear()
    (shard,) = read_samples(spec, ".")
    assert [record.image for record in shard] == [picture()] * 2 and not caplog.messages
    (place / "a.jpg").write_bytes(picture(1))
    read_samples(table(Path("set/u.jsonl"), ["a.jpg", "gone.jpg"], "jsonl"))  # in the folder of the file, too
    assert not caplog.messages


def test_folders_that_do_not_exist_are_told_before_any_work(place, monkeypatch):
    read = partial(read_samples, table(place / "set/t.jsonl", ["a.jpg"], "jsonl"))
    missing = [str(place / "pics"), str(place / "set/a.jpg")]
    with pytest.raises(ValueError, match=".*") as caught:
        read([*missing, str(place / "out")])
    assert str(caught.value).splitlines() == [f"--images {folder}: there is no such folder" for folder in missing]
    assert [record.error for record in read(missing, check=False)[0]] == [""]
    monkeypatch.chdir(place / "set")
    assert [record.error for record in read("")[0]] == [""]


def test_all_tables_are_told_of_in_one_error(place):
    paths = [
        table(place / f"set/{number}.jsonl", [f"{place}/{number}/{row}.jpg" for row in range(3)], "jsonl")
        for number in range(9)
    ]
    with pytest.raises(ValueError) as caught:
        read_samples([*paths, str(place / "gone.csv")])
    gone, outside = str(caught.value).splitlines()
    assert "no such file" in gone and outside.startswith(f"{paths[0]}: 3 of its rows lead outside")
    assert "together with 8 other inputs, 27 do" in outside and outside.count("--images") == problems.FLAGS


def test_a_folder_whose_name_begins_alike_is_another(place):
    assert not PictureFolders("/a/set").hold("/a/set-2/x.jpg") and PictureFolders("/").hold("/a/x.jpg")
    store = PictureFolders("s3://b/set")
    assert (
        store.paths(PictureReference("../x.jpg")) == ["s3://b/x.jpg"]
        and not store.hold("s3://b/x.jpg")
        and store.hold("s3://b/set/x.jpg")
    )
    with pytest.raises(ValueError, match="outside the set"):
        PictureReader(store).read(PictureReference("s3://b/set/../x.jpg"))


def test_bytes_in_parquet_are_no_paths(place, picture):
    cells = [{"bytes": picture(), "path": "/etc/passwd"}, {"bytes": picture(), "path": None}]
    for rows, outside in (
        (cells, 0),
        ([*cells, {"bytes": None, "path": "a.jpg"}], 0),
        ([*cells, {"bytes": None, "path": "/etc/passwd"}], 1),
    ):
        pq.write_table(pa.table({"image": rows, "caption": ["x"] * len(rows)}), place / "set/t.parquet")
        if outside:
            with pytest.raises(ValueError, match="1 of its rows .* row 3, names '/etc/passwd'"):
                read_samples(str(place / "set/t.parquet"))
        else:
            (shard,) = read_samples(str(place / "set/t.parquet"), columns=Columns(group=False))
            assert [record.image for record in shard] == [picture()] * len(rows)


def test_a_folder_stays_in_itself(place, picture):
    with pytest.raises(
        ValueError, match=f"2 of its links lead outside {place}/set; the first names .*; if .*--images {place}/out"
    ):
        read_samples(str(place / "set"))
    (shard,) = read_samples(str(place / "set"), place / "out")
    assert {record.key for record in shard} == {"a", "link", "sub/b", "up/photo", "within"} and not any(
        record.error for record in shard
    )
    for name in ("link.jpg", "up"):
        (place / "set" / name).unlink()
    assert [record.key for record in read_samples(str(place / "set"))[0]] == ["a", "sub/b", "within"]
    (place / "set/a.txt").symlink_to("../out/secret")  # texts may leak a file outside, too
    with pytest.raises(ValueError, match="1 of its links"):
        read_samples(str(place / "set"))
    (place / "set/a.txt").unlink()
    (place / "set/a.txt").write_text("one")
    (place / "set/sub/metadata.csv").write_text("file_name,text\n../a.jpg,two\n../../out/photo.jpg,three\n")
    with pytest.raises(ValueError, match="1 of its pictures in metadata lead outside"):
        read_samples(str(place / "set"))
    captions = {record.key: record.captions for record in read_samples(str(place / "set"), place / "out")[0]}
    assert captions["a"] == ("two",) and ("three",) in captions.values()


def test_a_file_beside_a_picture_that_becomes_a_link(place):
    for name in ("link.jpg", "up"):
        (place / "set" / name).unlink()
    (place / "set/a.txt").write_text("one")
    (shard,) = read_samples(str(place / "set"))
    (place / "set/a.txt").unlink()
    (place / "set/a.txt").symlink_to("../out/secret")
    assert ["outside the set" in record.error for record in shard] == [True, False, False]


def test_links_of_the_hubs_cache(tmp_path, picture):
    home = tmp_path / "hub/datasets--org--set"
    (home / "blobs").mkdir(parents=True)
    (home / "snapshots/abc/pics").mkdir(parents=True)
    (home / "blobs/1").write_bytes(picture())
    (home / "blobs/2").write_text('{"image": "pics/a.jpg"}')
    (home / "snapshots/abc/pics/a.jpg").symlink_to("../../../blobs/1")
    (home / "snapshots/abc/t.jsonl").symlink_to("../../blobs/2")
    for spec in ("t.jsonl", "pics"):
        assert [record.image for record in read_samples(f"{home}/snapshots/abc/{spec}")[0]] == [picture()]
    (home / "snapshots/abc/pics/a.jpg").unlink()
    (home / "snapshots/abc/pics/a.jpg").symlink_to("../../../../secret")
    with pytest.raises(ValueError, match="1 of its rows"):
        read_samples(f"{home}/snapshots/abc/t.jsonl")


@pytest.mark.parametrize("name", ["pipe", "/dev/zero", "loop", "."])
def test_only_regular_files_are_opened(place, picture, name, monkeypatch):
    os.mkfifo(place / "set/pipe")
    (place / "set/loop").symlink_to("loop")
    opened, real_open = [], os.open
    (shard,) = read_samples(table(place / "set/t.jsonl", [name, "a.jpg"], "jsonl"), ["/dev", place / "set"])
    monkeypatch.setattr(
        os, "open", lambda path, *args, **options: opened.append(path) or real_open(path, *args, **options)
    )
    first, second = shard
    assert first.error and first.image is None and second.image == picture() and opened == [f"{place}/set/a.jpg"]


@pytest.mark.parametrize(
    "number, of_row", [(errno.EIO, False), (errno.ESTALE, False), (errno.EACCES, True), (errno.ELOOP, True)]
)
def test_trouble_of_the_disk_fails_the_shard_and_trouble_of_a_file_its_row(place, monkeypatch, number, of_row):
    def broken(*args, **options):
        raise OSError(number, os.strerror(number))

    (shard,) = read_samples(table(place / "set/t.jsonl", ["a.jpg"], "jsonl"))
    monkeypatch.setattr(os, "open", broken)
    if of_row:
        assert f"missing picture file: 'a.jpg' ({os.strerror(number)})" in [record.error for record in shard][0]
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            list(shard)


# ---- our own records -----------------------------------------------------------------------------------------------


def test_our_own_jsonl_is_read_again(place, picture):
    records = list(
        read_samples(
            table(place / "set/t.jsonl", ["a.jpg", f"{place}/out/photo.jpg"], "jsonl"), [place / "set", place / "out"]
        )[0]
    )
    records = [replace(record, columns={"syn_text_x": ("one",)}) for record in records]
    with ShardWriter(place / "set", "beside", format="jsonl") as beside:
        beside.write(records[0])
    assert [record.image for record in read_samples(beside.path)[0]] == [
        picture()
    ]  # beside its pictures, without flags
    (place / "run").mkdir()
    with ShardWriter(place / "run", "r", format="jsonl") as writer:
        for record in records:
            writer.write(record)
        writer.write(replace(records[0], key="stored", image=picture(3), path=""))
    back = list(read_samples(writer.path)[0])  # and away from them: the record has the hash of each
    assert [record.image for record in back] == [picture(), picture(), picture(3)]
    (place / "set/a.jpg").write_bytes(picture(7))
    back = list(read_samples(writer.path)[0])
    assert ["outside the set" in record.error for record in back] == [True, False, False] and back[0].image is None
    assert [(item.image, item.error) for item in read_samples(writer.path, check=False)[0]][0] == (None, "")
    back = list(read_samples(writer.path, [place / "set"])[0])  # with the flag, the changed picture is read
    assert [record.image for record in back] == [picture(7), picture(), picture(3)]


def test_a_record_that_only_looks_like_ours_opens_nothing_new(place):
    row = {
        "key": "a",
        "uid": "a",
        "captions": [],
        "width": 1,
        "height": 1,
        "error": "",
        "source": "",
        "caption_scores": {},
    }
    for sha256, refused in (("", True), ("0" * 64, False)):
        (place / "set/t.jsonl").write_text(json.dumps({**row, "image": "../out/secret", "sha256": sha256}))
        if refused:
            with pytest.raises(ValueError, match="1 of its rows"):
                read_samples(str(place / "set/t.jsonl"))
        else:
            (record,) = read_samples(str(place / "set/t.jsonl"))[0]
            assert record.image is None and "outside the set" in record.error and "ssh" not in record.error
    (place / "set/t.jsonl").write_text(json.dumps({**row, "image": "s3://bucket/a.jpg", "sha256": "0" * 64}))
    with pytest.raises(ValueError, match="1 of its rows"):
        read_samples(str(place / "set/t.jsonl"))


# ---- stores --------------------------------------------------------------------------------------------------------


@pytest.fixture
def remote(s3, tmp_path, picture):
    for number in range(4):
        s3.put(f"in/{number}.jpg", picture(number))
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps({"image": f"{s3.root}/in/{number}.jpg"}) for number in range(4)))
    (shard,) = read_samples(str(path), f"{s3.root}/in")
    return shard


@pytest.mark.parametrize("status", [403, 404])
def test_a_picture_that_a_store_refuses_is_a_row(s3, remote, status):
    for method in ("HEAD", "GET"):
        s3.fail(method, "2.jpg", status)
    assert ["missing picture file" in record.error for record in remote] == [False, False, True, False]


@pytest.mark.parametrize("status", [403, 404])
def test_rows_are_not_at_fault_where_a_store_gives_nothing(s3, remote, status):
    for method in ("HEAD", "GET"):
        s3.fail(method, ".jpg", status)
    rows = iter(remote)
    with pytest.raises(StoreError, match="no other picture"):
        list(rows)


def test_rights_that_end_while_a_shard_is_read_fail_it(s3, remote, monkeypatch):
    rows = iter(remote)
    monkeypatch.setattr("imagetext.readers.row_records.in_order", partial(in_order, ahead=1))
    assert not next(rows).error
    for method in ("HEAD", "GET"):
        s3.fail(method, ".jpg", 403)
    with pytest.raises(StoreError, match="which was read before, is refused now"):
        list(rows)


def test_a_url_outside_the_prefix_is_outside(s3, tmp_path):
    (tmp_path / "t.jsonl").write_text(json.dumps({"image": f"{s3.root}/other/1.jpg"}))
    with pytest.raises(ValueError, match=f"1 of its rows lead outside {s3.root}/in; .*--images {s3.root}/other"):
        read_samples(str(tmp_path / "t.jsonl"), f"{s3.root}/in")


# ---- words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        SECRET,
        b"P4ssw0rd-of-root",
        b"P1 secret-token",
        b"P5 12345secret",
        b"P2 2 2 9\nhidden-words 1 1 1",
        b"BMsecret" * 10,
        b"root:x:0:0:root:/root",
    ],
)
def test_an_error_quotes_nothing_of_a_file_that_is_no_picture(data):
    with pytest.raises(ValueError) as caught:
        decode_image(data)
    message = str(caught.value)
    assert not any(
        data[start : start + 4].decode() in message
        for start in range(len(data) - 4)
        if data[start : start + 4].isalnum()
    )
