import base64
import hashlib
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import pytest

from diversity.measures import catalogue
from diversity.measures.measure import PERCENT
from diversity.page.differences import mixes_of
from diversity.page.page import EXAMPLES_SHOWN, GROUPS, render, thumbnail
from diversity.page.plots import columns_of
from diversity.score import score_captions
from diversity.verdict.compare import Difference, Estimate

EVIL = '<script>alert("x")</script>'


class Reader(HTMLParser):
    """Checks that tags close, and collects what a browser would load or run, and the text of the page by class."""

    VOID = {"meta", "link", "img", "br", "hr"}

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.attributes, self.text, self.classes = [], [], [], [], {}
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        for name in (dict(attrs).get("class") or "").split():
            self.classes.setdefault(name, []).append("")
        if tag not in self.VOID:
            self.open.append((tag, (dict(attrs).get("class") or "").split()))

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.text.append(data)
        for name in {name for _, classes in self.open for name in classes}:
            self.classes[name][-1] += data

    def values(self, *names):
        return [value for name, value in self.attributes if name in names]


@pytest.fixture(scope="module")
def report(made_up_report):
    return made_up_report()


@pytest.fixture(scope="module")
def html(report):
    return render(report)


@pytest.fixture(scope="module")
def page(html):
    return Reader(html)


@pytest.fixture
def no_plots(monkeypatch):
    """Plots take most of the time, and have tests of their own."""
    monkeypatch.setattr("diversity.page.page.plots", lambda report, columns: [])


def text_of(element: str) -> str:
    return unescape(re.sub("[ \n]+", " ", re.sub(r"<[^>]*>", " ", element)).strip())


# --- what may harm -------------------------------------------------------------------------------------------------


def test_text_from_data_is_text(made_up_report, no_plots):
    evil = made_up_report(
        (f"syn_text_{EVIL}", "syn_text_$x_1", "syn_text_\"a'b"),
        caption=f"a dog {EVIL} runs",
        key=EVIL,
        answer=(EVIL, f"x (95 % interval {EVIL} y)"),
        notes=(EVIL,),
        settings={EVIL: EVIL, "versions": {EVIL: EVIL}},
    )
    page = render(evil)
    reader = Reader(page)
    assert reader.tags.count("script") == 1 and page.count("<script>") == 1
    text = "".join(reader.text)
    assert f"a dog {EVIL} runs" in text and "$x_1" in text and "\"a'b" in text
    assert not any(name.startswith("on") for name, _ in reader.attributes)


def test_nothing_is_fetched(html, page):
    for value in page.values("src", "href", "xlink:href", "srcset", "action", "data"):
        assert value.startswith(("data:", "#")), value
    assert re.findall(r"url\((?!#)", html) == []
    assert "@import" not in html


def test_the_policy_lets_only_the_script_of_the_page_run(html):
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL).group(1)
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert re.findall(r"script-src '([^']*)'", html) == [f"sha256-{allowed}"]
    assert "default-src 'none'" in html


def test_no_id_is_there_twice_and_every_link_leads_somewhere(page):
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in page.values("href", "xlink:href") if link.startswith("#")} <= set(ids)


def test_what_does_not_decode_is_no_picture():
    assert thumbnail(None) is None
    assert thumbnail(b"no picture") is None


# --- what a reader finds -------------------------------------------------------------------------------------------


def test_the_answer_opens_the_page_and_the_notes_follow(report, page):
    text = "".join(page.text)
    places = [text.index(words) for words in (*report.answer, *report.notes, catalogue.DIV[1].label)]
    assert places == sorted(places)
    assert text.index(report.answer[0]) < text.index("How to read it") < text.index(report.notes[0])


def test_intervals_in_the_answer_are_set_back(made_up_report, no_plots):
    page = render(made_up_report(answer=("one has Div-2 0.5 (95 % interval 0.4 to 0.6) (Div-2) and (0.1 to 0.2).",)))
    assert "0.5 <span>(95 % interval 0.4 to 0.6)</span> (Div-2) and <span>(0.1 to 0.2)</span>." in page


def test_every_number_of_the_first_table_leads_to_its_definition(report, page):
    titles, links = page.values("title"), page.values("href")
    for measure in report.headline:
        assert measure.definition in titles
        assert f"#m-{'-'.join(measure.path)}" in links
        assert measure.definition in "".join(page.text)


