"""Runs from a bucket to a bucket, on a real S3 server, give the bytes of a local folder, also after failures."""

import gzip
import json
import threading
import time
from urllib.parse import parse_qs

import pytest

from generate.captions.run import run
from generate.sets.gallery import GalleryConfig
from generate.sets.gallery import run as gallery
from generate.sets.verify import VerifyConfig
from generate.sets.verify import run as verify
from imagetext import marker_index
from imagetext.outputs import remove
from imagetext.shards import read_markers
from imagetext.stores import files_below, files_of, read_bytes


def stored(root: str) -> dict[str, bytes]:
    return {file.path.removeprefix(f"{root}/"): read_bytes(file.path) for file in files_below(root)}


@pytest.fixture
def options(s3, captioner, make_tar, pictures, configure, tmp_path):
    """A configuration from the bucket to the bucket."""
    for name in ("00000", "00001"):
        with open(make_tar(name, [*pictures(3, int(name)), b"no picture"]), "rb") as file:
            s3.put(f"in/{name}.tar", file.read())
    return lambda **changes: configure(
        **{"input": [f"{s3.root}/in/*.tar"], "output": f"{s3.root}/out", "max_error_rate": 1, **changes}
    )


@pytest.mark.parametrize("format", ["webdataset", "parquet"])
def test_a_bucket_holds_what_a_folder_would(options, s3, tmp_path, files, format, capsys):
    assert run(options(format=format)) == 0
    assert run(options(format=format, output=tmp_path / "out")) == 0
    assert stored(f"{s3.root}/out") == files(tmp_path / "out")
    assert run(options(format=format)) == 0 and verify(VerifyConfig(folder=f"{s3.root}/out")) == 0
    assert gallery(GalleryConfig(folder=f"{s3.root}/out", pictures=3)) == 0
    assert b"<article" in read_bytes(f"{s3.root}/out/gallery.html")


def test_a_shard_whose_upload_fails_is_done_by_the_same_command_again(options, s3, tmp_path, files):
    s3.fail("PUT", "00001.tar", 503, times=1)
    code = run(options())
    assert code == 1 and "00001.done.json" not in stored(f"{s3.root}/out")
    assert run(options()) == 0 and run(options(output=tmp_path / "out")) == 0
    assert stored(f"{s3.root}/out") == files(tmp_path / "out")


def test_a_run_in_a_bucket_is_begun_anew_and_other_files_stay(options, s3, tmp_path, files):
    run(options())
    s3.put("out/notes.txt", b"mine")
    assert run(options(seed=1, overwrite=True)) == 0 and run(options(seed=1, output=tmp_path / "out")) == 0
    assert stored(f"{s3.root}/out") == {**files(tmp_path / "out"), "notes.txt": b"mine"}
    with pytest.raises(ValueError, match="uploads from this machine only"):
        run(options(push_to_hub="me/set"))


def test_a_start_lists_the_folder_once_and_asks_once_for_each_marker(options, s3):
    assert run(options()) == 0
    s3.requests.clear()
    assert run(options(dry_run=True)) == 0
    queries = [parse_qs(query) for method, path, query, _ in s3.requests if method == "GET"]
    listings = [query for query in queries if query.get("prefix") == ["out/"] and query.get("max-keys") != ["1"]]
    assert len(listings) == 1
    for name in ("00000.done.json", "00001.done.json"):
        assert (s3.count("GET", name), s3.count("HEAD", name)) == (1, 0)


def test_markers_that_the_index_has_are_not_read_again(options, s3, monkeypatch):
    def markers_read():
        reads = [path.rpartition("/")[2] for method, path, *_ in s3.requests if method == "GET"]
        s3.requests.clear()
        return sorted(name for name in reads if name.endswith(".done.json"))

    monkeypatch.setattr(marker_index, "FEW", 1)
    folder = f"{s3.root}/out"
    names = ["00000.done.json", "00001.done.json"]
    assert run(options()) == 0
    assert "markers.json.gz" in files_of(folder)  # written at the end
    markers_read()
    assert run(options(dry_run=True)) == 0
    assert markers_read() == []
    remove(f"{folder}/markers.json.gz")  # as after a run that did not reach its end
    assert run(options(dry_run=True)) == 0
    assert markers_read() == names and "markers.json.gz" not in files_of(folder)
    assert run(options()) == 0  # the index is written at the start
    assert markers_read() == names and "markers.json.gz" in files_of(folder)
    expected, index = read_markers(folder, indexed={}), read_bytes(f"{folder}/markers.json.gz")
    markers_read()
    assert run(options()) == 0 and read_markers(folder) == expected
    assert markers_read() == []
    # A marker that was written anew is read, and the index stays, because it has nearly all.
    s3.put("out/00001.done.json", json.dumps(expected["00001"] | {"rows": 7}).encode())
    assert read_markers(folder)["00001"]["rows"] == 7
    assert markers_read() == names[1:]
    s3.put("out/00001.done.json", json.dumps(expected["00001"], indent=1).encode())
    # An index that cannot be used is as good as none.
    too_large = gzip.compress(b" " * 100_000 + gzip.decompress(index))
    for damaged in (index[:-20], b"", b"text", gzip.compress(b"[1]"), gzip.compress(b'{"00000": 1}'), too_large):
        s3.put("out/markers.json.gz", damaged)
        markers_read()
        assert read_markers(folder) == expected
        assert markers_read() == names
    monkeypatch.setattr(marker_index, "FEW", 2)
    assert run(options(overwrite=True)) == 0
    assert "markers.json.gz" not in files_of(folder)


def test_more_markers_are_read_at_once_than_the_connections_that_botocore_keeps(s3, monkeypatch):
    names, lock, now, most = [f"{number:05d}" for number in range(32)], threading.Lock(), 0, 0
    marker = {"size": 5, "sha256": "", "rows": 0, "failed": 0, "captions": {}, "input": {}}
    for name in names:
        s3.put(f"out/{name}.tar", b"12345")
        s3.put(f"out/{name}.done.json", json.dumps({**marker, "file": f"{name}.tar"}).encode())

    def slow(method, path):
        nonlocal now, most
        if method == "GET" and path.endswith(".done.json"):
            with lock:
                now, most = now + 1, max(most, now + 1)
            time.sleep(0.2)
            with lock:
                now -= 1

    monkeypatch.setattr(s3, "fault", slow)
    assert [*read_markers(f"{s3.root}/out")] == names and most > 10
