"""Scores of the sample's captions and pictures: one number of each picture, and where they exist of each caption.

P: pictures of the sample
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diversity.columns import Picture
from diversity.measures.agreement import Agreement
from diversity.measures.clip_score import clip_scores
from diversity.measures.embedders import HOW_TO_GET, Embedder, OpenClip, default_embedder, load_embedder
from diversity.measures.fidelity import FactCounts, count_true
from diversity.measures.lexical import within_picture
from diversity.measures.near_duplicates import near_duplicates
from diversity.measures.pairs import batches
from diversity.measures.self_cider import DocumentFrequency, self_cider
from diversity.measures.semantic import mean, semantic_scores
from diversity.measures.signs import Language
from diversity.verdict.mixes import word_coverage
from diversity.words.degenerate import degenerate_reasons
from diversity.words.tokens import words
from imagetext.shown import Progress

# Scores whose means go into the rows of the report.
SAMPLED = ("self_cider", "near_duplicates", "word_coverage", "cider_d", "found_words", "rouge_l", "meteor")
Scores = dict[str, np.ndarray]  # of each picture (P,), NaN where undefined


@dataclass(frozen=True)
class Sampled:
    """What is measured on the sample: `scores[column][score]` (P,), of captions a list of arrays, and parts of report rows.

    `signs[column][sign]` (P,) are what `diversity.verdict.suspicions` looks at.
    """

    scores: Mapping[str, Scores]
    signs: Mapping[str, Scores]
    caption_scores: Mapping[str, Mapping[str, Sequence[np.ndarray]]]  # may be of the first pictures only
    rows: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...]
    settings: Mapping[str, Any]


def sample_scores(
    pictures: Sequence[Picture],
    names: Sequence[str],
    references: str | None,
    *,
    embedder: str,
    clip: str | None,
    device: str,
    semantic_pictures: int,
    seed: int,
) -> Sampled:
    """Scores the columns `names` and the references' on the sample's pictures; CIDEr-D, CLIP and meaning on its first ones."""
    name = default_embedder() if embedder == "auto" else None if embedder == "none" else embedder
    # Models are loaded before the work, which one that is not there would waste.
    meaning = load_embedder(name, device) if name else None
    model = OpenClip(clip, device) if clip else None
    columns = [*names, *([references] if references else [])]
    groups = {column: [picture.captions[column] for picture in pictures] for column in columns}
    world = DocumentFrequency(
        [picture.references for picture in pictures]
        if references
        else [[caption for column in columns for caption in groups[column][number]] for number in range(len(pictures))]
    )
    human = [picture.references for picture in pictures[:semantic_pictures]]
    agreement = Agreement(human) if references else None
    scores: dict[str, Scores] = {}
    signs: dict[str, Scores] = {}
    rows: dict[str, dict[str, Any]] = {}
    of_captions: dict[str, dict[str, list[np.ndarray]]] = {}
    for column in Progress(columns, desc="scoring the sample", unit="column", delay=2):
        scores[column] = _lexical(groups[column], world)
        of_captions[column] = {"degenerate": _degenerate(pictures, column)}
        scores[column]["degenerate"] = _means(of_captions[column]["degenerate"], len(pictures))
        if any(picture.scene for picture in pictures):
            of_captions[column]["precision"] = _precision(pictures, column)
            scores[column] |= _facts(pictures, column)
        if references not in (None, column):
            scores[column]["word_coverage"] = word_coverage(
                groups[column], [picture.references for picture in pictures]
            )
        if agreement:
            found = agreement.of(groups[column][:semantic_pictures], themselves=column == references)
            of_captions[column]["cider_d"], signs[column] = found.captions, found.signs
            overlap, bleu_4 = agreement.overlap(groups[column][:semantic_pictures], themselves=column == references)
            scores[column] |= {
                score: _padded(values, len(pictures)) for score, values in (found.pictures | overlap).items()
            }
        else:
            signs[column] = _order(groups[column][:semantic_pictures])
        rows[column] = {score: mean(scores[column][score]) for score in SAMPLED if score in scores[column]}
        rows[column] |= {"bleu_4": bleu_4} if agreement else {}
    dear = _Dear(pictures[:semantic_pictures], columns, references)
    missing = "no embedder was asked for" if embedder == "none" else "there is no embedder"
    notes = [] if name else [f"What captions mean is not measured: {missing}; {HOW_TO_GET}."]
    if meaning:
        dear.meaning(meaning, rows)
    if model:
        notes += dear.clip(model, rows, of_captions)
    for column, found in dear.scores.items():
        scores[column] |= {score: _padded(values, len(pictures)) for score, values in found.items()}
        signs[column] |= dear.signs[column]
    return Sampled(
        scores,
        signs,
        of_captions,
        rows,
        tuple(notes),
        {"embedder": name, "clip": clip, "semantic_pictures": len(dear.pictures) if name or clip else 0},
    )


class _Dear:
    """What needs a model, of the sample's first pictures."""

    def __init__(self, pictures: Sequence[Picture], columns: Sequence[str], references: str | None):
        self.pictures, self.human = pictures, references
        self.columns = {name: [picture.captions[name] for picture in pictures] for name in columns}
        self.references = [picture.references for picture in pictures] if references else None
        self.scores: dict[str, Scores] = {name: {} for name in columns}
        self.signs: dict[str, Scores] = {name: {} for name in columns}

    def meaning(self, embedder: Embedder, rows: Mapping[str, dict[str, Any]]) -> None:
        """Spread in meaning and coverage of the references, into the scores and the rows."""
        for name, of_column in semantic_scores(embedder, self.columns, self.references, self.human).items():
            self.scores[name] |= of_column.pictures
            self.signs[name] |= of_column.signs
            rows[name]["semantic"] = of_column.row

    def clip(
        self, model: OpenClip, rows: Mapping[str, dict[str, Any]], of_captions: Mapping[str, dict[str, Any]]
    ) -> Sequence[str]:
        """CLIPScore and self-retrieval, into the scores and the rows; what a reader must know of them."""
        found, notes = clip_scores(
            model, [picture.image for picture in self.pictures], self.columns, self.references, self.human
        )
        for name, of_column in found.items():
            self.scores[name] |= of_column.pictures
            of_captions[name]["clip_score"] = of_column.captions
            self.signs[name] |= of_column.signs
            rows[name]["clip"] = of_column.row
        return notes


