import bz2
import gzip
import io
import json
import tarfile
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest

from imagetext.readers.tar_members import split_name
from imagetext.readers.tars import TarRows
from imagetext.sources import read_samples


def read(path) -> list:
    return list(TarRows(str(path)))


def ours(**fields) -> bytes:
    """Return the `json` of a record as we write it."""
    return json.dumps(
        {
            "uid": "u",
            "sha256": "",
            "width": 0,
            "height": 0,
            "captions": [],
            "error": "",
            "source": "s",
            "caption_scores": {},
            **fields,
        }
    ).encode()


def test_samples_of_a_shard(tmp_path, picture, write_tar):
    files = [
        ("a/1.JPG", picture(1)),
        ("a/1.txt", b"a dog\n"),
        ("a/1.json", b'{"uid": "u1", "license": "CC0"}'),
        ("a/1.syn.json", b'{"syn_text_x": ["one"]}'),
        ("a/1.npz", b"\0npz"),
        ("a/1.url.txt", b"http://e.org"),
        ("2.png", picture(2, "PNG")),
        ("2.json", b'{"caption": "from json", "key": "2"}'),
        ("3.webp", picture(3, "WEBP")),
        ("4.txt", "grün\nund rot".encode()),
    ]
    path = write_tar(tmp_path / "00000.tar", files)
    first, second, third, fourth = read(path)
    assert first.key == "a/1" and first.image == picture(1) and first.captions == ("a dog",)
    assert first.members == {"npz": b"\0npz", "url.txt": b"http://e.org"} and first.columns == {"syn_text_x": ("one",)}
    assert first.meta == {"uid": "u1", "source": "00000.tar/a/1.jpg", "license": "CC0"}
    assert second.image == picture(2, "PNG") and second.captions == ("from json",) and second.meta["uid"] == "2"
    assert third.image == picture(3, "WEBP") and third.captions == () and third.members == {}
    assert fourth.image is None and fourth.captions == ("grün\nund rot",) and not fourth.error


def test_names_follow_the_rule_of_webdataset(tmp_path, picture, write_tar):
    assert split_name("x.y/a.b.JPG") == ("x.y/a", "b.jpg")
    assert split_name("README") == ("README", "")
    # Files that belong to no sample: no suffix, no key, folders.
    path = write_tar(
        tmp_path / "x.tar", [("README", b"hi"), ("d/.DS_Store", b"x"), ("d/._a.jpg", b"x"), ("a.jpg", picture())]
    )
    assert [sample.key for sample in read(path)] == ["a"]


def test_a_picture_under_a_longer_suffix(tmp_path, picture, write_tar):
    path = write_tar(tmp_path / "x.tar", [("a.input.jpg", picture()), ("a.url.txt", b"u"), ("b.jpg", picture(1))])
    assert [(record.key, record.image, list(record.members)) for record in read(path)] == [
        ("a", picture(), ["url.txt"]),
        ("b", picture(1), []),
    ]


def test_a_caption_named_after_the_whole_name_of_its_picture(tmp_path, picture, write_tar):
    """As in a folder of pictures, of which such a tar is made."""
    files = [("a.JPG", picture()), ("a.JPG.json", b"{}"), ("a.JPG.txt", b"one")]
    files += [("b.jpg", picture(1)), ("b.jpg.caption", b"two"), ("c.jpg", picture()), ("c.jpg.txt", b"no")]
    files += [("c.txt", b"three"), ("d.0.png", picture()), ("d.0.png.txt", b"four")]
    path = write_tar(tmp_path / "x.tar", files)
    assert [(record.key, record.captions, list(record.members)) for record in read(path)] == [
        ("a", ("one",), ["jpg.json"]),
        ("b", ("two",), ["caption"]),
        ("c", ("three",), ["jpg.txt"]),
        ("d.0", ("four",), []),
    ]


