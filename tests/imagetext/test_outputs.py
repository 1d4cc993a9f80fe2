import gc
import json
import os
from dataclasses import replace

import pytest

from imagetext import outputs
from imagetext.outputs import UNFINISHED, Output, abort_uploads, remove, whole_file, whole_files, write_file
from imagetext.sample import Record
from imagetext.shards import SUFFIXES, ShardWriter, read_marker, read_markers
from imagetext.sources import read_records
from imagetext.stores import StoreError, entry, filesystem, listing, read_bytes

X = "syn_text_x"


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(outputs, "PART", 5 << 20)  # the smallest part that S3 accepts


def record(key, image, error="") -> Record:
    columns = {} if error else {X: ("one", "two")}
    return Record(
        key, image, ("a dog",), columns=columns, members={"npz": b"n"}, meta={"source": "in/x.jpg"}, error=error
    )


def write(folder, records, name="00000", **options) -> str:
    with ShardWriter(folder, name, columns=[X], **options) as writer:
        for record in records:
            writer.write(record)
    return writer.path


def uploads(s3) -> list[str]:
    return sorted(upload["Key"] for upload in filesystem(s3.root).list_multipart_uploads(s3.bucket))


@pytest.mark.parametrize("format", SUFFIXES)
def test_a_store_gets_the_same_bytes(tmp_path, picture, s3, format):
    records = [record("a", picture(1)), record("b", picture(2, "PNG")), record("c", None, "no picture")]
    local, remote = (write(folder, records, format=format) for folder in (tmp_path / "out", f"{s3.root}/out"))
    assert read_bytes(remote) == read_bytes(local) and remote == f"{s3.root}/out/00000{SUFFIXES[format]}"
    assert read_marker(f"{s3.root}/out", "00000") == read_marker(tmp_path / "out", "00000")
    assert list(read_records(remote)) == list(read_records(local))
    assert [os.path.basename(file.path) for file in listing(f"{s3.root}/out")] == sorted(os.listdir(tmp_path / "out"))
    remove(remote)
    assert read_marker(f"{s3.root}/out", "00000") is None


def test_jsonl_names_pictures_that_are_files_of_a_store(tmp_path, picture, s3):
    url = s3.put("in/x.jpg", picture(1))
    sample = Record("a", picture(1), path=url)
    for folder in (tmp_path, f"{s3.root}/out"):
        path = write(folder, [replace(sample, columns={**sample.columns, X: ("one",)})], format="jsonl")
        assert json.loads(read_bytes(path))["image"] == url
        assert list(read_records(path, [f"{s3.root}/in"]))[0].image == picture(1)
    s3.put("in/x.jpg", picture(2))  # the picture has been replaced
    path = write(f"{s3.root}/out", [replace(sample, columns={**sample.columns, X: ("one",)})], format="jsonl")
    assert json.loads(read_bytes(path))["image"] == "00000.images/000000000.jpg"
    assert list(read_records(path))[0].image == picture(1)


def test_one_upload_that_is_completed_when_all_is_there(s3, small_parts):
    data = os.urandom(12 << 20)
    output = Output(f"{s3.root}/x.bin")
    for start in range(0, len(data), 1 << 20):
        output.write(data[start : start + (1 << 20)])
    assert entry(output.path) is None and uploads(s3) == ["x.bin"]
    output.commit()
    assert (
        read_bytes(output.path) == data
        and uploads(s3) == []
        and entry(output.path).stamp["size"] == output.size == len(data)
    )
    assert s3.count("POST", "x.bin") == 2  # begun and completed once


def test_the_marker_comes_last(s3, picture):
    path = write(f"{s3.root}/out", [record("a", picture())])
    stored = [path for method, path, query, _ in s3.requests if method in ("PUT", "POST") and "uploads" not in query]
    assert stored[-1].endswith("00000.done.json") and stored[-2].endswith(os.path.basename(path))


