"""A made-up report: every measure has a number, so that the page can be tested without measuring anything."""

import io

import numpy as np
import pytest
from PIL import Image

from diversity.measures import catalogue
from diversity.report import DiversityReport, ExampleCaption, ExamplePicture
from diversity.verdict.compare import differences, estimates
from diversity.verdict.mixes import Mixes, MixStep
from diversity.verdict.suspicions import Suspicion
from diversity.verdict.winner import Verdict
from diversity.words.degenerate import REASONS

HUMAN = "captions (human)"


def made_up_report(
    columns=("syn_text_one", "syn_text_other", "syn_text_noise"),
    *,
    human=True,
    pictures=60,
    caption="a red dog runs on the grass",
    key="picture",
    **changes,
):
    """Columns with more and more spread and less and less fidelity; `caption` stands wherever captions do."""
    image = io.BytesIO()
    Image.new("RGB", (120, 80), "#7799bb").save(image, "PNG")
    captions = (ExampleCaption(caption, ("loop",), (2, 3), clip_score=0.71), ExampleCaption("", ("empty",)))
    rng = np.random.default_rng(0)
    names = [*columns, HUMAN] if human else list(columns)
    scores = {
        name: {
            score: _scores(rng, measure, index / len(names), pictures) for score, measure in catalogue.OF_SCORE.items()
        }
        for index, name in enumerate(names)
    }
    rows = {name: _row(name, scores[name], index, caption, pictures) for index, name in enumerate(names)}
    result = differences(scores, ["clip_score", "div_2", "length"], 0) if len(names) > 1 else ()
    content = dict(
        rows=rows,
        references=HUMAN if human else None,
        intervals={name: estimates(scores[name], 0) for name in names},
        distributions={
            name: {score: np.quantile(values, np.linspace(0, 1, 41)) for score, values in scores[name].items()}
            for name in names
        },
        differences=result,
        verdict=_verdict(columns),
        fidelity="clip_score",
        spread="div_2",
        mixes=_mixes(columns, scores) if len(columns) > 1 else None,
        answer=(
            "One captioner is the best.",
            "Two cannot be told apart.",
            "No figure here is shown to predict anything.",
        ),
        notes=("Compared on 60 of 61 pictures.",),
        degenerate_examples={name: {reason: (caption,) for reason in REASONS} for name in names},
        examples=tuple(
            ExamplePicture(f"{key}_{why}_{index}", image.getvalue(), why, captions=dict.fromkeys(names, captions))
            for why in ("best", "worst", "random")
            for index in range(2)
        ),
        settings={"seed": 0, "tokenizer": "words", "versions": {"capsmith": "0.1.0", "numpy": "2"}},
    )
    return DiversityReport(**(content | changes))


def _verdict(columns):
    """The first column is best, the last of several suspect."""
    suspect = columns[2:]
    reasons = (Suspicion("filler", "its captions end with <b>words</b>"),)
    return Verdict(
        "clip",
        ("clip_score",),
        columns[0],
        ranking=tuple(columns[:2]),
        not_behind=(),
        only_repeat=(),
        suspects=dict.fromkeys(suspect, reasons),
    )


def _scores(rng, measure, place, pictures):
    """Return one score per picture, in the measure's range; with `place` spread grows and fidelity falls."""
    middle = (
        0.75 - 0.4 * place
        if measure in (catalogue.CLIP_SCORE, *catalogue.RECALLS, catalogue.PRECISION)
        else 0.35 + 0.4 * place
    )
    return np.clip(rng.normal(middle, 0.1, pictures), 0, 1) * (12 if measure.unit == "words" else 1)


def _row(name, scores, index, caption, pictures):
    row = {}
    for measure in catalogue.ALL:
        inner = row
        for part in measure.path[:-1]:
            inner = inner.setdefault(part, {})
        value = 0.1 + 0.05 * index if measure.unit != "count" else 1000 * (index + 1)
        inner[measure.path[-1]] = float(scores[measure.score].mean()) if measure.score else value
    lengths = np.random.default_rng(index).poisson(6 + 2 * index, 5 * pictures)
    row |= {
        "pictures": pictures,
        "captions": 5 * pictures,
        "words": int(lengths.sum()),
        "length_histogram": {length: int((lengths == length).sum()) for length in sorted(set(lengths.tolist()))},
        "rank_frequency": [
            [rank, round(900 / rank ** (0.8 + 0.1 * index))] for rank in (1, 2, 3, 5, 8, 13, 21, 34, 55)
        ],
        "frames": {
            "templates": [["a … on the …", 0.2, caption], ["the …", 0.1, caption]],
            "openings": [[caption, 0.3]],
        },
    }
    row["facts"]["kinds"] = {"colour": {"precision": 0.9, "recall": None, "stated": 10, "key": 0}}
    return row


def _mixes(columns, scores):
    """Mixes of the first columns, each measured as the mean of its columns."""
    used = ("div_2", "word_coverage", "clip_score")

    def step(mixed):
        mix = {score: sum(scores[name][score] for name in mixed) / len(mixed) for score in used}
        alone = scores[columns[0]]
        gains = estimates({score: mix[score] - alone[score] for score in used}, 0)
        parts = [part for score in used for part in (mix[score].mean(), alone[score].mean(), gains[score])]
        return MixStep(tuple(mixed), 5, *parts)

    return Mixes(columns[0], *used, tuple(step(columns[:count]) for count in range(1, len(columns) + 1)))


@pytest.fixture(name="made_up_report", scope="session")
def made_up_report_fixture():
    return made_up_report