def test_keys_with_dots_are_told_apart_where_one_key_would_have_several_pictures(tmp_path, picture, write_tar):
    pictures = list(map(picture, range(4)))
    path = write_tar(
        tmp_path / "x.tar",
        [
            ("d/IMG.2020.01.caption", b"one"),
            ("d/IMG.2020.01.jpg", pictures[0]),
            ("d/IMG.2020.01.syn.json", b'{"syn_text_x": ["s"]}'),
            ("d/IMG.2020.02.jpg", pictures[1]),
            ("d/IMG.2020.02.txt", b"two"),
            ("b.0.jpg", pictures[2]),
            ("b.1.png", pictures[3]),
            ("b.txt", b"of both"),
            ("photo_2.0.jpg", pictures[0]),
            ("photo_2.0.txt", b"alone"),
        ],
    )
    assert [
        (record.key, record.image, record.captions, list(record.columns), record.error) for record in read(path)
    ] == [
        ("d/IMG.2020.01", pictures[0], ("one",), ["syn_text_x"], ""),
        ("d/IMG.2020.02", pictures[1], ("two",), [], ""),
        ("b.0", pictures[2], ("of both",), [], ""),
        ("b.1", pictures[3], ("of both",), [], ""),
        ("photo_2.0", pictures[0], ("alone",), [], ""),
    ]


def test_the_usual_picture_goes_first(tmp_path, picture, write_tar):
    path = write_tar(tmp_path / "x.tar", [("a.png", picture(1, "PNG")), ("a.jpg", picture(0)), ("a.mask.png", b"m")])
    (sample,) = read(path)
    assert sample.image == picture(0) and sample.members == {"png": picture(1, "PNG"), "mask.png": b"m"}


def test_a_key_again_is_another_sample(tmp_path, picture, write_tar, caplog):
    path = write_tar(tmp_path / "x.tar", [("a.jpg", b"1"), ("a.jpg", b"2"), ("b.jpg", b"3"), ("a.txt", b"late")])
    assert [(sample.key, sample.meta["uid"]) for sample in read(path)] == [
        ("a", "a"),
        ("a~2", "a"),
        ("b", "b"),
        ("a~3", "a"),
    ]
    assert len(caplog.records) == 2 and "seen twice" in caplog.text


@pytest.mark.parametrize(
    "name,data,reason",
    [
        ("syn.json", b'{"syn_text_x": "one"}', "syn.json: syn_text_x: expected"),
        ("syn.json", b"[1]", "expected a JSON object"),
        ("json", ours(error="was unreadable"), "was unreadable"),
    ],
)
def test_a_bad_member_is_a_row_with_its_reason(tmp_path, picture, write_tar, name, data, reason):
    path = write_tar(tmp_path / "x.tar", [("a.jpg", picture()), (f"a.{name}", data), ("b.jpg", picture())])
    first, second = read(path)
    assert reason in first.error and not second.error


def test_a_bad_column_costs_the_sample_no_other_column(tmp_path, picture, write_tar):
    columns = b'{"syn_text_a": 5, "syn_text_x": ["one", null]}'
    (sample,) = read(write_tar(tmp_path / "x.tar", [("a.jpg", picture()), ("a.syn.json", columns)]))
    assert sample.columns == {"syn_text_x": ("one", "")} and "syn_text_a: expected" in sample.error


def test_links_are_not_followed(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
        member = tarfile.TarInfo("b.jpg")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"pic"))
    first, second = read(tmp_path / "x.tar")
    assert first.key == "a" and first.image is None and first.error == "jpg: not a regular file of a tar"
    assert second.image == b"pic" and not second.error


