"""Columns that are suspect of being no captions of their pictures, each for reasons that a reader can check.

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

# What is suspect. Human captions lie far from all of these, and so do those of weak captioners (`benchmarks.verdict`).
STRANGE = 1 / 3  # of the captions may as well be of other pictures
ORDER = 0.3  # of the known pairs of neighbouring words are no more than what any order would give
STRANGERS = 0.08  # of the neighbours that are common words stand together under no other picture
GROUNDED = 0.4  # as well grounded in the picture as the whole caption are its first or last words; people's half more
REPEATED = 1 / 2  # of the captions of a picture that can repeat another do so nearly
FOR_MANY = 0.2  # of the pictures have the same caption
DEGENERATE = 0.2  # of the captions
COPIED = 1.5  # times as near to one human caption alone as human captions are
COPIES = 1 / 3  # of the captions may be copies, where pictures have too few human captions for the former
ALIKE = 1 / 2  # of the human captions are much like those of other pictures, as if they followed templates
SAME = 0.8  # of the captions are human ones word for word, where these follow templates and pictures have several
PHRASE, PHRASE_SHARE, PHRASE_WORDS = 3, 1 / 2, 0.1  # words at an end of half of the captions, a tenth of all words
FEW = 10  # pictures; fewer show nothing
HUMAN_TIMES = 3  # as many as human captions have of what people do, too


class Suspicion(NamedTuple):
    """Why a column is suspect, as one word for scripts and in plain words."""

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
    """The suspect ones of `columns` with their reasons, and those in doubt; never the `human` column, by which they are judged.

    `scores` and `signs` are those of each column by picture (P,). A sign counts where the 95 % interval of its mean
    lies beyond the line, and people do not do the same; where the mean alone does, the column is in doubt. Copies of
    human captions are suspect only where columns are judged by their agreement with these: true ones are true, too. And where
    these are not free but follow templates, as of drawn shapes, an honest captioner often says just what they say.
    """
    suspects, doubts = {}, {}
    people = _means(_tested(scores[human], signs[human], captions[human])) if human else {}
    human_signs, human_captions, human_row = (
        (signs[human], captions[human], rows[human]) if human else (None, None, None)
    )
    free = people.get("alike", 0) < ALIKE
    for column in columns:
        by_picture = _tested(scores[column], signs[column], captions[column], human_signs)
        tested = estimates(
            {name: values for name, values in by_picture.items() if (~np.isnan(values)).sum() >= FEW}, seed
        )
        on_average = {name: Estimate(*[estimate.mean] * 3) for name, estimate in tested.items()}
        for judged, means in ((suspects, tested), (doubts, on_average)):
            reasons = [
                *_strange(means),
                *_order(means),
                *(_replaced(means, people) if free else ()),
                *_filler(means, people, captions[column], human_captions),
                *_repeated(means, people, rows[column], human_row),
                *(_copied(means, free) if by_agreement else ()),
                *_broken(means, people),
            ]
            if reasons and column not in suspects:
                judged[column] = tuple(reasons)
    return suspects, doubts


def _tested(
    scores: Mapping[str, np.ndarray],
    signs: Mapping[str, np.ndarray],
    groups: Groups,
    human: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """What is tested of a column, by picture (P,)."""
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
    if human and "nearer_to_one" in human:
        tested["copied"] = signs["nearer_to_one"] - COPIED * human["nearer_to_one"]
        tested["copies"] = np.where(np.isnan(human["nearer_to_one"]), signs["copies"], np.nan)
    return tested


def _means(tested: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {name: float(np.nanmean(values)) for name, values in tested.items() if not np.isnan(values).all()}


def _percent(share: float) -> str:
    return f"{100 * min(share, 1):.0f}{PERCENT}"


def _strange(tested: Mapping[str, Estimate]) -> list[Suspicion]:
    """Captions that fit other pictures as well as theirs, as every judge says that there is."""
    judges = [tested[name] for name in ("strange_words", "strange_meaning", "strange_clip") if name in tested]
    if not judges or min(judge.low for judge in judges) <= STRANGE:
        return []
    share = _percent(min(judge.mean for judge in judges))
    if (known := tested.get("known_words")) and known.high < 1 / 2:
        return [
            Suspicion(
                "other_words",
                f"only {_percent(known.mean)} of its words stand in any human caption, as if it were "
                "another language, so nothing shows that it speaks of its pictures",
            )
        ]
    return [Suspicion("other_pictures", f"about {share} of its captions may as well be of other pictures")]


def _order(tested: Mapping[str, Estimate]) -> list[Suspicion]:
    ordered = tested.get("ordered")
    if ordered and ordered.high < 0:
        return [
            Suspicion(
                "word_order", "its words stand in no order that is known of other captions, as if they were shuffled"
            )
        ]
    return []


def _replaced(tested: Mapping[str, Estimate], people: Mapping[str, float]) -> list[Suspicion]:
    """Words where they cannot stand: common ones that are neighbours here alone."""
    replaced = tested.get("replaced")
    share = _strangers({name: tested[name].mean for name in ("strangers", "common_pairs") if name in tested})
    if replaced and replaced.low > 0 and HUMAN_TIMES * _strangers(people) < share:
        return [
            Suspicion(
                "word_order",
                f"{_percent(share)} of its neighbouring common words never stand together in human "
                "captions of other pictures, as if some words were replaced by others",
            )
        ]
    return []


def _strangers(means: Mapping[str, float]) -> float:
    """The share of pairs of common words that stand together under no other picture."""
    return means["strangers"] / means["common_pairs"] if means.get("common_pairs") else 0.0


def _filler(
    tested: Mapping[str, Estimate], people: Mapping[str, float], groups: Groups, human: Groups | None
) -> list[Suspicion]:
    """Words at the beginning or end that say nothing of the picture, or that are the same in most captions."""
    suspicions = []
    for third, where, does in (("first_third", 0, "begin"), ("last_third", -1, "end")):
        phrase, share, weight = _phrase(groups, where)
        same = (
            share >= PHRASE_SHARE
            and len(groups) >= FEW
            and weight >= PHRASE_WORDS
            and (not human or HUMAN_TIMES * _share_of(phrase, human, where) < share)
        )
        empty = (
            third in tested
            and tested[third].high < 0
            and people.get(third, 0) >= GROUNDED / 2 * people.get("whole", 0)
        )
        if same:
            suspicions.append(
                Suspicion("filler", f"{_percent(share)} of its captions {does} with the same words, “{phrase}”")
            )
        elif empty:
            suspicions.append(
                Suspicion("filler", f"the words that its captions {does} with say nothing of their pictures")
            )
    return suspicions


def _ends(groups: Groups, where: int) -> tuple[Counter, int, int]:
    """How often captions have which first or last words; how many captions have so many, and the words of all."""
    texts = [text_words for group in groups for caption in group if len(text_words := words(caption)) > PHRASE]
    ends = Counter(tuple(text[:PHRASE] if where == 0 else text[-PHRASE:]) for text in texts)
    return ends, len(texts), sum(map(len, texts))


def _phrase(groups: Groups, where: int) -> tuple[str, float, float]:
    """The commonest first or last words, the share of captions that have them, and their share of all words."""
    ends, captions, length = _ends(groups, where)
    if not ends:
        return "", 0.0, 0.0
    ((phrase, times),) = ends.most_common(1)
    return " ".join(phrase), times / captions, PHRASE * times / length


def _share_of(phrase: str, groups: Groups, where: int) -> float:
    ends, captions, _ = _ends(groups, where)
    return ends[tuple(phrase.split())] / captions if captions else 0.0


def _repeated(
    tested: Mapping[str, Estimate], people: Mapping[str, float], row: Mapping, human: Mapping | None
) -> list[Suspicion]:
    """One caption said again and again, within pictures or under many of them."""
    suspicions = []
    repeats = tested.get("repeats")
    if repeats and repeats.low > REPEATED and HUMAN_TIMES * people.get("repeats", 0) < repeats.mean:
        near, exact = (_percent(tested[name].mean) for name in ("near_duplicates", "duplicates"))
        suspicions.append(
            Suspicion(
                "repeated",
                f"it says one caption again and again: {near} of its captions repeat an earlier one of "
                f"their picture or nearly do, {exact} word for word",
            )
        )
    shared = MOST_SHARED.value(row) or 0
    human_shared = (MOST_SHARED.value(human) if human else None) or 0
    if shared >= FOR_MANY and row["pictures"] >= FEW and HUMAN_TIMES * human_shared < shared:
        suspicions.append(Suspicion("repeated", f"one caption stands for {_percent(shared)} of the pictures"))
    return suspicions


def _copied(tested: Mapping[str, Estimate], free: bool) -> list[Suspicion]:
    lines = {"copied": 0.0, "copies": COPIES} if free else {"same": SAME}
    if any(name in tested and tested[name].low > line for name, line in lines.items()):
        return [
            Suspicion(
                "copied",
                "its captions are as near to single human captions of their pictures as copies would be, so "
                "agreement with these shows nothing",
            )
        ]
    return []


def _broken(tested: Mapping[str, Estimate], people: Mapping[str, float]) -> list[Suspicion]:
    degenerate = tested.get("degenerate")
    if degenerate and degenerate.low > DEGENERATE and HUMAN_TIMES * people.get("degenerate", 0) < degenerate.mean:
        return [
            Suspicion(
                "degenerate", f"{_percent(degenerate.mean)} of its captions are degenerate, that is broken in form"
            )
        ]
    return []
