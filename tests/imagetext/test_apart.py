"""An output that is the input, lies in it or holds it is refused, however the two paths are written."""

import os
import re

import pytest

from imagetext.apart import check_apart


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with two shards, a folder of pictures, and links to both."""
    for name in ("set/a.tar", "set/b.tar", "pictures/sub/x.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "link").symlink_to("set")
    (tmp_path / "own").mkdir()
    (tmp_path / "own/linked.tar").symlink_to("../set/a.tar")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "output, input, why",
    [
        ("set", "set/a.tar", "holds the"),
        ("set/", "set/a.tar", "holds the"),
        ("./set/../set", "set/b.tar", "holds the"),
        ("link", "set/a.tar", "holds the"),
        ("set", "link/a.tar", "holds the"),
        ("set", "own/linked.tar", "holds the"),
        ("own", "own/linked.tar", "holds the"),
        (".", "set/a.tar", "holds the"),
        ("file://{}/set", "set/a.tar", "holds the"),
        ("{}/set", "set//a.tar", "holds the"),
        ("pictures", "pictures/", "holds the pictures"),
        ("pictures/out", "pictures", "lies in a folder"),
        ("pictures/sub/new/out/", "./pictures", "lies in a folder"),
        ("s3://b/set", "s3://b/set/a.tar", "holds the"),
        ("s3://b/set/", "s3://b/x/../set//a.tar", "holds the"),
        ("s3://b", "s3://b/set/a.tar", "holds the"),
        ("s3://b/pictures/out", "s3://b/pictures", "lies in a folder"),
    ],
)
def test_an_output_that_is_an_input_is_refused(place, output, input, why):
    with pytest.raises(ValueError, match=f"output .*: .*{why}.*{re.escape(input)}.*; give a way"):
        check_apart(output.format(place), ["scenes:test,n=1", "gone/x.tar", input], "give a way")


@pytest.mark.parametrize(
    "output, input",
    [
        ("set/out", "set/a.tar"),
        ("new", "set/a.tar"),
        ("set2", "set"),
        ("scenes", "scenes:test,n=1"),
        ("sets", "own/linked.tar"),
        ("s3://b/set2", "s3://b/set/a.tar"),
        ("s3://c/set", "s3://b/set/a.tar"),
        ("s3://b/set/out", "s3://b/set/a.tar"),
        ("set", "s3://b/set"),
    ],
)
def test_outputs_beside_an_input_are_allowed(place, output, input):
    check_apart(output, [input])


def test_one_file_by_two_spellings_is_known_by_its_number(place, monkeypatch):
    """As on a file system that ignores capitals; the one of the test may not."""
    monkeypatch.setattr(
        os, "stat", lambda path, stat=os.stat, **options: stat(str(path).replace("SET", "set"), **options)
    )
    with pytest.raises(ValueError, match="output SET: holds the shards"):
        check_apart("SET", ["set/a.tar"])
    check_apart("SET", ["own"])