def _lexical(groups: Sequence[Sequence[str]], world: DocumentFrequency) -> Scores:
    """Length, and spread within each picture by its words."""
    parts: list[Scores] = []
    for tokens in batches(groups):
        parts.append(
            {
                **within_picture(tokens),
                "self_cider": self_cider(tokens, world),
                "near_duplicates": near_duplicates(tokens),
            }
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _degenerate(pictures: Sequence[Picture], name: str) -> list[np.ndarray]:
    """1 for each caption of each picture that is degenerate, else 0."""
    return [
        np.array(
            [
                bool(degenerate_reasons(caption, mark))
                for caption, mark in zip(
                    picture.captions[name], picture.truncated.get(name) or (False,) * len(picture.captions[name])
                )
            ],
            float,
        )
        for picture in pictures
    ]


def _precision(pictures: Sequence[Picture], name: str) -> list[np.ndarray]:
    """Of each caption the share of its stated facts that is true, NaN where it states none or the truth is not known."""

    def of_caption(caption: str, picture: Picture) -> float:
        true, stated = count_true(caption, picture.scene) if picture.scene else (0, 0)
        return true / stated if stated else np.nan

    return [np.array([of_caption(caption, picture) for caption in picture.captions[name]]) for picture in pictures]


def _facts(pictures: Sequence[Picture], name: str) -> Scores:
    """Precision and recall of the facts in each picture's captions; their means are those of all facts together.

    A picture's score is r + (true - r stated) ÷ mean stated, r the share of all: so the interval of the mean is that of a ratio.
    """
    counts = np.full((len(pictures), 4), np.nan)  # true, stated; found, key
    for number, picture in enumerate(pictures):
        if picture.scene:
            facts = FactCounts()
            facts.update(picture.captions[name], picture.scene)
            counts[number] = [count.total() for count in (facts.true, facts.stated, facts.found, facts.key)]
    return {
        score: _linear_ratio(*counts[:, columns].T) for score, columns in (("precision", [0, 1]), ("recall", [2, 3]))
    }


def _linear_ratio(parts: np.ndarray, wholes: np.ndarray) -> np.ndarray:
    """Scores (P,) whose mean is Σ parts ÷ Σ wholes, NaN where these are."""
    total = np.nansum(wholes)
    if not total:
        return np.full(len(parts), np.nan)
    ratio = np.nansum(parts) / total
    return ratio + (parts - ratio * wholes) / np.nanmean(wholes)


def _order(groups: Sequence[Sequence[str]]) -> Scores:
    """How far words stand in an order that the column's captions of other pictures know, where there are no human ones."""
    texts = [[words(caption) for caption in group] for group in groups]
    language = Language(texts)
    shares = [[language.order(caption, picture) for caption in group] for picture, group in enumerate(texts)]
    return {
        sign: _means([np.array([of_caption[at] for of_caption in group]) for group in shares], len(groups))
        for at, sign in enumerate(("order", "any_order"))
    }


def _means(of_captions: Sequence[np.ndarray], pictures: int) -> np.ndarray:
    """The mean over each picture's captions (P,), NaN for pictures behind those that were scored."""
    return _padded(
        np.array([np.nanmean(values) if not np.isnan(values).all() else np.nan for values in of_captions]), pictures
    )


def _padded(values: np.ndarray, pictures: int) -> np.ndarray:
    """The scores of the first pictures, and NaN for the others (P,)."""
    return np.concatenate([values, np.full(pictures - len(values), np.nan)])
