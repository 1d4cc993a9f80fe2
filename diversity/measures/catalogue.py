"""All measures of a report, and the choice of those in its first table."""

from collections.abc import Iterable, Mapping
from typing import Any

from diversity.measures.fidelity_catalogue import (
    BLEU,
    CIDER,
    CLIP_SCORE,
    CONSISTENCY,
    COVERAGE,
    DEGENERATE,
    DEGENERATE_REASONS,
    FOUND_CLIP,
    FOUND_MEANING,
    FOUND_WORDS,
    IMAGE_COVERAGE,
    METEOR,
    PRECISION,
    RECALL,
    RECALLS,
    REF_CLIP_SCORE,
    ROUGE,
    STATED,
    WORD_COVERAGE,
)
from diversity.measures.measure import Measure
from diversity.measures.spread_catalogue import (
    CAPTIONS,
    COMPRESSION,
    COSINE_DISTANCE,
    DISTINCT,
    DIV,
    DUPLICATES,
    ENTROPY,
    EQUAL_TOKENS,
    EQUAL_WORDS,
    HAPAX,
    LENGTH,
    LENGTHS,
    MBLEU,
    MOST_SHARED,
    NEAR_DUPLICATES,
    NOVELTY,
    PICTURES,
    SELF_CIDER,
    SELF_REPETITION,
    SET_COSINE_DISTANCE,
    SET_VENDI,
    SHARED,
    VENDI,
    VOCABULARY,
    WORDS,
)

ALL = (
    PICTURES,
    CAPTIONS,
    WORDS,
    LENGTH,
    *LENGTHS,
    VOCABULARY,
    *DISTINCT,
    *ENTROPY,
    SELF_REPETITION,
    HAPAX,
    COMPRESSION,
    *NOVELTY,
    EQUAL_WORDS,
    *EQUAL_TOKENS,
    *DIV,
    MBLEU,
    SELF_CIDER,
    DUPLICATES,
    NEAR_DUPLICATES,
    SHARED,
    MOST_SHARED,
    COSINE_DISTANCE,
    *VENDI,
    SET_COSINE_DISTANCE,
    *SET_VENDI,
    CONSISTENCY,
    WORD_COVERAGE,
    COVERAGE,
    IMAGE_COVERAGE,
    CLIP_SCORE,
    REF_CLIP_SCORE,
    FOUND_CLIP,
    *RECALLS,
    CIDER,
    FOUND_WORDS,
    FOUND_MEANING,
    BLEU,
    ROUGE,
    METEOR,
    DEGENERATE,
    *DEGENERATE_REASONS,
    PRECISION,
    RECALL,
    STATED,
)
OF_SCORE = {measure.score: measure for measure in ALL if measure.score}

_FIRST = (LENGTH, DIV[1], SELF_CIDER, VENDI[0], PRECISION, RECALL, CLIP_SCORE, RECALLS[0], CIDER, DEGENERATE)
_SPARE = (MBLEU, DUPLICATES, VOCABULARY)  # shown where some of the first measures are missing
_SHOWN_MEASURES = 7


def headline(rows: Iterable[Mapping[str, Any]]) -> tuple[Measure, ...]:
    """Return the pictures and at most seven measures for the first table, spread before fidelity.

    The share of degenerate captions is always among the measures.
    """
    rows = list(rows)
    measured = [measure for measure in (*_FIRST, *_SPARE) if any(measure.value(row) is not None for row in rows)]
    chosen = measured[:_SHOWN_MEASURES]
    if DEGENERATE not in chosen:
        chosen[_SHOWN_MEASURES - 1 :] = [DEGENERATE]
    return tuple(
        measure
        for measure in (PICTURES, *_FIRST[:4], *_SPARE, *_FIRST[4:])
        if measure in chosen or measure is PICTURES
    )
