"""Positions of a tar's files: for each sample as it is read, whatever the tar looks like."""

import io
import tarfile

import pytest

from finetune.tar_files import TarFiles, with_tar_files
from imagetext.sources import read_samples


def write(path, files):
    with tarfile.open(path, "w") as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            if data is None:
                member.type, member.linkname = tarfile.SYMTYPE, "elsewhere"
            else:
                member.size = len(data)
            archive.addfile(member, None if data is None else io.BytesIO(data))


def test_places_hold_the_files_of_their_sample(tmp_path, picture):
    pictures = [picture(seed) for seed in range(5)]
    write(
        tmp_path / "0.tar",
        [
            ("a.jpg", pictures[0]),
            ("a.txt", b"one"),
            ("a.npz", b"first"),
            ("README", b"no suffix"),
            ("a.jpg", pictures[1]),
            ("a.txt", b"two"),  # the same key again
            ("folder/b.PNG", pictures[2]),
            ("folder/b.json", b'{"source": "x"}'),
            ("folder/b.PNG.txt", b"three"),
            ("folder/b.seg.npz", b"second"),
            ("c.input.jpg", pictures[3]),
            ("c.syn.json", b"{}"),
            ("long" * 60 + ".jpg", pictures[4]),
            ("d.txt", b"no picture"),
        ],
    )
    entries = list(with_tar_files(read_samples(str(tmp_path / "0.tar"))[0]))
    assert [sample.image for sample, _ in entries] == [*pictures, None]
    for sample, tar_files in entries:
        assert tar_files.read("picture").get("picture") == sample.image
        assert tar_files.read(*sample.members) == sample.members
    assert entries[1][1].read("txt") == {"txt": b"two"} and entries[4][1].read("txt") == {}
    assert entries[2][1].read("txt") == {"txt": b"three"}


def test_links_are_of_samples_with_an_error(tmp_path, picture):
    write(tmp_path / "0.tar", [("a.jpg", None), ("a.txt", b"one"), ("b.jpg", picture(1)), ("b.txt", b"two")])
    (first, _), (second, places) = with_tar_files(read_samples(str(tmp_path / "0.tar"))[0])
    assert "not a regular file" in first.error and places.read("picture", "txt") == {
        "picture": second.image,
        "txt": b"two",
    }


def test_what_is_no_tar_has_no_places(tmp_path):
    assert all(places is None for _, places in with_tar_files(read_samples("scenes:train,n=2,size=32")[0]))
    (tmp_path / "x.tar").write_bytes(b"123")
    with pytest.raises(ValueError, match="x.tar: has become shorter"):
        TarFiles(str(tmp_path / "x.tar"), {"txt": (0, 9)}).read("txt")
