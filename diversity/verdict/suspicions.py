"""Find columns that seem not to be captions of their pictures, with reasons that a reader can check.

P: pictures
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from diversity.measures.catalogue import MOST_SHARED
from diversity.measures.measure import PERCENT
from diversity.measures.pairs import Groups
from diversity.verdict.compare import Estimate, estimates
from diversity.words.tokens import words

# Limits beyond which a column is suspect. Human captions and those of weak captioners are far from them
# (`benchmarks.verdict`).
STRANGE = 1 / 3  # share of captions that fit other pictures as well as their own
ORDER = 0.3  # share of the known pairs of neighbouring words that must be more than any order of the words would give
STRANGERS = 0.08  # share of pairs of neighbouring common words that occur under no other picture
GROUNDED = 0.4  # how well the first or last words must be grounded in the picture, as a share of the whole caption
REPEATED = 1 / 2  # share of near duplicates among the captions that can repeat another caption of their picture
FOR_MANY = 0.2  # share of the pictures that have the same caption
DEGENERATE = 0.2  # share of degenerate captions
COPIED = 1.5  # times as near to a single human caption as human captions are
COPIES = 1 / 3  # share of captions that may be copies, for pictures with too few human captions for COPIED
ALIKE = 1 / 2  # share of human captions much like those of other pictures, from which people seem to follow templates
# Share of captions that equal a human one, where people follow templates and pictures have several captions.
SAME = 0.8
PHRASE = 3  # words at the beginning or end of a caption that are looked at
PHRASE_SHARE = 1 / 2  # share of captions that have the same phrase at an end
PHRASE_WORDS = 0.1  # share of all words that these phrases must be
MIN_PICTURES = 10  # a sign on fewer pictures shows nothing
HUMAN_TIMES = 3  # a fault that people have, too, counts only if the column has it so many times as often


class Suspicion(NamedTuple):
    """Why a column is suspect: one word for scripts, and the reason in plain words."""

    kind: str  # other_pictures | other_words | word_order | repeated | filler | copied | degenerate
    words: str


def suspect_columns(
    scores: Mapping[str, Mapping[str, np.ndarray]],
    signs: Mapping[str, Mapping[str, np.ndarray]],
    rows: Mapping[str, Mapping],
    captions: Mapping[str, Groups],
    columns: Sequence[str],
    human: str | None,
    seed: int,
    *,
    by_agreement: bool,
) -> tuple[dict[str, tuple[Suspicion, ...]], dict[str, tuple[Suspicion, ...]]]:
    """Return the suspect `columns` with their reasons, and the columns in doubt with theirs.

    `scores` and `signs` hold arrays (P,) for each column. The `human` column is what the others are compared with, and
    is never suspect itself. A sign makes a column suspect if the 95 % interval of its mean is beyond the limit, unless
    people show the same sign. If only the mean is beyond the limit, the column is in doubt. Copies of human captions
    are suspect only where columns are judged by their agreement with human captions, because a copy of a true caption
    is true. Where human captions follow templates, as those of drawn shapes do, an honest captioner often says exactly
    what they say, so fewer signs count.
    """
    suspects, doubts = {}, {}
    people = _means(_tested_values(scores[human], signs[human], captions[human])) if human else {}
    human_signs, human_captions, human_row = (
        (signs[human], captions[human], rows[human]) if human else (None, None, None)
    )
    signs = _without_stray_references(signs, columns)
    free = people.get("alike", 0) < ALIKE  # whether human captions are free descriptions and follow no templates
    for column in columns:
        by_picture = _tested_values(scores[column], signs[column], captions[column], human_signs=human_signs)
        tested = estimates(
            {name: values for name, values in by_picture.items() if (~np.isnan(values)).sum() >= MIN_PICTURES}, seed
        )
        without_intervals = {name: Estimate(*[estimate.mean] * 3) for name, estimate in tested.items()}
        for result, values in ((suspects, tested), (doubts, without_intervals)):
            reasons = [
                *_strange(values),
                *_order(values),
                *(_replaced(values, people) if free else ()),
                *_filler(values, people, captions[column], human=human_captions),
                *_repeated(values, people, rows[column], human=human_row),
                *(_copied(values, free) if by_agreement else ()),
                *_degenerate(values, people),
            ]
            if reasons and column not in suspects:
                result[column] = tuple(reasons)
    return suspects, doubts


def _without_stray_references(
    signs: Mapping[str, Mapping[str, np.ndarray]], columns: Sequence[str]
) -> Mapping[str, Mapping[str, np.ndarray]]:
    """Return the signs of `columns` where human captions that share no word with any column count as strange once.

    Such human captions are often no descriptions: web pages have file names and slogans as alternative texts. The
    captions of another picture are strange, counted twice, in every second case; captions with such references always.
    """
    words_signs = [signs[column] for column in columns if "no_common_word" in signs[column]]
    if len(words_signs) < len(columns):
        return signs
    stray = np.all([of_column["no_common_word"] == 1 for of_column in words_signs], axis=0)
    return {
        column: {**signs[column], "strange_words": np.where(stray, 1.0, signs[column]["strange_words"])}
        for column in columns
    }


def _tested_values(
    scores: Mapping[str, np.ndarray],
    signs: Mapping[str, np.ndarray],
    groups: Groups,
    *,
    human_signs: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Return the values of a column that are tested, each (P,)."""
    can_repeat = 1 - 1 / np.maximum(1, [len(group) for group in groups])
    tested = {
        name: signs[name]
        for name in (
            "strange_words",
            "strange_meaning",
            "strange_clip",
            "known_words",
            "copies",
            "nearer_to_one",
            "alike",
            "same",
        )
        if name in signs
    }
    tested |= {name: scores[name] for name in ("duplicates", "near_duplicates", "degenerate") if name in scores}
    with np.errstate(invalid="ignore"):
        tested["repeats"] = scores["near_duplicates"] / can_repeat
    if "order" in signs:
        tested["ordered"] = (1 - ORDER) * signs["order"] - signs["any_order"]
    if "strangers" in signs:
        tested |= {name: signs[name] for name in ("strangers", "common_pairs")}
        tested["replaced"] = signs["strangers"] - STRANGERS * signs["common_pairs"]
    if "whole" in signs:
        tested["whole"] = signs["whole"]
        tested |= {third: signs[third] - GROUNDED * signs["whole"] for third in ("first_third", "last_third")}
    if human_signs and "nearer_to_one" in human_signs:
        tested["copied"] = signs["nearer_to_one"] - COPIED * human_signs["nearer_to_one"]
        tested["copies"] = np.where(np.isnan(human_signs["nearer_to_one"]), signs["copies"], np.nan)
    return tested