def test_a_tar_cut_anywhere_fails_after_its_whole_rows(tmp_path, write_tar):
    files = [
        (f"{key}.{suffix}", json.dumps({}).encode() if suffix == "json" else b"x" * 700)
        for key in "abc"
        for suffix in ("jpg", "json")
    ]
    data = open(write_tar(tmp_path / "whole.tar", files), "rb").read()
    with tarfile.open(tmp_path / "whole.tar") as archive:
        members = archive.getmembers()
    end = members[-1].offset_data + 512  # the end of the last data block, before at least two empty blocks
    keys = [sample.key for sample in read(tmp_path / "whole.tar")]
    assert keys == ["a", "b", "c"]
    path = tmp_path / "cut.tar"
    closed = {member.offset_data + -(-member.size // 512) * 512 for member in members[1::2]} | {
        members[0].offset_data + 1024
    }
    for length in {*range(0, end + 512, 50), *range(0, end + 512, 512)} - closed:
        path.write_bytes(data[:length])
        done = []
        with pytest.raises(ValueError, match="cut.tar"):
            for sample in TarRows(str(path)):
                done.append(sample.key)
        # A sample is complete when the first file of the next one comes.
        assert done == keys[: sum(member.offset_data + member.size <= length for member in members[2::2])]
    path.write_bytes(data[: end + 512])
    assert len(read(path)) == 3  # one empty block is an end


def test_a_tar_that_was_not_closed_is_read_with_a_warning(tmp_path, write_tar, caplog):
    files = [(f"{key}.{suffix}", b"x" * 512) for key in "abc" for suffix in ("jpg", "txt")]
    data = open(write_tar(tmp_path / "whole.tar", files), "rb").read()
    for length, keys in ((1024, ["a"]), (2048, ["a"]), (4096, ["a", "b"])):
        (tmp_path / "x.tar").write_bytes(data[:length])
        caplog.clear()
        assert [record.key for record in read(tmp_path / "x.tar")] == keys
        (warning,) = {*caplog.messages}
        assert "x.tar: has no end-of-archive mark" in warning
    (tmp_path / "x.tar").write_bytes(data[:3072])  # the last sample lacks what others have
    with pytest.raises(ValueError, match="x.tar: cut: no end-of-archive mark, and its last sample, 'b', has no txt"):
        read(tmp_path / "x.tar")


def test_reading_that_stops_before_the_end_of_the_file_is_no_end(tmp_path, write_tar, monkeypatch):
    """Also if it stops between two samples: only the file's size shows that the tar is not merely unclosed."""
    files = [(f"{key}.{suffix}", b"x" * 512) for key in "abc" for suffix in ("jpg", "txt")]
    path = write_tar(tmp_path / "x.tar", files)

    class Short(io.FileIO):
        def readinto(self, buffer):
            return super().readinto(memoryview(buffer)[: max(0, 2048 - self.tell())])

    monkeypatch.setattr("imagetext.readers.tar_members.open_file", lambda path, _: io.BufferedReader(Short(path)))
    with pytest.raises(
        ValueError, match="x.tar: cut or damaged near byte 2048: reading stopped there, but the file has"
    ):
        read(path)


def test_a_damaged_header_is_not_the_end(tmp_path, write_tar):
    path = write_tar(tmp_path / "x.tar", [("a.jpg", b"1"), ("b.jpg", b"2")])
    data = bytearray(open(path, "rb").read())
    data[1024] ^= 0xFF
    open(path, "wb").write(data)
    with pytest.raises(ValueError, match="x.tar: cut or damaged near byte 1024"):
        read(path)


@pytest.mark.parametrize("size", [b"\xff" * 11 + b"\0", b"\xff" * 10 + b"\xfe\0", b"\x80" + b"\xff" * 11])
def test_a_size_that_leads_back_or_far_away_does_not_hang(tmp_path, write_tar, size):
    """tarfile reads without end for negative sizes of the GNU format."""
    path = write_tar(tmp_path / "x.tar", [("a.jpg", b"1"), ("b.jpg", b"2" * 600), ("c.jpg", b"3")])
    data = bytearray(open(path, "rb").read())
    header = data[1024:1536]
    header[124:136], header[148:156] = size, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[1024:1536] = header
    open(path, "wb").write(data)
    done = []
    with pytest.raises(ValueError, match="x.tar: cut or damaged"):
        for sample in TarRows(path):
            done.append(sample.key)
    assert done in ([], ["a"])


def test_names_of_any_kind_are_keys_and_never_paths(tmp_path, write_tar):
    names = ["/etc/x", "../../x", "a/../b", "é", "n\nl", "d/" * 90 + "e"]
    samples = read(write_tar(tmp_path / "x.tar", [(f"{name}.jpg", b"x") for name in names]))
    assert [sample.key for sample in samples] == names


def test_odd_values_in_json(tmp_path, picture, write_tar):
    odd = {"uid": None, "caption_scores": [1], "sha256": 5, "width": 10**30, "error": None, "captions": None}
    (sample,) = read(write_tar(tmp_path / "x.tar", [("a.jpg", picture()), ("a.json", json.dumps(odd).encode())]))
    assert sample.meta["uid"] == "a" and sample.scores == {} and not sample.error and sample.captions == ()


def test_two_tars_behind_each_other_are_an_error(tmp_path, write_tar):
    path = write_tar(tmp_path / "x.tar", [("a.jpg", b"1")])
    data = open(path, "rb").read()
    open(path, "wb").write(data + data)
    with pytest.raises(ValueError, match="after the end-of-archive mark"):
        read(path)


def test_an_empty_tar_has_no_rows(tmp_path, write_tar):
    assert read(write_tar(tmp_path / "x.tar", [])) == []


def test_no_tar_at_all(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"hello" * 1000)
    with pytest.raises(ValueError, match="x.tar"):
        read(tmp_path / "x.tar")


def test_odd_metadata_costs_no_picture(tmp_path, picture, write_tar):
    metadata = [
        b"{",
        b"[1]",
        b"null",
        b"[" * 10**5,
        b'{"captions": [1]}',
        b'{"captions": []}',
        b'{"captions": [null]}',
        b'{"error": 0.12}',
        b'{"error": "low score"}',
        b'{"caption": {"en": "x"}}',
        b"\xff\xfe",
    ]
    path = write_tar(
        tmp_path / "x.tar",
        [
            file
            for number, data in enumerate(metadata)
            for file in ((f"{number}.jpg", picture(number)), (f"{number}.txt", b"alt"), (f"{number}.json", data))
        ],
    )
    for number, record in enumerate(read(path)):
        assert (record.key, record.image, record.captions, record.error) == (
            str(number),
            picture(number),
            ("alt",),
            "",
        )
        assert record.meta["uid"] == str(number)


@pytest.mark.parametrize(
    "name,pack", [("x.tar.gz", "gz"), ("x.tgz", "gz"), ("x.tar", "gz"), ("x.tar.bz2", "bz2"), ("x.tar.zst", "zst")]
)
def test_a_packed_tar_is_read_as_it_is_unpacked(tmp_path, picture, write_tar, name, pack):
    data = open(
        write_tar(
            tmp_path / "plain.tar",
            [
                (f"{number}.{suffix}", content)
                for number in range(5)
                for suffix, content in (("jpg", picture(number, size=(90, 70))), ("txt", b"a dog"))
            ],
        ),
        "rb",
    ).read()
    packed = {"gz": gzip.compress, "bz2": bz2.compress, "zst": lambda data: pa.compress(data, "zstd", asbytes=True)}[
        pack
    ](data)
    (tmp_path / name).write_bytes(packed)
    (shard,) = read_samples(str(tmp_path / name))
    records, plain = list(shard), read(tmp_path / "plain.tar")
    assert shard.name == "x" and [(record.key, record.image, record.captions) for record in records] == [
        (record.key, record.image, record.captions) for record in plain
    ]
    for cut in (len(packed) // 2, len(packed) - 9):
        (tmp_path / name).write_bytes(packed[:cut])
        with pytest.raises(ValueError, match=f"{name}: cut or damaged"):
            read(tmp_path / name)


def test_a_file_that_is_too_large_is_a_row_and_not_unpacked(tmp_path, picture, write_tar, monkeypatch):
    monkeypatch.setattr("imagetext.limits.FILE", 2000)
    path = write_tar(tmp_path / "x.tar", [("a.jpg", bytes(3000)), ("b.jpg", picture())])
    first, second = read(path)
    assert first.image is None and first.error == "jpg: 3,000 bytes, more than 2,000" and second.image == picture()


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_headers_of_any_size_take_no_memory(tmp_path, write_tar, kind, pack):
    header = tarfile.TarInfo("long")
    header.type, header.size = kind, 32 << 20
    data = Path(write_tar(tmp_path / "x.tar", [("a.txt", b"a")])).read_bytes()[:1024]
    (tmp_path / "x.tar").write_bytes(pack(data + header.tobuf() + bytes(33 << 20)))
    tracemalloc.start()
    with pytest.raises(
        ValueError, match="x.tar: cut or damaged near byte 1024: the headers of a file are more than 1,048,576"
    ):
        read(tmp_path / "x.tar")
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_files_sorted_by_suffix_find_each_other(tmp_path, picture, write_tar):
    jpg = [(f"{key}.jpg", picture(number)) for number, key in enumerate("abc")]
    txt = [(f"{key}.txt", f"alt {key}".encode()) for key in "acd"]
    expected = [
        ("a", picture(0), ("alt a",)),
        ("b", picture(1), ()),
        ("c", picture(2), ("alt c",)),
        ("d", None, ("alt d",)),
    ]
    for files in (jpg + txt, txt + jpg):
        records = read(write_tar(tmp_path / "x.tar", files))
        assert [(record.key, record.image, record.captions) for record in records] == expected and not any(
            record.error for record in records
        )
    assert len(read(write_tar(tmp_path / "x.tar", jpg))) == 3


def test_a_text_apart_from_its_picture_says_so(tmp_path, picture, write_tar):
    path = write_tar(
        tmp_path / "x.tar", [("a.jpg", picture()), ("a.cls", b"1"), ("b.jpg", picture(1)), ("a.txt", b"alt")]
    )
    *_, late = read(path)
    assert late.key == "a~2" and late.captions == ("alt",) and "follow one another" in late.error
    texts = read(write_tar(tmp_path / "x.tar", [("a.txt", b"1"), ("a.json", b"{}"), ("b.txt", b"2"), ("a.txt", b"3")]))
    assert not any(record.error for record in texts)  # with only captions


def test_a_picture_is_known_by_its_bytes(tmp_path, picture, write_tar):
    path = write_tar(
        tmp_path / "x.tar",
        [
            ("a.image", picture()),
            ("a.txt", b"alt"),
            ("b.data", picture(1, "PNG")),
            ("b.npz", b"PK\3\4"),
            ("c.one", picture(2)),
            ("c.two", picture(3)),
            ("d.txt", b"BM and P6 1 are texts"),
        ],
    )
    a, b, c, d = read(path)
    assert (a.image, a.captions, b.image, list(b.members)) == (picture(), ("alt",), picture(1, "PNG"), ["npz"])
    assert c.image is None and "several pictures in one sample" in c.error and d.image is None and not d.error


def test_litter_of_file_managers_is_no_sample(tmp_path, picture, write_tar):
    names = [
        "__MACOSX/._a.jpg",
        "__MACOSX/a.jpg",
        "._a.jpg",
        ".DS_Store",
        "d/Thumbs.db",
        "desktop.ini",
        "@eaDir/a.jpg/x.jpg",
        "a.JPG",
    ]
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(tmp_path / "x.tar", "w", format=format) as archive:
            archive.addfile(tarfile.TarInfo("d") if format == tarfile.GNU_FORMAT else tarfile.TarInfo("e"))
            for name in [*names, "long" * 50 + ".jpg", "cafe\u0301.jpeg"]:
                member = tarfile.TarInfo(name)
                member.size = 3
                archive.addfile(member, io.BytesIO(b"pic"))
        assert [record.key for record in read(tmp_path / "x.tar")] == ["a", "long" * 50, "cafe\u0301"]


def test_texts_of_other_encodings(tmp_path, picture, write_tar, caplog):
    texts = ["über".encode("utf-16"), "\ufeffüber".encode(), "über".encode("cp1252"), "über\nund".encode()]
    path = write_tar(
        tmp_path / "x.tar",
        [
            file
            for number, text in enumerate(texts)
            for file in ((f"{number}.jpg", picture()), (f"{number}.txt", text))
        ],
    )
    assert [record.captions for record in read(path)] == [("über",), ("über",), ("\ufffdber",), ("über\nund",)]
    (warning,) = caplog.messages
    assert "x.tar: 2.txt: is not UTF-8" in warning
