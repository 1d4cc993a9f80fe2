import json
import os

import pytest

from imagetext.folders import FolderRows, list_folder


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pics").mkdir()
    return tmp_path / "pics"


def put(folder, name, data):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def read(folder) -> list:
    return list(FolderRows(str(folder), tuple(list_folder(str(folder)))))


def test_pictures_sorted_with_the_text_beside_them(folder, picture):
    put(folder, "b.JPG", picture(1))
    put(folder, "sub/a.png", picture(2, "PNG"))
    put(folder, "b.txt", b"\xef\xbb\xbfone\r\n\n two \n")
    for name in ("README.md", "notes.txt", ".hidden.jpg", ".git/x.jpg", "sub/._a.png"):
        put(folder, name, b"x")
    first, second = read(folder)
    assert (first.key, first.image, first.captions) == ("b", picture(1), ("one", "two"))
    assert (second.key, second.image, second.captions) == ("sub/a", picture(2, "PNG"), ())
    assert first.meta == {"uid": "b", "source": "b.JPG"}


def test_keys_keep_the_suffix_where_two_collide(folder):
    for name in ("a.jpg", "a.png", "b.jpg", "s/a.jpg", "c.d.jpg"):
        put(folder, name, b"x")
    assert [sample.key for sample in read(folder)] == ["a.jpg", "a.png", "b", "c.d", "s/a"]


def test_bad_pictures_are_rows_too(folder):
    put(folder, "a.jpg", b"a text")
    put(folder, "b.png", b"")
    os.symlink("nowhere", folder / "c.jpg")
    first, second, third = read(folder)
    assert first.image == b"a text" and second.image == b"" and not first.error
    assert third.image is None and "missing picture file" in third.error


def test_metadata_as_datasets_reads_it(folder, picture):
    put(folder, "a.jpg", picture(1))
    put(folder, "a.txt", b"not this one")
    put(folder, "sub/b.jpg", picture(2))
    put(folder, "c.jpg", picture(3))
    lines = [{"file_name": "a.jpg", "text": "one", "license": "CC0"}, {"file_name": "sub/b.jpg", "captions": ["two", "three"]},
             {"file_name": "gone.jpg", "text": "four"}, {"text": "no name"}, {"file_name": "c.jpg", "text": 5}]
    put(folder, "metadata.jsonl", "\n".join([*map(json.dumps, lines), "{"]).encode())
    samples = {sample.key: sample for sample in read(folder)}
    assert list(samples) == ["a", "c", "gone", "metadata-000000003", "metadata-000000005", "sub/b"]
    assert samples["a"].captions == ("one",) and samples["a"].meta["license"] == "CC0"
    assert samples["sub/b"].captions == ("two", "three") and samples["sub/b"].image == picture(2)
    assert samples["gone"].image is None and "gone.jpg" in samples["gone"].error
    assert samples["c"].image == picture(3) and samples["c"].captions == () and samples["c"].meta["text"] == 5
    for number in (3, 5):
        assert f"metadata.jsonl:{number + 1}" in samples[f"metadata-00000000{number}"].error


def test_metadata_in_a_subfolder_is_relative_to_it(folder, picture):
    put(folder, "sub/b.jpg", picture())
    put(folder, "sub/metadata.jsonl", b'{"file_name": "b.jpg", "text": "one"}\n{"file_name": "b.jpg", "text": "two"}')
    (sample,) = read(folder)
    assert sample.captions == ("one", "two")


def test_linked_folders_are_read_once(folder, tmp_path, picture):
    put(tmp_path, "elsewhere/a.jpg", picture())
    os.symlink(tmp_path / "elsewhere", folder / "linked")
    os.symlink(folder, folder / "loop")
    assert [sample.key for sample in read(folder)] == ["linked/a"]


def test_the_stamp_sees_every_change(folder, picture):
    def stamp():
        return FolderRows(str(folder), tuple(list_folder(str(folder)))).stamp()

    put(folder, "a.jpg", picture(1))
    stamps = [stamp()]
    assert stamps[0] == stamp() and stamps[0]["size"] == len(picture(1))
    put(folder, "a.txt", b"one")
    stamps.append(stamp())
    os.rename(folder / "a.jpg", folder / "b.jpg")
    stamps.append(stamp())
    put(folder, "metadata.jsonl", b'{"file_name": "b.jpg", "text": "one"}')
    stamps.append(stamp())
    assert len({json.dumps(one) for one in stamps}) == 4


def test_real_pictures(wiki):
    samples = read(wiki)
    assert len(samples) == 21 and samples[0].key == "Cesenatico" and all(sample.image for sample in samples)