def _means(tested: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the means of the values that are defined for some picture."""
    return {name: float(np.nanmean(values)) for name, values in tested.items() if not np.isnan(values).all()}


def _percent(share: float) -> str:
    return f"{100 * min(share, 1):.0f}{PERCENT}"


def _strange(tested: Mapping[str, Estimate]) -> list[Suspicion]:
    """Suspect captions that fit other pictures as well as their own, if every available judge says so."""
    judges = [tested[name] for name in ("strange_words", "strange_meaning", "strange_clip") if name in tested]
    if not judges or min(judge.low for judge in judges) <= STRANGE:
        return []
    known_words = tested.get("known_words")
    if known_words and known_words.high < 1 / 2:
        words_text = (
            f"only {_percent(known_words.mean)} of its words occur in any human caption, as if it were in another "
            "language, so nothing shows that it describes its pictures"
        )
        return [Suspicion("other_words", words_text)]
    share = _percent(min(judge.mean for judge in judges))
    return [Suspicion("other_pictures", f"about {share} of its captions fit other pictures as well as their own")]


def _order(tested: Mapping[str, Estimate]) -> list[Suspicion]:
    """Suspect captions whose words are in an order that other captions do not have."""
    ordered = tested.get("ordered")
    if ordered and ordered.high < 0:
        return [
            Suspicion("word_order", "its words are in no order that other captions have, as if they were shuffled")
        ]
    return []


def _replaced(tested: Mapping[str, Estimate], people: Mapping[str, float]) -> list[Suspicion]:
    """Suspect captions with common words next to each other that are neighbours in no other caption."""
    replaced = tested.get("replaced")
    share = _stranger_share({name: tested[name].mean for name in ("strangers", "common_pairs") if name in tested})
    if replaced and replaced.low > 0 and HUMAN_TIMES * _stranger_share(people) < share:
        return [
            Suspicion(
                "word_order",
                f"{_percent(share)} of its pairs of neighbouring common words never occur in human captions of other "
                "pictures, as if some words were replaced by others",
            )
        ]
    return []


def _stranger_share(means: Mapping[str, float]) -> float:
    """Return the share of pairs of neighbouring common words that occur under no other picture."""
    return means["strangers"] / means["common_pairs"] if means.get("common_pairs") else 0.0


def _filler(
    tested: Mapping[str, Estimate], people: Mapping[str, float], groups: Groups, *, human: Groups | None
) -> list[Suspicion]:
    """Suspect captions whose first or last words say nothing about the picture, or are the same in most captions."""
    suspicions = []
    for third, end, verb in (("first_third", 0, "begin"), ("last_third", -1, "end")):
        phrase, share, share_of_words = _commonest_phrase(groups, end)
        same = (
            share >= PHRASE_SHARE
            and len(groups) >= MIN_PICTURES
            and share_of_words >= PHRASE_WORDS
            and (not human or HUMAN_TIMES * _phrase_share(phrase, human, end) < share)
        )
        says_nothing = (
            third in tested
            and tested[third].high < 0
            and people.get(third, 0) >= GROUNDED / 2 * people.get("whole", 0)
        )
        if same:
            suspicions.append(
                Suspicion("filler", f"{_percent(share)} of its captions {verb} with the same words, “{phrase}”")
            )
        elif says_nothing:
            suspicions.append(
                Suspicion("filler", f"the words that its captions {verb} with say nothing about their pictures")
            )
    return suspicions


def _phrases(groups: Groups, end: int) -> tuple[Counter, int, int]:
    """Count the phrases at one end of captions, the first words for `end` 0 and the last words for -1.

    Only captions that are longer than a phrase have one. Also returns the number of all captions and of all words.
    """
    texts = [words(caption) for group in groups for caption in group]
    phrases = Counter(tuple(text[:PHRASE] if end == 0 else text[-PHRASE:]) for text in texts if len(text) > PHRASE)
    return phrases, len(texts), sum(map(len, texts))


def _commonest_phrase(groups: Groups, end: int) -> tuple[str, float, float]:
    """Return the commonest phrase at one end, the share of captions that have it, and its share of all words."""
    phrases, captions, length = _phrases(groups, end)
    if not phrases:
        return "", 0.0, 0.0
    ((phrase, times),) = phrases.most_common(1)
    return " ".join(phrase), times / captions, PHRASE * times / length


def _phrase_share(phrase: str, groups: Groups, end: int) -> float:
    """Return the share of captions that have the phrase at one end."""
    phrases, captions, _ = _phrases(groups, end)
    return phrases[tuple(phrase.split())] / captions if captions else 0.0


def _repeated(
    tested: Mapping[str, Estimate], people: Mapping[str, float], row: Mapping, *, human: Mapping | None
) -> list[Suspicion]:
    """Suspect a caption that is repeated within pictures or under many pictures."""
    suspicions = []
    repeats = tested.get("repeats")
    if repeats and repeats.low > REPEATED and HUMAN_TIMES * people.get("repeats", 0) < repeats.mean:
        near, exact = (_percent(tested[name].mean) for name in ("near_duplicates", "duplicates"))
        suspicions.append(
            Suspicion(
                "repeated",
                f"it says one caption again and again: {near} of its captions repeat an earlier caption of their "
                f"picture or nearly do, {exact} word for word",
            )
        )
    shared = MOST_SHARED.value(row) or 0
    human_shared = (MOST_SHARED.value(human) if human else None) or 0
    if shared >= FOR_MANY and row["pictures"] >= MIN_PICTURES and HUMAN_TIMES * human_shared < shared:
        suspicions.append(Suspicion("repeated", f"one caption stands for {_percent(shared)} of the pictures"))
    return suspicions


def _copied(tested: Mapping[str, Estimate], free: bool) -> list[Suspicion]:
    """Suspect captions that seem to be copies of human captions; `free`: these follow no templates."""
    limits = {"copied": 0.0, "copies": COPIES} if free else {"same": SAME}
    if any(name in tested and tested[name].low > limit for name, limit in limits.items()):
        return [
            Suspicion(
                "copied",
                "its captions are as near to single human captions of their pictures as copies would be, so "
                "agreement with these captions shows nothing",
            )
        ]
    return []


def _degenerate(tested: Mapping[str, Estimate], people: Mapping[str, float]) -> list[Suspicion]:
    """Suspect a column with many degenerate captions."""
    degenerate = tested.get("degenerate")
    if degenerate and degenerate.low > DEGENERATE and HUMAN_TIMES * people.get("degenerate", 0) < degenerate.mean:
        reason = f"{_percent(degenerate.mean)} of its captions are degenerate, which means broken in form"
        return [Suspicion("degenerate", reason)]
    return []
