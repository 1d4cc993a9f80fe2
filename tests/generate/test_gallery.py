"""The gallery: self-contained, escaped, complete."""

import base64
import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from generate.captions.run import run as generate
from generate.sets.gallery import THUMBNAIL, Card, GalleryConfig, Line, card_of, run, write_gallery
from imagetext.sample import Record

HOSTILE = '<script>alert("x")</script> & \' {{ 7 * 7 }} "/><img src=x onerror=y>'


class Page(HTMLParser):
    """Collects the tags, attributes and texts of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attributes]

    def handle_data(self, data):
        self.texts.append(data.strip())


def picture(width: int, height: int, colour: str = "teal") -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(encoded, "PNG")
    return encoded.getvalue()


def lines(*texts: str) -> list[Line]:
    return list(map(Line, texts))


def shown(page: Page) -> list[str]:
    """Return the texts below the filters, in order."""
    texts = [text for text in page.texts if text]
    return texts[texts.index("flagged only") + 1 : -1]


def test_pictures_columns_and_captions_stand_in_order_and_repeats_are_counted(tmp_path):
    path = tmp_path / "gallery.html"
    write_gallery(
        path,
        [
            Card("a", picture(8, 6), {"original": lines("one"), "before": lines("x", "y", "x"), "after": []}),
            Card("b", picture(6, 8), {"original": lines("two")}),
        ],
        title="Ours",
        subtitle="two of them",
    )
    page = Page(path.read_text(encoding="utf-8"))
    assert shown(page) == ["a", "original", "one", "before", "x", "×2", "y", "after", "none", "b", "original", "two"]
    assert page.tags.count("img") == 2 and {"Ours", "two of them"} <= set(page.texts)
    assert list(tmp_path.iterdir()) == [path]


def test_scores_and_flags_stand_by_their_captions_and_failed_pictures_say_why(tmp_path):
    path = tmp_path / "gallery.html"
    scores = {"syn_text_x": {"logprob": [-3.25, -1.0], "similarity": [0.314, 0.1], "flags": ["", "loop cut"]}}
    good = Record(
        "a",
        picture(8, 6),
        ("theirs",),
        scores=scores,
        columns={"syn_text_x": ("a dog", "a dog a dog a"), "syn_text_y": ("z",)},
    )
    failed = Record("b", picture(8, 6), error="syn_text_x: no caption passed")
    write_gallery(path, map(card_of, [good, failed]))
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert shown(page) == [
        "a",
        "original",
        "theirs",
        "syn_text_x",
        "a dog",
        "log-probability -3.2, similarity 0.31",
        "a dog a dog a",
        "loop",
        "cut",
        "log-probability -1.0, similarity 0.10",
        "syn_text_y",
        "z",
        "b",
        "syn_text_x: no caption passed",
        "original",
        "none",
    ]
    assert [value for tag, name, value in page.attributes if (tag, name) == ("article", "class")] == [
        "flagged",
        "flagged",
    ]


def test_each_column_and_the_flagged_have_a_filter_that_needs_no_script(tmp_path):
    path = tmp_path / "gallery.html"
    write_gallery(
        path,
        [
            Card("a", None, {"original": lines("one"), "x": lines("two")}),
            Card("b", None, {"y": [Line("three", ("cut",))]}),
        ],
    )
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    boxes = {value for tag, name, value in page.attributes if (tag, name) == ("input", "id")}
    assert boxes == {"column-1", "column-2", "column-3", "flagged"}
    assert all(f"#{box}" in text for box in boxes)
    assert [value for tag, name, value in page.attributes if (tag, name) == ("section", "class")] == [
        "column-1",
        "column-2",
        "column-3",
    ]
    assert [value for tag, name, value in page.attributes if (tag, name) == ("article", "class")] == ["flagged"]


@pytest.mark.parametrize(
    "flags, is_flagged",
    [((), False), (("cut:preamble", "kind:swap"), False), (("fallback:text",), True), (("cut",), True)],
)
def test_what_tells_of_no_fault_is_no_flag(tmp_path, flags, is_flagged):
    write_gallery(tmp_path / "gallery.html", [Card("a", None, {"x": [Line("one", flags)]})])
    assert ('<article class="flagged">' in (tmp_path / "gallery.html").read_text(encoding="utf-8")) is is_flagged


def test_all_text_is_escaped(tmp_path):
    path = tmp_path / "gallery.html"
    write_gallery(
        path,
        [
            Card(HOSTILE, picture(4, 4), {HOSTILE: [Line(HOSTILE, (HOSTILE,), HOSTILE)]}, error=HOSTILE),
            Card(HOSTILE, HOSTILE.encode(), {}),
        ],
        title=HOSTILE,
        subtitle=HOSTILE,
    )
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags.count("script") == 1 and page.tags.count("img") == 1
    assert HOSTILE not in text and HOSTILE not in text[text.index("<script>") :]
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert (
        page.texts.count(HOSTILE) == 11
    )  # title twice, subtitle, filter, two keys, column, caption, flag, scores, and the error
    assert ("img", "alt", HOSTILE) in page.attributes


def test_the_page_is_self_contained_and_its_thumbnails_are_small_jpegs(tmp_path):
    path = tmp_path / "gallery.html"
    write_gallery(path, [Card("wide", picture(2000, 1000), {}), Card("small", picture(96, 96), {})])
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not re.search(r"https?://|url\(|@import|<link", text)
    sources = [value for tag, name, value in page.attributes if name == "src"]
    sizes = []
    for source in sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/jpeg;base64"
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert image.format == "JPEG"
        sizes.append(image.size)
    assert sizes == [(THUMBNAIL, THUMBNAIL // 2), (96, 96)]
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_a_picture_that_does_not_decode_is_shown_with_its_reason(tmp_path):
    path = tmp_path / "gallery.html"
    write_gallery(path, [Card("bad", b"this is text", {"syn_text_x": []}), Card("gone", None, {})])
    page = Page(path.read_text(encoding="utf-8"))
    assert page.tags.count("img") == 0
    assert any(text.startswith("not a picture") for text in page.texts) and "missing picture" in page.texts


def keys(path) -> list[str]:
    return re.findall(r"<figcaption>(.*)</figcaption>", path.read_text(encoding="utf-8"))


def test_the_command_draws_pictures_of_all_shards_by_its_seed(captioner, make_tar, pictures, configure, tmp_path):
    for name in ("00000", "00001", "00002"):
        make_tar(name, [*pictures(6), b"no picture"])
    generate(configure(max_error_rate=1))
    folder = tmp_path / "out"
    assert run(GalleryConfig(folder=folder, pictures=9)) == 0
    first = keys(folder / "gallery.html")
    assert len(set(first)) == 9 and first == sorted(first, key=lambda key: (key[:5], key.endswith("006"), key))
    assert {key[:5] for key in first} == {"00000", "00001", "00002"}
    run(GalleryConfig(folder=folder, pictures=9, output=tmp_path / "again.html"))
    run(GalleryConfig(folder=folder, pictures=9, seed=1, output=tmp_path / "other.html"))
    assert keys(tmp_path / "again.html") == first != keys(tmp_path / "other.html")
    run(GalleryConfig(folder=folder, pictures=100))
    assert len(keys(folder / "gallery.html")) == 21
    with pytest.raises(ValueError, match="no run of ours"):
        run(GalleryConfig(folder=tmp_path / "in"))
    with pytest.raises(ValueError, match="00000.tar: exists, and is no page; give another name"):
        run(GalleryConfig(folder=folder, output=folder / "00000.tar"))
