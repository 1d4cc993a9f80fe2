"""The page of a run: it shows the logs, loads nothing from outside, and treats no text as markup."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from finetune.page import POINTS, TRAINING_COLOUR, _binned, _smoothed, write_training_page

EVIL = '<script>alert("x")</script>'
TRAINING = [
    {
        "step": step,
        "samples": 8 * step,
        "loss": 9 / step,
        "caption": 4 / step,
        "contrastive": 1 / step,
        "learning_rate": 1e-5 * step,
        "gradient_norm": 2.0,
    }
    for step in range(1, 1001)
]
VALIDATIONS = [
    {
        "step": step,
        "samples": 8 * step,
        "caption": 3.25,
        "contrastive": 0.5,
        "pictures": 60,
        "cider_d": step / 1000,
        "degenerate": 0.125,
        "human": {"degenerate": 0.0625},
        "warning": "",
        "samples_shown": {EVIL: [f"a dog {EVIL} at {step}", ""], "other": [f"a cat at {step}"]},
    }
    for step in range(100, 1001, 100)
]


class Reader(HTMLParser):
    """Checks that tags close, and collects what a browser would fetch or run, and the text."""

    VOID = {"meta", "link", "img", "br"}

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
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
        if data.strip():
            self.texts.append(data.strip())


def page_of(folder, training=TRAINING, validations=VALIDATIONS, **more):
    for name, rows in (("train.jsonl", training), ("validation.jsonl", validations)):
        if rows is not None:
            (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_training_page(folder, **{"name": "mine"} | more)
    return (folder / "training.html").read_text()


def test_numbers_curves_and_captions_of_the_logs(tmp_path, picture):
    page = page_of(
        tmp_path, pictures={"other": picture(1), EVIL: b"no picture"}, references={"other": ["the cat", "one cat"]}
    )
    texts = Reader(page).texts
    labels = [
        "Caption loss ↓",
        "Contrastive loss, training ↓",
        "Contrastive loss, held out ↓",
        "CIDEr-D ↑",
        "Degenerate captions ↓",
        "Learning rate",
        "Gradient norm",
    ]  # losses that depend on the batch do not share axes
    assert [text for text in texts if text in labels][:7] == labels and page.count("<svg") == len(labels)
    table = texts[texts.index("800 seen") : texts.index("Curves")]
    assert table == [
        "800 seen",
        "3.250",
        "0.500",
        "0.100",
        "12.5\u202f%",
        "8\u202f000 seen",
        "3.250",
        "0.500",
        "1.000",
        "12.5\u202f%",
        "Human captions",
        "–",
        "–",
        "–",
        "6.2\u202f%",
    ]
    assert "8\u202f000 captions seen in 1\u202f000 steps, 10 validations on 60 held-out pictures" in texts
    assert texts[texts.index("Learning rate") + 1] == "0.01" and texts[texts.index("Gradient norm") + 1] == "2.000"
    assert page.count(f"stroke: {TRAINING_COLOUR}") == 2 * 3 + 1  # the learning rate is not smoothed
    captions_shown = [text for text in texts if text.startswith("a cat at")]
    assert captions_shown == [f"a cat at {step}" for step in (100, 200, 400, 500, 600, 700, 900, 1000)]
    assert "the cat" in texts and page.count("data:image/jpeg;base64,") == 1


def test_text_from_data_is_text_and_nothing_is_fetched(tmp_path):
    page = page_of(
        tmp_path, name=EVIL, references={EVIL: [EVIL]}, validations=[VALIDATIONS[0] | {"warning": f"same {EVIL}"}]
    )
    reader = Reader(page)
    assert "script" not in reader.tags and not any(name.startswith("on") for name, _ in reader.attributes)
    assert (
        f"Fine-tuning {EVIL}" in reader.texts
        and f"a dog {EVIL} at 100" in reader.texts
        and f"same {EVIL}" in reader.texts
    )
    for name, value in reader.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "action"):
            assert value.startswith(("data:", "#")), (name, value)
    assert re.findall(r"url\((?!#)", page) == [] and "@import" not in page


def test_ids_are_unique_and_the_same_logs_are_the_same_page(tmp_path):
    page = page_of(tmp_path)
    ids = [value for name, value in Reader(page).attributes if name == "id"]
    assert ids and len(ids) == len(set(ids))
    assert page_of(tmp_path) == page


def test_a_validation_that_is_not_logged_yet_is_shown_as_if_it_were(tmp_path):
    assert page_of(tmp_path) == page_of(tmp_path, validations=VALIDATIONS[:-1], newest=VALIDATIONS[-1])


def test_it_begins_with_the_model_before_its_first_step(tmp_path):
    rows = [VALIDATIONS[0] | {"step": 0, "samples": 0, "caption": 5.0}, *VALIDATIONS]
    texts = Reader(page_of(tmp_path, validations=rows)).texts
    assert texts[texts.index("before training") :][:2] == ["before training", "5.000"] and "before" in texts


def test_of_long_texts_the_beginning_is_shown_and_nothing_is_lost(tmp_path):
    human, letters = " ".join(f"word{number}" for number in range(800)), "x" * 3000
    row = VALIDATIONS[0] | {"samples_shown": {"a": [letters, "short"]}}
    texts = Reader(page_of(tmp_path, validations=[row], references={"a": [human]})).texts
    for text in (human, letters):
        position = next(number for number, part in enumerate(texts) if text.startswith(part) and len(part) > 300)
        assert len(texts[position]) <= 400 and texts[position + 1] == "…"
        assert (
            " ".join((texts[position], texts[position + 2])) == text
            if " " in text
            else texts[position] + texts[position + 2] == text
        )


def test_degenerate_captions_are_marked(tmp_path):
    row = VALIDATIONS[0] | {"samples_shown": {"a": ["a dog runs home", "a 2 2 2", ""]}}
    texts = Reader(page_of(tmp_path, validations=[row])).texts
    position = texts.index("a dog runs home")
    assert texts[position : position + 5] == ["a dog runs home", "a 2 2 2", "loop", "digits", "(empty)"]


def test_a_measure_that_is_always_zero_has_an_axis_in_plain_numbers(tmp_path):
    validations = [row | {"degenerate": 0.0, "human": {"degenerate": 0.0}} for row in VALIDATIONS]
    page = page_of(tmp_path, validations=validations)
    assert "10 %" in page and not re.search(r"e-\d+ %", page)


def test_the_last_validations_warning_is_shown(tmp_path):
    warned = [VALIDATIONS[0] | {"warning": "One same caption for many"}, VALIDATIONS[1]]
    assert "One same caption for many" not in Reader(page_of(tmp_path, validations=warned)).texts
    assert "One same caption for many" in Reader(page_of(tmp_path, validations=warned[:1])).texts


@pytest.mark.parametrize(
    "training, validations, curves",
    [(None, None, 0), (TRAINING[:1], None, 4), (None, VALIDATIONS[:1], 4), ([], [], 0)],
)
def test_a_run_that_has_just_begun(tmp_path, training, validations, curves):
    page = page_of(tmp_path, training, validations)
    Reader(page)
    assert page.count("<svg") == curves and ("No step is logged yet" in page) == (curves == 0)


def test_a_line_cut_short_is_left_out_and_a_wrong_one_named(tmp_path):
    complete = page_of(tmp_path)
    with open(tmp_path / "train.jsonl", "a") as log:
        log.write('{"step": 1001, "samp')
    write_training_page(tmp_path, name="mine")
    assert (tmp_path / "training.html").read_text() == complete
    for wrong in ("[1, 2]\n", "{}\n", '{"step": "x", "samples": 3}\n', "\n"):
        (tmp_path / "train.jsonl").write_text(json.dumps(TRAINING[0]) + "\n" + wrong)
        with pytest.raises(ValueError, match=r"train\.jsonl, line 2"):
            write_training_page(tmp_path, name="mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.jsonl", "training.html", "validation.jsonl"]


def test_a_long_runs_curve_is_means_of_few_points():
    samples, values = _binned(np.arange(10 * POINTS) * 1.0, np.repeat(np.arange(POINTS), 10) * 1.0)
    np.testing.assert_allclose(values, np.arange(POINTS))
    np.testing.assert_allclose(samples, 10 * np.arange(POINTS) + 4.5)


def test_smoothing_averages_what_there_is_around():
    values = np.random.default_rng(0).normal(size=100)  # 5 % of 100 values: a window of two values to each side
    expected = [values[max(index - 2, 0) : index + 3].mean() for index in range(100)]
    np.testing.assert_allclose(_smoothed(values), expected)
    np.testing.assert_allclose(_smoothed(values[:10]), values[:10])
