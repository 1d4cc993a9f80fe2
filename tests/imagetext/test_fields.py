"""Captions in any form and foreign fields with our names are kept, and are not mistaken for ours."""

import json

import pytest

from imagetext.fields import captions_in, foreign_fields, is_ours, json_fields, sort_fields
from imagetext.shards import SUFFIXES, ShardWriter
from imagetext.sources import read_records

OURS = {
    "uid": "u",
    "sha256": "",
    "width": 0,
    "height": 0,
    "captions": ["a"],
    "error": "",
    "source": "s",
    "caption_scores": {},
}


@pytest.mark.parametrize(
    "value,captions",
    [
        ("a dog", ("a dog",)),
        (" ", ()),
        (5, ()),
        (None, ()),
        (True, ()),
        (float("nan"), ()),
        ([], ()),
        ({}, ()),
        ([None, "x", "", 3], ("x",)),
        ([{"text": "a"}, {"caption": "b", "score": 1}, {"raw": "c", "tokens": ["c"]}], ("a", "b", "c")),
        ({"en": "x", "pt-BR": "y"}, ("x", "y")),
        ({"en": {"caption": ["x", "z"]}, "de": None}, ("x", "z")),
        ({"text": "a", "lang": "en"}, ("a",)),
        ({"A": "x"}, ()),
        ([["a", "dog"], ["tokens"]], ()),
        ([{"from": "human", "value": "hi"}], ()),
        ("\ud800", ("?",)),
    ],
)
def test_captions_in_any_form(value, captions):
    assert captions_in(value) == captions


@pytest.mark.parametrize(
    "fields,texts,captions,others",
    [
        ({"captions": []}, ("alt",), ("alt",), {}),
        ({"captions": [None, "x"]}, ("alt",), ("alt", "x"), {}),
        ({"captions": ["alt", "x"]}, ("alt",), ("alt", "x"), {}),
        ({"captions": 5}, ("alt",), ("alt",), {"source_fields": {"captions": 5}}),
        (
            {"captions": [{"text": "d", "by": "me"}]},
            ("alt",),
            ("alt", "d"),
            {"source_fields": {"captions": [{"text": "d", "by": "me"}]}},
        ),
        ({"caption": None, "text": "real", "title": 5}, (), ("real",), {"title": 5}),
        ({"caption": {"en": "x"}}, (), ("x",), {"caption": {"en": "x"}}),
        ({"caption": "of json"}, ("alt",), ("alt",), {"caption": "of json"}),
        (
            {
                "error": 0.12,
                "sha256": "theirs",
                "width": 9,
                "uid": "u",
                "n": 1,
                "source": "laion",
                "caption_scores": 3,
                "source_fields": [],
            },
            (),
            (),
            {
                "uid": "u",
                "n": 1,
                "source_fields": {
                    "sha256": "theirs",
                    "width": 9,
                    "error": 0.12,
                    "source": "laion",
                    "caption_scores": 3,
                    "source_fields": [],
                },
            },
        ),
    ],
)
def test_fields_of_others_are_kept_and_never_an_error(fields, texts, captions, others):
    fields_sorted = sort_fields(fields, texts, picture=True)
    assert (fields_sorted.captions, fields_sorted.others, fields_sorted.error, fields_sorted.scores) == (
        captions,
        others,
        "",
        {},
    )


def test_a_record_of_ours_is_taken_at_its_word():
    assert is_ours(OURS) and is_ours({**OURS, "caption_scores": None, "more": 1})
    for name in OURS:
        assert not is_ours({key: value for key, value in OURS.items() if key != name}) and not is_ours(
            {**OURS, name: 0.5}
        )
    fields_sorted = sort_fields(
        {**OURS, "error": "was broken", "source_fields": {"width": 3}}, ["a synthetic caption"], picture=True
    )
    assert fields_sorted.captions == ("a",) and fields_sorted.error == "was broken"
    assert fields_sorted.others == {
        "uid": "u",
        "sha256": "",
        "width": 0,
        "height": 0,
        "source": "s",
        "source_fields": {"width": 3},
    }


def test_what_is_known_of_a_picture_that_is_not_there_stays():
    theirs = {"sha256": "abc", "width": 3, "height": "tall", "error": "x"}
    assert foreign_fields(theirs, picture=False) == {
        "sha256": "abc",
        "width": 3,
        "source_fields": {"height": "tall", "error": "x"},
    }


def test_json_that_is_no_object():
    for data, value in (
        (b"[1]", [1]),
        (b'"a"', "a"),
        (b"null", None),
        (b"{", "{"),
        (b"\xff", "\ufffd"),
        (b"[" * 10**5, "[" * 10**5),
        (b"[" * 200 + b"]" * 200, "[" * 200 + "]" * 200),
    ):
        assert json_fields(data) == {"json": value}
    assert json_fields(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}
    deep = json_fields(
        b'{"json": ' + b"[" * 100 + b"]" * 100 + b"}"
    )  # in source_fields it would be nested too deep to be read again
    assert foreign_fields(deep, picture=True) == {"source_fields": {"json": "[" * 100 + "]" * 100}}


@pytest.mark.parametrize("format", SUFFIXES)
def test_fields_that_clash_move_once_and_come_back(tmp_path, picture, write_tar, format):
    theirs = {
        "uid": "u7",
        "sha256": "0" * 64,
        "width": 9,
        "height": None,
        "error": "low score",
        "source": "laion",
        "captions": [{"text": "d"}],
        "key": "k7",
        "image": "7.png",
        "members": 1,
        "label": 3,
    }
    path = write_tar(
        tmp_path / "in.tar",
        [
            ("a.jpg", picture()),
            ("a.txt", b"alt"),
            ("a.json", json.dumps(theirs).encode()),
            ("a.syn.json", b'{"syn_text_x": ["one"]}'),
            ("b.jpg", picture(1)),
            ("b.json", b"[1]"),
            ("b.syn.json", b'{"syn_text_x": ["two"]}'),
        ],
    )
    for step in ("first", "second", "third"):
        with ShardWriter(tmp_path / step, "out", format=format) as writer:
            for record in read_records(path):
                writer.write(record)
        path = writer.path
        first, second = read_records(path)
        fields = {**first.meta, **first.meta["source_fields"]}
        assert {name: fields[name] for name in theirs if name != "uid"} == {
            name: value for name, value in theirs.items() if name != "uid"
        }
        assert (
            first.key == "a"
            and first.meta["uid"] == "u7"
            and first.captions == ("alt", "d")
            and not first.error
            and first.members == {}
        )
        assert "source_fields" not in first.meta["source_fields"] and first.meta["source"] == "in.tar/a.jpg"
        assert second.meta["source_fields"] == {"json": [1]} and second.image == picture(1)


def test_a_label_of_ours_leaves_theirs_beside_it(tmp_path, picture):
    from imagetext.sample import Record

    for label, meta, fields in (
        ("tench", {"label": 3}, {"label": "tench", "source_fields": {"label": 3}}),
        ("tench", {"label": "tench"}, {"label": "tench"}),
        (None, {"label": 3}, {"label": 3}),
    ):
        with ShardWriter(tmp_path, "out") as writer:
            writer.write(Record("a", picture(), (), columns={"syn_text_x": ("one",)}, label=label, meta=meta))
        (back,) = read_records(writer.path)
        assert {name: back.meta[name] for name in ("label", "source_fields") if name in back.meta} == fields
