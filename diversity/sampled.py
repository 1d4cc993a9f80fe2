"""Score the captions of the sampled pictures: one number per picture, and for some scores one number per caption.

P: pictures of the sample
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diversity.columns import ComparedPicture
from diversity.measures.agreement import Agreement
from diversity.measures.clip_score import clip_scores
from diversity.measures.embedders import HOW_TO_GET, Embedder, OpenClip, default_embedder, load_embedder
from diversity.measures.fidelity import FactCounts, count_true
from diversity.measures.lexical import within_picture
from diversity.measures.near_duplicates import near_duplicates
from diversity.measures.pairs import batches
from diversity.measures.self_cider import DocumentFrequency, self_cider
from diversity.measures.semantic import mean, semantic_scores, split_rows
from diversity.measures.signs import Language
from diversity.verdict.mixes import word_coverage
from diversity.words.degenerate import degenerate_reasons
from diversity.words.suspects import suspects
from diversity.words.tokens import words
from imagetext.shown import Progress

# The scores whose means are written into the rows of the report.
SAMPLED = ("self_cider", "near_duplicates", "word_coverage", "cider_d", "found_words", "rouge_l", "meteor")
Scores = dict[str, np.ndarray]  # name of a score -> its value for each picture (P,), NaN where undefined


@dataclass(frozen=True)
class Sampled:
    """The scores of the sampled pictures and their captions, and the parts of the report that follow from them."""

    scores: Mapping[str, Scores]  # column -> score -> (P,)
    # column -> sign -> (P,); `diversity.verdict.suspicions` looks for suspect columns in them
    signs: Mapping[str, Scores]
    # column -> score -> an array for each picture with one number per caption; may hold the first pictures only
    caption_scores: Mapping[str, Mapping[str, Sequence[np.ndarray]]]
    rows: Mapping[str, Mapping[str, Any]]  # column -> numbers for its row of the report
    notes: tuple[str, ...]
    settings: Mapping[str, Any]


def sample_scores(
    pictures: Sequence[ComparedPicture],
    names: Sequence[str],
    references: str | None,
    *,
    embedder: str,
    clip: str | None,
    device: str,
    semantic_pictures: int,
) -> Sampled:
    """Score the columns `names` and the references on the sampled pictures.

    Agreement with human captions, CLIPScore and meaning are measured on the first `semantic_pictures` pictures only.
    Raises ValueError where a model cannot be loaded.
    """
    name = default_embedder() if embedder == "auto" else None if embedder == "none" else embedder
    # Models are loaded first, so that a missing model fails the run before any work is done.
    meaning = load_embedder(name, device) if name else None
    model = OpenClip(clip, device) if clip else None
    columns = [*names, *([references] if references else [])]
    groups = {column: [picture.captions[column] for picture in pictures] for column in columns}
    document_frequency = _document_frequency(pictures, groups, references)
    first = _FirstPictures(pictures[:semantic_pictures], columns, references)
    scores: dict[str, Scores] = {}
    caption_scores: dict[str, dict[str, list[np.ndarray]]] = {}
    for column in Progress(columns, desc="scoring the sample", unit="column", delay=2):
        scores[column], caption_scores[column] = _scores_of_all(pictures, column, groups[column], document_frequency)
        if references not in (None, column):
            scores[column]["word_coverage"] = word_coverage(
                groups[column], [picture.references for picture in pictures]
            )
        first.add_words(column)
    missing = "no embedder was chosen" if embedder == "none" else "no embedder is installed"
    notes = [] if name else [f"What captions mean is not measured, because {missing}; {HOW_TO_GET}."]
    if meaning:
        first.add_meaning(meaning)
    if model:
        notes += first.add_clip(model)
    rows: dict[str, dict[str, Any]] = {}
    for column in columns:
        scores[column] |= _all_padded(first.scores[column], len(pictures))
        caption_scores[column] |= first.caption_scores[column]
        rows[column] = {score: mean(scores[column][score]) for score in SAMPLED if score in scores[column]}
        rows[column] |= first.rows[column]
    return Sampled(
        scores=scores,
        signs={column: _all_padded(signs, len(pictures)) for column, signs in first.signs.items()},
        caption_scores=caption_scores,
        rows=rows,
        notes=tuple(notes),
        settings={
            "embedder": name,
            "clip": clip,
            "semantic_pictures": len(first.pictures) if name or clip else 0,
        },
    )


def _document_frequency(
    pictures: Sequence[ComparedPicture], groups: Mapping[str, Sequence[Sequence[str]]], references: str | None
) -> DocumentFrequency:
    """Count n-grams in the references or, where there are none, in the captions of all columns together."""
    if references:
        return DocumentFrequency([picture.references for picture in pictures])
    return DocumentFrequency(
        [[caption for column in groups.values() for caption in column[number]] for number in range(len(pictures))]
    )


def _scores_of_all(
    pictures: Sequence[ComparedPicture],
    column: str,
    groups: Sequence[Sequence[str]],
    document_frequency: DocumentFrequency,
) -> tuple[Scores, dict[str, list[np.ndarray]]]:
    """Return the scores of a column that all pictures of the sample get: of pictures, and of their captions."""
    caption_scores = {"degenerate": _degenerate(pictures, column)}
    scores = _lexical(groups, document_frequency)
    scores["degenerate"] = _means(caption_scores["degenerate"], len(pictures))
    if any(picture.scene for picture in pictures):
        caption_scores["precision"] = _precision(pictures, column)
        scores |= _facts(pictures, column)
    return scores, caption_scores


class _FirstPictures:
    """The scores that take long to compute, and are computed for the first pictures of the sample only."""

    def __init__(self, pictures: Sequence[ComparedPicture], columns: Sequence[str], references: str | None):
        self.pictures, self.human = pictures, references
        self.columns = {name: [picture.captions[name] for picture in pictures] for name in columns}
        self.references = [picture.references for picture in pictures] if references else None
        self.agreement = Agreement(self.references) if self.references is not None else None
        self.scores: dict[str, Scores] = {name: {} for name in columns}
        self.signs: dict[str, Scores] = {name: {} for name in columns}
        self.caption_scores: dict[str, dict[str, list[np.ndarray]]] = {name: {} for name in columns}
        self.rows: dict[str, dict[str, Any]] = {name: {} for name in columns}

    def add_words(self, name: str) -> None:
        """Add the agreement of a column with the human captions or, where there are none, its order of words."""
        groups = self.columns[name]
        if self.agreement is None:
            self.signs[name] = _order_signs(groups)
            return
        agreed = self.agreement.score(groups, themselves=name == self.human)
        overlap, bleu_4 = self.agreement.overlap(groups, themselves=name == self.human)
        self.scores[name] = agreed.pictures | overlap
        self.signs[name] = agreed.signs
        self.caption_scores[name]["cider_d"] = agreed.captions
        self.rows[name]["bleu_4"] = bleu_4

    def add_meaning(self, embedder: Embedder) -> None:
        """Add the spread in meaning and the coverage of the references."""
        for name, semantic in semantic_scores(embedder, self.columns, self.references, human=self.human).items():
            self.scores[name] |= semantic.pictures
            self.signs[name] |= semantic.signs
            self.rows[name]["semantic"] = semantic.row

    def add_clip(self, model: OpenClip) -> Sequence[str]:
        """Add CLIPScore and self-retrieval; return notes for the reader."""
        images = [picture.image for picture in self.pictures]
        scored, notes = clip_scores(model, images, self.columns, references=self.references, human=self.human)
        for name, clip in scored.items():
            self.scores[name] |= clip.pictures
            self.signs[name] |= clip.signs
            self.caption_scores[name]["clip_score"] = clip.captions
            self.rows[name]["clip"] = clip.row
        return notes


def _lexical(groups: Sequence[Sequence[str]], document_frequency: DocumentFrequency) -> Scores:
    """Measure the length of captions and how much their words vary within each picture."""
    parts: list[Scores] = []
    for tokens in batches(groups):
        parts.append(
            {
                **within_picture(tokens),
                "self_cider": self_cider(tokens, document_frequency),
                "near_duplicates": near_duplicates(tokens),
            }
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _degenerate(pictures: Sequence[ComparedPicture], name: str) -> list[np.ndarray]:
    """Return for each picture an array with 1 for each degenerate caption and 0 for each other one."""
    marks = []
    groups = [picture.captions[name] for picture in pictures]
    truncated = [picture.truncated.get(name) or (False,) * len(group) for picture, group in zip(pictures, groups)]
    start = 0
    for tokens in batches(groups):
        of_batch = slice(start, start := start + tokens.pictures)
        captions = [caption for group in groups[of_batch] for caption in group]
        cut = [mark for picture_marks in truncated[of_batch] for mark in picture_marks]
        degenerate = np.zeros(len(captions))
        for number in np.flatnonzero(suspects(captions, tokens) | np.array(cut, bool)).tolist():
            degenerate[number] = bool(degenerate_reasons(captions[number], cut[number]))
        marks += split_rows(degenerate, tokens.counts)
    return marks


def _precision(pictures: Sequence[ComparedPicture], name: str) -> list[np.ndarray]:
    """Return the share of true facts among the facts of each caption, one array per picture.

    NaN where a caption states no fact, or where the truth is not known.
    """

    def share_true(caption: str, picture: ComparedPicture) -> float:
        true, stated = count_true(caption, picture.scene) if picture.scene else (0, 0)
        return true / stated if stated else np.nan

    return [np.array([share_true(caption, picture) for caption in picture.captions[name]]) for picture in pictures]


def _facts(pictures: Sequence[ComparedPicture], name: str) -> Scores:
    """Return the precision and recall of facts, scored so that the mean over pictures is the value over all facts.

    The score of a picture is r + (true - r stated) ÷ mean stated, where r = Σ true ÷ Σ stated. So the bootstrap
    interval of the mean is the interval of a ratio.
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
    """Return scores (P,) whose mean is Σ parts ÷ Σ wholes; NaN where parts and wholes are NaN."""
    total = np.nansum(wholes)
    if not total:
        return np.full(len(parts), np.nan)
    ratio = np.nansum(parts) / total
    return ratio + (parts - ratio * wholes) / np.nanmean(wholes)


def _order_signs(groups: Sequence[Sequence[str]]) -> Scores:
    """Measure how far words are in an order that is known from the column's own captions of other pictures.

    This is for columns without human captions to compare with.
    """
    texts = [[words(caption) for caption in group] for group in groups]
    language = Language(texts)
    shares = [[language.order(caption, picture) for caption in group] for picture, group in enumerate(texts)]
    signs = {}
    for index, sign in enumerate(("order", "any_order")):
        signs[sign] = _means([np.array([pair[index] for pair in group]) for group in shares], len(groups))
    return signs


def _means(caption_scores: Sequence[np.ndarray], pictures: int) -> np.ndarray:
    """Return the mean over each picture's captions (P,); NaN for pictures after the scored ones."""
    means = [np.nanmean(values) if not np.isnan(values).all() else np.nan for values in caption_scores]
    return _padded(np.array(means), pictures)


def _padded(values: np.ndarray, pictures: int) -> np.ndarray:
    """Return the scores of the first pictures, followed by NaN for the other pictures (P,)."""
    return np.concatenate([values, np.full(pictures - len(values), np.nan)])


def _all_padded(scores: Scores, pictures: int) -> Scores:
    return {score: _padded(values, pictures) for score, values in scores.items()}
