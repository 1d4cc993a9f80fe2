"""The gallery: self-contained, escaped, complete."""

import base64
import io
import re
from html.parser import HTMLParser

from PIL import Image

from generate.gallery import THUMBNAIL, write_gallery

HOSTILE = '<script>alert("x")</script> & \' {{ 7 * 7 }} "/><img src=x onerror=y>'


class Page(HTMLParser):
    """The tags, attributes and texts of a page."""

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


def test_pictures_columns_and_captions_stand_in_order_and_repeats_are_counted(tmp_path):
    path = tmp_path / "gallery.html"
    write_gallery(path, [("a", picture(8, 6), {"original": ["one"], "before": ["x", "y", "x"], "after": []}),
                         ("b", picture(6, 8), {"original": ["two"]})], title="Ours", subtitle="two of them")
    page = Page(path.read_text(encoding="utf-8"))
    shown = [text for text in page.texts if text]
    body = shown[shown.index("two of them") + 1:]
    assert body == ["a", "original", "one", "before", "x", "×2", "y", "after", "none", "b", "original", "two"]
    assert page.tags.count("img") == 2
    assert list(tmp_path.iterdir()) == [path]


def test_all_text_is_escaped(tmp_path):
    path = tmp_path / "gallery.html"
    write_gallery(path, [(HOSTILE, picture(4, 4), {HOSTILE: [HOSTILE]}), (HOSTILE, HOSTILE.encode(), {})], title=HOSTILE,
                  subtitle=HOSTILE)
    page = Page(path.read_text(encoding="utf-8"))
    assert "script" not in page.tags and page.tags.count("img") == 1
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert page.texts.count(HOSTILE) == 7  # title twice, subtitle, two keys, column, caption
    assert ("img", "alt", HOSTILE) in page.attributes


def test_the_page_is_self_contained_and_its_thumbnails_are_small_jpegs(tmp_path):
    path = tmp_path / "gallery.html"
    write_gallery(path, [("wide", picture(2000, 1000), {}), ("small", picture(96, 96), {})])
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
    write_gallery(path, [("bad", b"this is text", {"syn_text_x": []}), ("gone", None, {})])
    page = Page(path.read_text(encoding="utf-8"))
    assert page.tags.count("img") == 0
    assert any(text.startswith("not a picture") for text in page.texts) and "missing picture" in page.texts