@pytest.mark.parametrize("size", [1, 7])  # megabytes: before and after the first part
def test_an_accident_leaves_no_upload_and_what_was_there(s3, small_parts, size):
    write_file(f"{s3.root}/x.bin", b"before")
    output = Output(f"{s3.root}/x.bin")
    output.write(bytes(size << 20))
    output.discard()
    del output
    gc.collect()
    assert read_bytes(f"{s3.root}/x.bin") == b"before" and uploads(s3) == []


def test_an_exception_leaves_the_old_shard_with_its_marker(s3, picture):
    write(f"{s3.root}/out", [record("a", picture())])
    marker = read_marker(f"{s3.root}/out", "00000")
    with pytest.raises(KeyboardInterrupt):
        with ShardWriter(f"{s3.root}/out", "00000") as writer:
            writer.write(record("b", picture()))
            raise KeyboardInterrupt
    assert read_marker(f"{s3.root}/out", "00000") == marker is not None and [
        item.key for item in read_records(writer.path)
    ] == ["a"]


@pytest.mark.parametrize("name,kind", [("00000.tar", 503), ("00000.tar", 403), ("00000.done.json", 503)])
def test_a_write_that_fails_leaves_no_marker(s3, picture, small_parts, name, kind):
    s3.fail("PUT", name, kind)
    with pytest.raises(StoreError, match=name):
        write(f"{s3.root}/out", [record("a", picture())])
    assert read_marker(f"{s3.root}/out", "00000") is None and uploads(s3) == []
    s3.faults.clear()
    write(f"{s3.root}/out", [record("a", picture())])
    assert read_marker(f"{s3.root}/out", "00000")["rows"] == 1


def test_uploads_that_were_left_are_aborted_when_the_shard_is_begun_again(s3, picture, small_parts):
    outputs = [Output(f"{s3.root}/{name}") for name in ("out/00000.tar", "out/00000.tar.old", "elsewhere/00000.tar")]
    for output in outputs:
        output.write(bytes(6 << 20))
    write(f"{s3.root}/out", [record("a", picture())])
    assert uploads(s3) == ["elsewhere/00000.tar", "out/00000.tar.old"]  # other runs may be writing these
    assert abort_uploads(f"{s3.root}/out/") == 1 and uploads(s3) == ["elsewhere/00000.tar"]
    assert abort_uploads("/tmp/out/") == 0
    for output in outputs:
        output._file.closed = True


def test_uploads_are_listed_page_by_page(monkeypatch):
    class Store:
        aborted, pages = [], {"": ["f/a", "f/b"], "f/b": ["f/c"]}

        def call_s3(self, method, Bucket, Prefix="", KeyMarker="", UploadIdMarker="", Key="", UploadId=""):
            if method == "abort_multipart_upload":
                return self.aborted.append(UploadId)
            names = self.pages[KeyMarker]
            return {
                "Uploads": [{"Key": name, "UploadId": f"id of {name}"} for name in names],
                "IsTruncated": names[-1] != "f/c",
                "NextKeyMarker": names[-1],
                "NextUploadIdMarker": f"id of {names[-1]}",
            }

    store = Store()
    monkeypatch.setattr(outputs, "filesystem", lambda path: store)
    assert abort_uploads("s3://bucket/f/") == 3 and store.aborted == ["id of f/a", "id of f/b", "id of f/c"]


def test_an_upload_that_is_taken_away_is_an_error(s3, small_parts):
    output = Output(f"{s3.root}/x.bin")
    output.write(bytes(6 << 20))
    abort_uploads(f"{s3.root}/x.bin")
    with pytest.raises(StoreError, match="x.bin"):
        output.commit()
    output.discard()
    assert entry(output.path) is None