def test_the_first_table_has_each_number_with_its_interval_and_the_human_row_last(report, html):
    table = re.search(r'<section class="card headline">.*?</section>', html, re.DOTALL).group(0)
    rows = re.findall(r"<tr.*?</tr>", table, re.DOTALL)[2:]
    assert [re.search("H|[0-9]", text_of(row)).group(0) for row in rows] == ["1", "2", "3", "H"]
    assert ['class="human"' in row for row in rows] == [False, False, False, True]
    assert len(report.headline) <= 8
    for row, name in zip(rows, report.rows, strict=True):
        cells = re.findall("<td.*?</td>", row, re.DOTALL)
        for cell, measure in zip(cells, report.headline, strict=True):
            words = text_of(cell)
            assert measure.text(report.rows[name]) in words
            if measure.score:
                low, high = (measure.written(end) for end in report.intervals[name][measure.score][1:])
                assert words.endswith(f"{low.removesuffix(PERCENT)}–{high}")


def test_every_measure_has_its_place():
    elsewhere = (*catalogue.DEGENERATE_REASONS, catalogue.EQUAL_WORDS, *catalogue.EQUAL_TOKENS)
    placed = [measure for group in GROUPS.values() for measure in group]
    assert sorted((*placed, *elsewhere)) == sorted(catalogue.ALL)


def test_the_meaning_of_a_fault_keeps_its_capitals(page):
    assert "In English, an article before" in "".join(page.text)


def test_what_is_not_measured_has_no_row_and_no_section(made_up_report):
    report = made_up_report(mixes=None, differences=(), examples=())
    for row in report.rows.values():
        row |= {"frames": None, "facts": None, "equal_tokens": None, "semantic": None, "rank_frequency": None}
    text = "".join(Reader(render(report)).text)
    for words in (
        "Mixes",
        "Differences",
        "Pictures and their captions",
        "Templates",
        "Facts",
        "At equal length",
        "Vendi",
        "Rank and frequency",
    ):
        assert words not in text.split("All measures")[-1] and f"\n{words}" not in text, words
    assert "Degenerate captions" in text and "Self-CIDEr" in text


def test_one_picture_with_one_caption_is_counted_in_the_singular():
    html = render(score_captions({"a": [["a dog runs on the grass"]]}))
    assert "1 picture, 1 caption of each column" in html


def test_the_better_column_of_a_difference_is_named(made_up_report, no_plots):
    def difference(score, first_less_second, p):
        ends = sorted((first_less_second * 0.5, first_less_second * 1.5))
        return Difference(
            score,
            "syn_text_one",
            "syn_text_other",
            pictures=9,
            estimate=Estimate(first_less_second, *ends),
            p=p,
            p_holm=p,
        )

    report = made_up_report(
        differences=(
            difference("clip_score", 0.1, 0.0001),
            difference("div_2", 0.1, 0.2),
            difference("degenerate", 0.1, 0.012),
            difference("length", -1.0, 0.012),
        )
    )
    rows = [text_of(row) for row in re.findall(r'<tr class="(?:clear|open)".*?</tr>', render(report), re.DOTALL)]
    assert rows == [
        "one 1 − other 2 +0.100 0.050 to 0.150 one 1 better p < 0.001",
        "one 1 − other 2 +0.100 0.050 to 0.150 open p = 0.200",
        "one 1 − other 2 +10.0 points 5.0 to 15.0 other 2 better p = 0.012",
        "one 1 − other 2 −1.0 −1.5 to −0.5 other 2 higher p = 0.012",
    ]


def test_an_interval_without_width_is_not_written(made_up_report, no_plots):
    report = made_up_report(("one",))
    report.intervals["one"]["div_2"] = Estimate(0.25, 0.25, 0.25)
    assert "0.250–0.250" not in render(report)
    report.intervals["one"]["div_2"] = Estimate(0.25, 0.25, 0.26)
    assert "0.250–0.260" in render(report)


