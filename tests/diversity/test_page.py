import re
from html.parser import HTMLParser

import pytest

from diversity import score_captions

EVIL = '<script>alert("x")</script>'


class Reader(HTMLParser):
    """Checks that tags close, and collects what a browser would fetch or run."""

    VOID = {"meta", "link", "img", "br", "hr"}

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def report():
    captions = [[f"a dog {EVIL} runs", "a 2 2 2 2"], ["two cats sit", ""]]
    return score_captions({f"syn_text_{EVIL}": captions, "syn_text_$x_1": captions}, references=captions,
                          keys=[EVIL, "b"], images=[b"no picture", None])


def test_text_from_data_is_text(report):
    reader = Reader(report.to_html())
    assert "script" not in reader.tags
    text = "".join(reader.text)
    assert f"a dog {EVIL} runs" in text and f"{EVIL}" in text and "$x_1" in text
    assert not any(name.startswith("on") for name, _ in reader.attributes)


def test_nothing_is_fetched(report):
    page = report.to_html()
    for name, value in Reader(page).attributes:
        if name in ("src", "href", "xlink:href", "srcset", "action"):
            assert value.startswith(("data:", "#")), (name, value)
    assert re.findall(r"url\((?!#)", page) == []
    assert "@import" not in page


def test_no_id_is_there_twice(report):
    ids = [value for name, value in Reader(report.to_html()).attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_the_plots_take_the_colour_of_the_page(report):
    page = report.to_html()
    assert "currentColor" in page and "#010203" not in page
    assert page.count("<svg") == 2


def test_light_dark_narrow_and_print(report):
    page = report.to_html()
    for condition in ("prefers-color-scheme: dark", "max-width", "@media print", 'name="viewport"'):
        assert condition in page


def test_every_number_of_the_first_table_has_its_definition(report):
    titles = [value for name, value in Reader(report.to_html()).attributes if name == "title"]
    assert all(measure.definition in titles for measure in report.headline)


def test_the_same_report_is_the_same_page(report):
    assert report.to_html() == report.to_html()


def test_a_single_caption_and_many_columns():
    one = {f"column{at}": [["a dog runs"]] for at in range(20)}
    Reader(score_captions(one).to_html())
    Reader(score_captions({"a": [[""]]}).to_html())