def test_a_store_that_holds_less_than_was_written(s3, monkeypatch):
    store = filesystem(s3.root)
    output = Output(f"{s3.root}/x.bin")
    output.write(b"four")
    monkeypatch.setattr(store, "info", lambda path: {"size": 3})
    with pytest.raises(StoreError, match="x.bin: .*4 bytes were written, the store has 3"):
        output.commit()


def test_markers_of_a_folder(tmp_path, picture, s3):
    for folder in (str(tmp_path), f"{s3.root}/out"):
        for name in ("0", "1", "2"):
            write(folder, [record(name, picture())], name)
        write_file(f"{folder}/1.tar", b"cut")
        write_file(f"{folder}/2.done.json", b"{")
        s3.requests.clear()
        assert read_markers(folder) == {"0": read_marker(folder, "0")} and read_marker(folder, "1") is None
    assert s3.count("HEAD", ".tar") == 2  # used only by read_marker
    assert read_markers(f"{s3.root}/none") == read_markers(tmp_path / "none") == {}


def test_a_file_here_is_whole_or_not_there(tmp_path):
    path = str(tmp_path / "a/x.bin")
    output = Output(path)
    output.write(b"one")
    assert not os.path.exists(path)
    output.discard()
    assert os.listdir(tmp_path / "a") == []
    write_file(path, b"two")
    assert os.listdir(tmp_path / "a") == ["x.bin"] and read_bytes(path) == b"two"


def test_a_file_is_on_the_disk_before_its_name_and_its_name_before_the_end(tmp_path, monkeypatch):
    done, real = [], os.replace
    monkeypatch.setattr(os, "replace", lambda source, target: (done.append("named"), real(source, target)))
    monkeypatch.setattr(
        os, "fsync", lambda handle: done.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
    )
    with whole_file(tmp_path / "a" / "x.bin") as temporary:
        temporary.write_bytes(b"one")
    assert done == [temporary.name, "named", "a"] and (tmp_path / "a" / "x.bin").read_bytes() == b"one"
    assert temporary == tmp_path / "a" / f"x.bin{UNFINISHED}"


def test_what_a_killed_process_left_goes(tmp_path):
    (tmp_path / f"x.bin{UNFINISHED}").touch(0o600)
    write_file(tmp_path / "x.bin", b"one")
    assert os.listdir(tmp_path) == ["x.bin"] and os.access(tmp_path / "x.bin", os.W_OK)


def test_where_writing_fails_the_file_that_was_there_stays(tmp_path):
    write_file(tmp_path / "x.bin", "bef\udc80re")
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / "x.bin") as temporary:
        temporary.write_bytes(b"af")
        raise KeyboardInterrupt
    with pytest.raises(RuntimeError), whole_files(tmp_path) as staging:
        (staging / "x.bin").write_bytes(b"after")
        raise RuntimeError
    assert os.listdir(tmp_path) == ["x.bin"] and (tmp_path / "x.bin").read_text() == "bef\\udc80re"


def test_files_have_the_rights_of_the_umask_whoever_wrote_them(tmp_path):
    before = os.umask(0o027)
    try:
        with whole_files(tmp_path / "a") as staging:
            (staging / "b").mkdir()
            (staging / "b" / "x.bin").touch(0o600)
        write_file(tmp_path / "y.bin", b"")
    finally:
        os.umask(before)
    assert [os.stat(tmp_path / name).st_mode & 0o777 for name in ("a/b/x.bin", "y.bin")] == [0o640, 0o640]


def test_the_files_that_vouch_for_the_others_come_last(tmp_path, monkeypatch):
    names, real = [], os.replace
    monkeypatch.setattr(
        os, "replace", lambda source, target: (names.append(os.path.basename(target)), real(source, target))
    )
    with whole_files(tmp_path, last=("config.json",)) as staging:
        for name in ("config.json", "a.bin", "z.bin"):
            (staging / name).write_bytes(b"x")
    assert [name for name in names if not name.endswith(UNFINISHED)] == ["a.bin", "z.bin", "config.json"]
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "config.json", "z.bin"]
