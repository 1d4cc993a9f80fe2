import json
import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagetext.readers.folder_rows import FolderRows
from imagetext.readers.folders import list_folder
from imagetext.readers.table_flags import Columns
from imagetext.sources import read_samples


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pics").mkdir()
    return tmp_path / "pics"


def put(folder, name, data):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def read(folder, *images) -> list:
    images = tuple(map(str, images))
    return list(FolderRows(str(folder), tuple(list_folder(str(folder), images)), images))


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


def test_a_caption_beside_a_picture_ends_only_at_line_breaks(folder, picture):
    put(folder, "a.jpg", picture(1))
    put(folder, "a.txt", "one\u2028half\x0cmore\u0085of it\rtwo\r\nthree\n".encode())
    (sample,) = read(folder)
    assert sample.captions == ("one\u2028half\x0cmore\u0085of it", "two", "three")


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
    lines = [
        {"file_name": "a.jpg", "text": "one", "license": "CC0"},
        {"file_name": "sub/b.jpg", "captions": ["two", "three"]},
        {"file_name": "gone.jpg", "text": "four"},
        {"text": "no name"},
        {"file_name": "c.jpg", "text": 5},
    ]
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


def test_the_user_names_the_columns_of_metadata_with_captions(folder, picture):
    for name in "ab":
        put(folder, f"{name}.jpg", picture(1))
    lines = [
        {"file_name": "a.jpg", "short": "one", "long": ["two", "three"], "captions": ["four"]},
        {"file_name": "b.jpg", "text": "five"},
    ]
    put(folder, "metadata.jsonl", "\n".join(map(json.dumps, lines)).encode())
    (shard,) = read_samples(str(folder), columns=Columns(captions=("long", "short")))
    a, b = shard
    assert a.captions == ("two", "three", "one") and a.meta["other_captions"] == ["four"]
    assert b.captions == ("five",)


def test_a_named_column_that_no_metadata_have_is_refused(folder, picture):
    put(folder, "a.jpg", picture())
    put(folder, "metadata.csv", b"file_name,text\na.jpg,one\n")
    with pytest.raises(ValueError, match="--caption-column txt: its metadata have no such column; they have .*'text'"):
        read_samples(str(folder), columns=Columns(captions=("txt",)))


def test_metadata_may_have_suffixes_in_the_other_case(folder, picture):
    put(folder, "a.jpg", picture())
    put(folder, "metadata.csv", b"file_name,text\na.JPG,one\n")
    (record,) = read(folder)
    assert record.captions == ("one",) and record.image == picture()


def test_metadata_may_separate_folders_as_windows_does(folder, picture):
    put(folder, "sub/a.jpg", picture(1))
    put(folder, "b\\c.jpg", picture(2))
    put(folder, "metadata.csv", b"file_name,text\nsub\\a.jpg,one\nb\\c.jpg,two\n")
    assert [(sample.key, sample.captions) for sample in read(folder)] == [("b\\c", ("two",)), ("sub/a", ("one",))]


def test_linked_folders_are_read_once(folder, tmp_path, picture):
    put(tmp_path, "elsewhere/a.jpg", picture())
    os.symlink(tmp_path / "elsewhere", folder / "linked")
    os.symlink(folder, folder / "loop")
    assert [sample.key for sample in read(folder, tmp_path / "elsewhere")] == ["linked/a"]


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
    assert len({json.dumps(each_stamp) for each_stamp in stamps}) == 4


def test_a_folder_of_real_pictures_is_read_whole(wiki):
    samples = read(wiki)
    assert len(samples) == 21 and samples[0].key == "Cesenatico" and all(sample.image for sample in samples)


def test_pictures_are_known_by_their_bytes_and_all_else_is_named(folder, picture, caplog):
    for number, name in enumerate(("noext", "photo.jpg?w=300", "photo.jpg_large", "image.php")):
        put(folder, name, picture(number))
    put(folder, "A.JPG", picture(4))
    put(folder, "A.TXT", b"upper")
    put(folder, "raw.dng", picture(5, "TIFF"))  # files that cameras write beside a picture
    for name in ("x.psd", "y.psd", "p.svg", "B.txt", "empty", "data.json", "BMW.md", "Thumbs.db", "@eaDir/a.jpg"):
        put(folder, name, b"" if name == "empty" else b"BMW or P6 or 8BPS")
    records = read(folder)
    assert {sample.key: sample.captions for sample in records} == {
        "A": ("upper",),
        "noext": (),
        "photo.jpg?w=300": (),
        "photo.jpg_large": (),
        "image": (),
    }
    assert all(sample.image for sample in records)
    by_bytes, others = caplog.messages
    assert "4 files are pictures by their bytes" in by_bytes and "1 .jpg_large (photo.jpg_large)" in by_bytes
    assert "8 files are ignored, because they are no pictures and have the name of none: 2 .psd (x.psd), " in others
    assert all(
        f"1 {name}" in others
        for name in (".dng", ".svg", ".txt (B.txt)", "no suffix (empty)", ".json (data.json)", ".md")
    )


