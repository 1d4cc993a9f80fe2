import gzip
import json
import os
import pickle
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.registry import _registry, known_implementations

from imagetext import stores
from imagetext.picture_files import read_picture
from imagetext.readers.suffixes import TABLE_SUFFIXES, TAR_SUFFIXES
from imagetext.sample import Record
from imagetext.shards import ShardWriter
from imagetext.sources import read_samples
from imagetext.stores import ATTEMPTS, LISTED, StoreError, entry, join, open_file, plain_path


def fill(folder: Path, picture, write_tar) -> list[str]:
    """Write a file of each kind that a SPEC names, with pictures in it or beside it."""
    folder.mkdir()
    (folder / "pics/sub").mkdir(parents=True)
    for number, name in enumerate(("a.jpg", "sub/b.png", "sub/.c.jpg")):
        (folder / "pics" / name).write_bytes(picture(number))
    (folder / "pics/a.txt").write_bytes("\ufeffone\r\ntwo".encode())
    (folder / "pics/sub/metadata.jsonl").write_text(
        '{"file_name": "b.png", "text": "b"}\n{"file_name": "gone.png", "text": "c"}\n'
    )
    for name, data in (("odd", picture(5)), ("notes.md", b"hi"), ("empty", b""), ("a.json", b'{"uid": "u"}')):
        (folder / "pics" / name).write_bytes(data)
    with ShardWriter(folder / "run", "0") as writer:
        writer.write(Record("k", picture(6), ("alt",), columns={"syn_text_x": ("one",)}))
    for number in range(3):
        files = [("a.jpg", picture(number)), ("a.txt", b"a"), ("a.npz", b"npz"), ("b.jpg", b"no picture")]
        write_tar(folder / f"0000{number}.tar", files)
    rows = [
        {"image": "pics/a.jpg", "text": "one"},
        {"image": "pics/gone.jpg", "text": "two"},
        {"uid": "u", "image": "pics/sub/b.png"},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "t.jsonl").write_text(lines)
    (folder / "z.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    with pa.OSFile(str(folder / "y.jsonl.zst"), "wb") as file, pa.CompressedOutputStream(file, "zstd") as stream:
        stream.write(lines.encode())
    (folder / "c.csv").write_text("path,text\npics/a.jpg,one\n")
    pictures = [{"bytes": picture(1), "path": None}, {"bytes": None, "path": "pics/a.jpg"}]
    pq.write_table(pa.table({"image": pictures}), folder / "p.parquet")
    (folder / "info.json").write_text(json.dumps({"lengths": {"00000.tar": 2, "z.jsonl.gz": "0"}, "totalLength": "2"}))
    described = [
        {"example_id": split, "split": split, "image_file": "pics/a.jpg", "description": "x"}
        for split in ("train", "test")
    ]
    (folder / "docci_descriptions.jsonlines").write_text("\n".join(map(json.dumps, described)))
    (folder / "z.tgz").write_bytes(gzip.compress((folder / "00000.tar").read_bytes()))
    return [
        "pics",
        "run",
        "z.tgz",
        "0000{0..2}.tar",
        "*.tar",
        "0000[12].tar",
        "**/t.jsonl",
        "z.jsonl.gz",
        "y.jsonl.zst",
        "c.csv",
        "p.parquet",
        "info.json",
        "docci:docci_descriptions.jsonlines#test",
    ]


def put(folder: Path, s3) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            s3.put(f"in/{path.relative_to(folder)}", path.read_bytes())


def spec_in(root: str, spec: str) -> str:
    kind, _, name = spec.rpartition(":")
    return f"{kind}:{root}/{name}" if kind else f"{root}/{name}"


def test_a_store_reads_as_this_machine_does(tmp_path, picture, write_tar, s3):
    specs = fill(tmp_path / "in", picture, write_tar)
    put(tmp_path / "in", s3)
    for spec in specs:
        local, remote = (read_samples(spec_in(root, spec)) for root in (str(tmp_path / "in"), f"{s3.root}/in"))
        assert [shard.name for shard in local] == [shard.name for shard in remote] and local, spec
        for local_shard, other in zip(local, remote):
            expected = [repr(sample).replace(f"{tmp_path}/in", f"{s3.root}/in") for sample in local_shard]
            for text, sample in zip(
                expected, other, strict=True
            ):  # what follows in brackets differs where a picture is missing
                assert re.sub(r"\([^()]*\)(['\"]\))", r"\1", repr(sample)) == re.sub(
                    r"\([^()]*\)(['\"]\))", r"\1", text
                )
            assert list(pickle.loads(pickle.dumps(other))) == list(other)
        assert all("etag" in shard.stamp or "listing" in shard.stamp for shard in remote)
    assert {signed for _, _, _, signed in s3.requests} == {"mine"}  # by the key of the environment


def test_file_urls_are_paths(tmp_path, picture, write_tar):
    for spec in fill(tmp_path / "in", picture, write_tar):
        path = spec_in(str(tmp_path / "in"), spec)
        shards = read_samples(spec_in(f"file://{tmp_path}/in", spec))
        assert shards == read_samples(path) and list(map(list, shards)) == list(map(list, read_samples(path)))
    (tmp_path / "u.jsonl").write_text(json.dumps({"image": f"file://{tmp_path}/in/pics/a.jpg"}))
    assert list(read_samples(str(tmp_path / "u.jsonl"))[0])[0].image == picture(0)


def test_pictures_of_a_table_here_may_be_in_a_store(tmp_path, picture, s3):
    urls = [s3.put(f"{number:03d}.jpg", picture(number)) for number in range(50)]
    (tmp_path / "p.jpg").write_bytes(picture(77))
    rows = [{"image": url} for url in urls]
    rows[20:20] = [{"image": "p.jpg"}, {"image": f"{s3.root}/gone.jpg"}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    samples = list(read_samples(str(tmp_path / "t.jsonl"), [tmp_path, s3.root])[0])
    assert [sample.key for sample in samples] == [f"t-{number:09d}" for number in range(52)]
    assert samples[21].image is None and "missing picture file: 's3://" in samples[21].error
    del samples[21]
    assert [sample.image for sample in samples] == [
        *map(picture, range(20)),
        picture(77),
        *map(picture, range(20, 50)),
    ]
    (tmp_path / "u.jsonl").write_text('{"image": "000.jpg"}')
    assert [sample.image for sample in read_samples(str(tmp_path / "u.jsonl"), s3.root)[0]] == [picture(0)]


def test_problems_with_a_spec(tmp_path, s3):
    s3.put("00000.tar", b"")
    s3.put("empty/readme.md", b"")
    with pytest.raises(ValueError) as caught:
        read_samples(
            [
                f"{s3.root}/0000{{0,1}}.tar",
                f"{s3.root}/*.none",
                f"{s3.root}/empty",
                f"{s3.root}/gone",
                "ftp://x/y.tar",
                str(Path("s3://bucket/x.tar")),
                "s3://no-such-bucket/*.tar",
            ]
        )
    assert str(caught.value).replace(s3.root, "ROOT").split("\n") == [
        "ROOT/00001.tar: no such file",
        "ROOT/*.none: nothing matches ROOT/*.none",
        "ROOT/empty: no pictures in this folder",
        f"ROOT/gone: no such folder, and not a {', '.join((*TAR_SUFFIXES, *TABLE_SUFFIXES))} file, "
        "an info.json or a folder of pictures",
        "ftp://x/y.tar: ftp:// is none of file://, s3://, gs://, hf://",
        "s3:/bucket/x.tar: a URL has two slashes; pathlib.Path removes one, so give it as text",
        "s3://no-such-bucket/*.tar: nothing matches s3://no-such-bucket/*.tar",
    ]
    s3.fail("HEAD", "00000.tar", 403)
    with pytest.raises(ValueError, match=r"00000.tar: PermissionError: Forbidden"):
        read_samples(f"{s3.root}/00000.tar")


def test_a_missing_library_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(known_implementations, "gs", {"class": "no_such_library.FileSystem", "err": "no library"})
    monkeypatch.delitem(_registry, "gs", raising=False)
    reason = r"gs:// needs gcsfs: pip install 'capsmith\[remote\]'"
    with pytest.raises(ValueError, match=reason):
        read_samples("gs://bucket/*.tar")
    (tmp_path / "t.jsonl").write_text('{"image": "gs://bucket/a.jpg"}')
    with pytest.raises(ValueError, match=reason):  # before any work
        read_samples(str(tmp_path / "t.jsonl"), "gs://bucket")


def test_paths_of_folders_and_buckets():
    assert (
        plain_path("file:///a/b") == "/a/b"
        and plain_path(Path("a/b")) == "a/b"
        and plain_path("s3://a/b") == "s3://a/b"
    )
    assert join("s3://a/b", "../c/d.jpg") == "s3://a/c/d.jpg" and join("s3://a/b", "gs://c/d") == "gs://c/d"
    assert (
        join("s3://a/b", "/c/d") == "/c/d"
        and join("a", "file:///c") == "/c"
        and join("a", "b") == os.path.join("a", "b")
    )


def test_many_named_files_are_looked_up_in_a_listing(s3):
    for number in range(LISTED + 3):
        s3.put(f"d/{number:05d}.tar", b"")
    s3.requests.clear()
    shards = read_samples(f"{s3.root}/d/{{00000..{LISTED + 2:05d}}}.tar")
    assert len(shards) == LISTED + 3 and len(s3.requests) < 5
    assert shards == read_samples(f"{s3.root}/d/*.tar")
    with pytest.raises(ValueError, match=f"{LISTED + 3:05d}.tar: no such file"):
        read_samples(f"{s3.root}/d/{{00000..{LISTED + 3:05d}}}.tar")


def test_brackets_of_a_folder_that_exists_are_no_pattern(s3):
    for name in ("set [v2]/0.tar", "set [v2]/1.tar", "set v/2.tar"):
        s3.put(name, b"")
    for pattern, names in (("set [v2]/*.tar", ["0", "1"]), ("set [v]/*.tar", ["2"]), ("set [[]v2]/[1].tar", ["1"])):
        assert [shard.name for shard in read_samples(f"{s3.root}/{pattern}")] == names


# ---- faults ------------------------------------------------------------------------------------------------------

FAULTS = [403, 404, 500, 503, "cut", "less", "hang"]


@pytest.fixture
def shard(s3, picture, write_tar, tmp_path):
    files = [(f"{number:03d}.jpg", picture(number)) for number in range(20)]
    s3.put("x.tar", open(write_tar(tmp_path / "x.tar", files), "rb").read())
    (shard,) = read_samples(f"{s3.root}/x.tar")
    return shard


@pytest.mark.parametrize("kind", FAULTS)
def test_a_read_that_fails_is_tried_again(s3, shard, kind, caplog):
    expected = list(shard)
    s3.fail("GET", "x.tar", kind, times=1 if kind == "hang" else ATTEMPTS - 1)
    assert list(shard) == expected
    assert f"{s3.root}/x.tar" in caplog.text and f"attempt 2 of {ATTEMPTS}" in caplog.text


@pytest.mark.parametrize("kind", FAULTS[:-1])
def test_a_read_that_keeps_failing_fails_the_shard_and_no_row(s3, shard, kind):
    s3.fail("GET", "x.tar", kind)
    s3.requests.clear()
    done = []
    with pytest.raises(StoreError, match=f"{s3.root}/x.tar: .* \\(in {ATTEMPTS} attempts\\)"):
        for sample in shard:
            done.append(sample)
    assert done == [] and s3.count("GET", "x.tar") == ATTEMPTS


@pytest.mark.parametrize("kind", [403, 404, 503])
def test_a_listed_shard_that_is_gone(s3, shard, kind):
    s3.fail("HEAD", "x.tar", kind)
    s3.requests.clear()
    with pytest.raises(StoreError, match=f"{s3.root}/x.tar: "):
        list(shard)
    assert s3.count("HEAD", "x.tar") == ATTEMPTS


@pytest.mark.parametrize("kind", [503, "cut"])
def test_a_picture_that_cannot_be_read_fails_the_shard(s3, picture, kind):
    for number in range(3):
        s3.put(f"pics/{number}.jpg", picture(number))
    (shard,) = read_samples(f"{s3.root}/pics")
    expected = list(shard)
    s3.fail("GET", "1.jpg", kind, times=ATTEMPTS - 1)
    assert list(shard) == expected
    s3.fail("GET", "1.jpg", kind)
    with pytest.raises(StoreError, match="pics/1.jpg: "):
        list(shard)


@pytest.mark.parametrize(
    "spec, method, kind",
    [("x.tar", "HEAD", 500), ("x.tar", "HEAD", 503), ("*.tar", "GET", 503), ("*.tar", "GET", "cut")],
)
def test_a_look_that_fails_is_tried_again_and_is_then_no_mistake_of_the_command(s3, shard, spec, method, kind):
    shards, name = read_samples(f"{s3.root}/{spec}"), "x.tar" if method == "HEAD" else s3.bucket
    s3.fail(method, name, kind, times=ATTEMPTS - 1)
    assert read_samples(f"{s3.root}/{spec}") == shards
    s3.fail(method, name, kind)
    with pytest.raises(StoreError, match=f"{s3.root}.*in {ATTEMPTS} attempts") as caught:
        read_samples([f"{s3.root}/gone.none", f"{s3.root}/{spec}"])
    assert not isinstance(caught.value, ValueError)


def test_a_store_that_fails_at_a_listed_table_is_no_mistake_of_the_command(s3):
    s3.put("t.jsonl", b'{"image": "a.jpg"}')
    s3.put("info.json", b'{"lengths": {"t.jsonl": 1, "notes.md": 1}}')
    s3.fail("GET", "t.jsonl", 503)
    with pytest.raises(StoreError, match=f"{s3.root}/t.jsonl: .*in {ATTEMPTS} attempts") as caught:
        read_samples(f"{s3.root}/info.json")
    assert not isinstance(caught.value, ValueError)


def test_a_look_that_is_refused_is_not_tried_again(s3, shard, monkeypatch):
    class NoCredentialsError(Exception):
        pass

    s3.fail("HEAD", "x.tar", 403)
    s3.requests.clear()
    with pytest.raises(ValueError, match="x.tar: PermissionError"):
        read_samples(f"{s3.root}/x.tar")
    assert s3.count("HEAD", "x.tar") == 1

    def nobody(*_):
        requests.append(1)
        raise NoCredentialsError("none")

    requests = []
    monkeypatch.setattr(stores, "_info", nobody)
    with pytest.raises(ValueError, match="x.tar: NoCredentialsError: none"):
        read_samples(f"{s3.root}/x.tar")
    assert len(requests) == 1


def test_a_picture_that_is_not_there_is_a_row_and_is_asked_for_once(s3, picture):
    s3.put("0.jpg", picture(0))
    for method in ("HEAD", "GET"):  # releases of s3fs begin with one or the other
        s3.fail(method, "0.jpg", 404)
    with pytest.raises(ValueError, match="missing picture file"):
        read_picture(f"{s3.root}/0.jpg")
    assert s3.count("HEAD", "0.jpg") + s3.count("GET", "0.jpg") == 1


@pytest.mark.parametrize("name", ["t.jsonl", "z.jsonl.gz", "p.parquet"])
def test_tables_fail_as_a_whole_too(s3, name, tmp_path, picture, write_tar):
    fill(tmp_path / "in", picture, write_tar)
    put(tmp_path / "in", s3)
    (shard,) = read_samples(f"{s3.root}/in/{name}")
    expected = list(shard)
    s3.fail("GET", name, 503, times=2)
    assert list(shard) == expected
    s3.fail("GET", name, 503)
    with pytest.raises(StoreError, match=f"{name}: "):
        list(shard)


def test_a_file_that_changes_while_it_is_read(s3, monkeypatch):
    url = s3.put("x.bin", b"a" * 100)
    with open_file(url, 10) as file:
        assert file.read(10) == b"a" * 10
        s3.put("x.bin", b"b" * 100)
        with pytest.raises(StoreError, match="x.bin: changed while it was read"):
            file.read(10)


def test_what_is_read_is_what_is_asked_for(s3):
    data = os.urandom(1000)
    url = s3.put("x.bin", data)
    s3.requests.clear()
    with open_file(url, 100) as file:
        assert file.read(10) == data[:10] and file.read(90) == data[10:100] and s3.count("GET") == 1
        file.seek(-30, os.SEEK_END)
        assert file.read() == data[-30:] and file.read() == b"" and s3.count("GET") == 2
        file.seek(50)
        assert file.read(500) == data[50:550] and file.tell() == 550
    assert entry(url).stamp["size"] == 1000


def test_a_bug_is_no_fault_of_the_store(monkeypatch):
    def broken():
        raise MemoryError

    with pytest.raises(MemoryError):
        stores.call_store("s3://a/b", broken, attempts=3)