def test_intervals_are_drawn_to_scale(made_up_report, no_plots):
    estimates = [Estimate(0.2, 0.1, 0.4), Estimate(-0.2, -0.3, 0.0)]
    report = made_up_report(
        differences=tuple(
            Difference("div_2", "syn_text_one", other, pictures=9, estimate=estimate, p=0.5, p_holm=0.5)
            for other, estimate in zip(("syn_text_other", "syn_text_noise"), estimates, strict=True)
        )
    )
    spans = re.findall(r"--zero: ([\d.]+)%; --low: ([\d.]+)%; --high: ([\d.]+)%; --mean: ([\d.]+)%", render(report))[
        :2
    ]
    for (zero, *places), (mean, low, high) in zip([map(float, span) for span in spans], estimates, strict=True):
        width = 0.7 * 1.12  # from -0.3 to 0.4, and 6 % of it at each end
        assert places == pytest.approx([zero + 100 * value / width for value in (low, high, mean)], abs=0.02)
        assert all(0 < place < 100 for place in (zero, *places))


def test_mixes_are_told_with_what_they_lose(made_up_report, report, no_plots):
    gain, loss, none = Estimate(0.1, 0.05, 0.15), Estimate(-0.1, -0.15, -0.05), Estimate(0.01, -0.02, 0.04)
    alone, step, *_ = report.mixes.steps
    verdicts = {"adds": (gain, none), "less faithful": (gain, loss), "no clear gain": (none, none)}
    for verdict, (coverage, fidelity) in verdicts.items():
        steps = (alone, step._replace(coverage_gain=coverage, fidelity_gain=fidelity))
        page = Reader(render(made_up_report(mixes=report.mixes._replace(steps=steps))))
        assert [words for words in page.classes["chip"] if words in verdicts] == [verdict]
    unknown = step._replace(coverage=None, alone_coverage=None, coverage_gain=None)
    mixed = report.mixes._replace(steps=(alone, unknown), coverage_measure=None)
    assert catalogue.WORD_COVERAGE.label not in Reader(render(made_up_report(mixes=mixed))).classes["mixes"][0]


def test_a_mix_has_one_sign_on_the_page_and_in_words(made_up_report, report):
    """More degenerate captions are a loss: left of the line, and as many more in words."""
    alone, step, *_ = report.mixes.steps
    loss = step._replace(fidelity_gain=Estimate(-0.2, -0.21, -0.19))
    mixed = made_up_report(mixes=report.mixes._replace(fidelity_measure="degenerate", steps=(alone, loss)))
    span = mixes_of(mixed, columns_of(mixed))["steps"][0]["gains"][2][1]
    assert (span.text, span.interval) == ("+20.0 points", "19.0 to 21.0") and span.mean < span.zero


def test_captions_stand_with_what_is_known_of_them(made_up_report, page, no_plots):
    assert page.text.count("loop") > page.text.count("best") == 3  # and the chip of the winner
    assert "a red dog runs on the grass loop2/30.71" in "".join(page.classes["captions"])
    assert "(empty) empty" in "".join(page.classes["captions"])
    example = made_up_report().examples[0]
    bare = {
        name: (visible[0]._replace(facts=None, clip_score=None, reasons=()),)
        for name, visible in example.captions.items()
    }
    page = Reader(render(made_up_report(examples=(replace(example, captions=bare, image=None),))))
    assert page.classes["captions"][0].split()[-7:] == "a red dog runs on the grass".split()
    assert page.classes["none"] == ["no picture to show"]


def test_each_fault_has_its_share_and_a_few_examples(made_up_report, report, no_plots):
    captions = {name: {"loop": [f"loop number {number} of {name}" for number in range(9)]} for name in report.rows}
    text = "".join(Reader(render(made_up_report(degenerate_examples=captions))).classes["faults"])
    for name in report.rows:
        assert f"{report.labels[name]} {catalogue.DEGENERATE.text(report.rows[name])}" in re.sub("[ \n]+", " ", text)
        assert [f"loop number {number} of {name}" in text for number in range(9)] == [
            number < EXAMPLES_SHOWN for number in range(9)
        ]


def test_light_dark_narrow_and_print(html):
    for condition in ("prefers-color-scheme: dark", "max-width", "@media print", 'name="viewport"'):
        assert condition in html


def test_the_same_report_is_the_same_page(made_up_report, html):
    assert html == render(made_up_report())


def test_a_single_column_and_many_columns(made_up_report):
    Reader(render(made_up_report(("a",), human=False, pictures=1)))
    several = Reader(render(made_up_report([f"column{number}" for number in range(12)], differences=(), mixes=None)))
    assert {"1", "12", "H"} <= set(several.classes["badge"])