@pytest.mark.parametrize("given", [".", "./", "../pics", "{}"])
@pytest.mark.parametrize("name", ["sub/a.jpg", "./sub/../sub/a.jpg", "{}/sub/a.jpg"])
def test_metadata_find_their_pictures_however_the_folder_is_given(folder, picture, monkeypatch, given, name):
    put(folder, "sub/a.jpg", picture())
    put(folder, "metadata.jsonl", json.dumps({"file_name": name.format(folder), "text": "one"}).encode())
    monkeypatch.chdir(folder)
    (shard,) = read_samples(given.format(folder))
    assert [(record.key, record.captions) for record in shard] == [("sub/a", ("one",))]


def test_empty_cells_at_the_end_of_metadata_may_be_left_out(folder, picture):
    """As spreadsheets do."""
    put(folder, "a.jpg", picture())
    put(folder, "metadata.csv", b"file_name,text,price\na.jpg,one\n")
    (record,) = read(folder)
    assert record.captions == ("one",) and record.meta["price"] == ""


def test_files_beside_a_picture(folder, picture, caplog):
    for name in ("a.jpg", "b.png", "c.webp", "cafe\u0301.jpg"):
        put(folder, name, picture())
    put(folder, "a.caption", b"one\ntwo")  # kohya's
    put(folder, "b.png.txt", "drei über".encode("utf-16"))
    put(folder, "b.caption", b"not this one")
    put(folder, "caf\u00e9.txt", b"composed")  # macOS writes é as two characters in file names
    theirs = {"key": "000", "caption": "alt", "sha256": "0", "width": 3, "error_message": None, "uid": "u"}
    put(folder, "c.json", json.dumps(theirs).encode())  # img2dataset's
    put(folder, "b.png.json", b'{"title": "b.png"}')  # Google's, whose title is not a caption
    put(
        folder, "a.json", json.dumps({"imageData": "A" * (1 << 20)}).encode()
    )  # labelme's, with the picture in it again
    samples = {sample.key: sample for sample in read(folder)}
    assert [samples[key].captions for key in samples] == [("one", "two"), ("drei über",), ("alt",), ("composed",)]
    assert samples["c"].meta == {
        "uid": "u",
        "source": "c.webp",
        "key": "000",
        "error_message": None,
        "source_fields": {"sha256": "0", "width": 3},
    }
    assert ["2 files are ignored" in message and "2 .json" in message for message in caplog.messages] == [True]


def test_a_device_or_a_pipe_is_no_file_of_captions(folder, picture, monkeypatch):
    monkeypatch.setattr("imagetext.limits.TEXT", 9)
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        put(folder, name, picture())
    os.mkfifo(folder / "a.txt")
    os.mkfifo(folder / "metadata.jsonl")
    (folder / "a.json").symlink_to("/dev/zero")
    (folder / "b.txt").symlink_to("/dev/zero")
    put(folder, "c.txt", b"one")
    rows = list_folder(str(folder))
    put(folder, "c.txt", b"one, and it has grown")
    assert [sample.captions for sample in FolderRows(str(folder), tuple(rows))] == [(), (), ("one, and",)]


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_metadata_of_every_kind(folder, picture, suffix):
    rows = [
        {"file_name": name, "text": f"of {name}", "error": 0.5, "uid": f"u{name}"}
        for name in ("a.jpg", "sub/b.png", "gone.jpg")
    ]
    for name in ("a.jpg", "sub/b.png"):
        put(folder, name, picture())
    data = {
        "jsonl": "\n".join(map(json.dumps, rows)).encode(),
        "csv": ("\ufeff" + "\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)])).encode(
            "utf-8"
        ),
    }
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), folder / "metadata.parquet")
    else:
        put(folder, f"metadata.{suffix}", data[suffix])
    first, gone, second = read(folder)
    assert (first.key, first.captions, second.key, second.captions) == ("a", ("of a.jpg",), "sub/b", ("of sub/b.png",))
    assert (
        float(first.meta["source_fields"]["error"]) == 0.5
        and first.meta["uid"] == "ua.jpg"
        and not first.error
        and first.image
    )
    assert gone.captions == ("of gone.jpg",) and "missing picture file" in gone.error


def test_metadata_that_says_the_same_in_two_formats_says_it_once(folder, picture):
    put(folder, "a.jpg", picture())
    put(folder, "metadata.jsonl", b'{"file_name": "a.jpg", "text": "one"}\n{"file_name": "a.jpg", "text": "three"}\n')
    put(folder, "metadata.csv", b"file_name,text\na.jpg,one\na.jpg,two\na.jpg,two\n")
    (sample,) = read(folder)
    assert sample.captions == ("one", "two", "two", "three")


def test_a_table_called_metadata_that_names_no_files_is_left_out(folder, picture, caplog):
    put(folder, "a.jpg", picture())
    put(folder, "a.txt", b"one")
    put(folder, "metadata.csv", b"id,text\n1,x\n")
    (sample,) = read(folder)
    assert sample.captions == ("one",)
    assert (
        "metadata.csv: no column file_name; it has 'id', 'text'; it is not read" in caplog.text
        and "1 .csv" in caplog.text
    )


def test_the_same_folder_elsewhere_gives_the_same_records(folder, tmp_path, picture):
    put(folder, "sub/a.jpg", picture())
    put(folder, "metadata.jsonl", b'{"file_name": "sub/a.jpg", "text": "one"}')
    shutil.copytree(folder, tmp_path / "other")
    assert read(folder) == read(tmp_path / "other") and read(folder)[0].path != read(tmp_path / "other")[0].path
