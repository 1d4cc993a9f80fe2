"""How often the report of `capsmith diversity` names a bad column best, over resampled sets of real captions.

    python -m benchmarks.verdict --sets 200 [--embedder minilm]

Each set has 20 to 500 pictures of COCO (CAPSMITH_DATA), with 1 to 4 captions of each picture in each column, and up to
four human captions as references. The good columns are other human captions of the pictures and, in sets with one
caption per picture, captions of a machine. The bad columns are made from one of these, the base, by `bad_columns`. A
field is a set of columns that are compared:

- `pair`: the base and a bad column;
- `three`: the base, the other good column, and a bad column;
- `crossed`: the weaker good column, and a bad column that is made from the better one and is less true;
- `good`: the two good columns, which shows how many pictures it takes to name the better one.
"""

import argparse
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from diversity.columns import HUMAN, ComparedPicture
from diversity.measures import catalogue
from diversity.measures.accumulate import CaptionAccumulator
from diversity.measures.agreement import Agreement
from diversity.measures.pairs import Groups
from diversity.sampled import Sampled, sample_scores
from diversity.verdict.compare import differences, estimates
from diversity.verdict.suspicions import suspect_columns
from diversity.verdict.winner import decide, evidence_of
from diversity.words.tokens import words

DATA = Path(os.environ.get("CAPSMITH_DATA", "../shared/data"))
PICTURES = (20, 50, 100, 200, 500)
SYNONYMS = dict(
    pair.split(":")
    for pair in (
        "man:guy woman:lady dog:hound cat:kitty street:road people:persons group:bunch sitting:seated "
        "standing:upright large:huge "
        "small:tiny photo:snapshot picture:image train:locomotive plate:dish table:desk young:youthful boy:lad "
        "girl:lass bike:bicycle "
        "next:close front:foreground holding:grasping playing:enjoying field:meadow water:liquid food:meal"
    ).split()
)
AS_TRUE = ("synonyms",)  # kinds of changes that leave captions as true as their base
TAILS = (
    "in a nice picture",
    "on a sunny day",
    "as anyone can see",
    "taken by somebody",
    "which is rather nice",
    "for all to see",
    "in this photo here",
    "with a good camera",
    "that was sold online",
    "of the highest quality",
)
HEADS = (
    "in this picture we can see",
    "here is a nice view of",
    "the photo that was taken shows",
    "what we have here is",
    "look at",
)

Column = list[list[str]]


class Outcome(NamedTuple):
    """The result of judging one field, that is a set of columns compared with each other."""

    field: str  # pair | three | crossed | good | suspect
    kind: str  # kind of the bad column; for `suspect`, the name of the good column
    base: str  # the good column from which the bad one is made
    pictures: int
    winner: str  # name of the winner, or "" if there is none
    suspect: bool  # whether the column `kind` is suspect
    bad: bool  # whether the winner is a bad column


class CaptionChanges:
    """Changes that make bad captions from good ones, with the set's vocabulary and each picture's human captions."""

    def __init__(self, references: Groups, random_: random.Random):
        self.references, self.random = references, random_
        self.vocabulary = [word for group in references for caption in group for word in words(caption)]

    def each(self, change: Callable[[str], str]) -> Callable[[Column], Column]:
        return lambda column: [[change(caption) for caption in group] for group in column]

    def moved(self, column: Column, step: int = 1) -> Column:
        return column[step:] + column[:step]

    def noisy(self, caption: str, share: float) -> str:
        return " ".join(
            self.random.choice(self.vocabulary) if self.random.random() < share else word for word in words(caption)
        )

    def one_changed(self, caption: str) -> str:
        changed = words(caption) or [""]
        changed[self.random.randrange(len(changed))] = self.random.choice(self.vocabulary)
        return " ".join(changed)

    def shuffled(self, caption: str, window: int = 1000) -> str:
        all_words = words(caption)
        parts = [all_words[start : start + window] for start in range(0, len(all_words), window)]
        return " ".join(word for part in parts for word in self.random.sample(part, len(part)))

    def copied(self, column: Column, share: float) -> Column:
        return [
            [self.noisy(self.random.choice(human), share) for _ in group]
            for group, human in zip(column, self.references)
        ]

    def neighbours(self, column: Column) -> Column:
        """For each picture, the captions of the picture whose human captions share the most words with its own."""
        picture_words = [{word for caption in group for word in words(caption)} for group in self.references]

        def overlap(index: int, other: int) -> float:
            return len(picture_words[index] & picture_words[other]) / len(picture_words[index] | picture_words[other])

        def nearest(index: int) -> int:
            others = (other for other in range(len(picture_words)) if other != index)
            return max(others, key=lambda other: overlap(index, other))

        return [column[nearest(index)] for index in range(len(picture_words))]

    def one_word(self, human: Sequence[str]) -> str:
        return Counter(word for caption in human for word in words(caption) if len(word) > 3).most_common(1)[0][0]


def bad_columns(column: Column, world: CaptionChanges) -> dict[str, Column]:
    """Make every kind of bad column from the captions of a good one; columns by kind."""
    draw, common = world.random, Counter(caption for group in column for caption in group).most_common(1)[0][0]
    stock = [caption for group in column[:10] for caption in group]
    cipher = str.maketrans("aeiounrstlmd", "oiuaebvzkpgf")
    columns = {
        "other pictures": world.moved(column),
        "other pictures, half": [
            moved if index % 2 else captions
            for index, (captions, moved) in enumerate(zip(column, world.moved(column)))
        ],
        "most similar pictures": world.neighbours(column),
        "shuffled": world.each(world.shuffled)(column),
        "shuffled in threes": world.each(lambda text: world.shuffled(text, 3))(column),
        "sorted": world.each(lambda text: " ".join(sorted(words(text))))(column),
        "reversed": world.each(lambda text: " ".join(words(text)[::-1]))(column),
        "one word changed": world.each(world.one_changed)(column),
        "a third noise": world.each(lambda text: world.noisy(text, 1 / 3))(column),
        "synonyms": world.each(lambda text: " ".join(SYNONYMS.get(word, word) for word in words(text)))(column),
        "five words": world.each(lambda text: " ".join(text.split()[:5]))(column),
        "half cut": world.each(lambda text: text[: len(text) // 2])(column),
        "another language": world.each(lambda text: text.lower().translate(cipher))(column),
        "tail": world.each(lambda text: text.rstrip(". ") + " in a nice picture that somebody took")(column),
        "short tail": world.each(lambda text: text.rstrip(". ") + " in the picture")(column),
        "varied tails": world.each(lambda text: f"{text.rstrip('. ')} {draw.choice(TAILS)}")(column),
        "tails of others": world.each(
            lambda text: f"{text.rstrip('. ')} {' '.join(draw.sample(world.vocabulary, 4))}"
        )(column),
        "head": world.each(lambda text: f"in this picture we can see {text}")(column),
        "varied heads": world.each(lambda text: f"{draw.choice(HEADS)} {text}")(column),
        "two captions in one": [
            [f"{caption} {moved_caption}" for caption, moved_caption in zip(captions, moved)]
            for captions, moved in zip(column, world.moved(column))
        ],
        "template": [
            [f"a photo of a {world.one_word(human)}"] * len(group) for group, human in zip(column, world.references)
        ],
        "keywords": world.each(lambda text: ", ".join(word for word in words(text) if len(word) > 3) or text)(column),
        "one for all": [[common] * len(group) for group in column],
        "ten for all": [[draw.choice(stock) for _ in group] for group in column],
        "copied": world.copied(column, 0),
        "copied, fifth noise": world.copied(column, 0.2),
        "copied, two fifths": world.copied(column, 0.4),
    }
    if len(column[0]) > 1:
        columns["one said again"] = [group[:1] * len(group) for group in column]
        columns["one said again, tails"] = [
            [f"{group[0].rstrip('. ')} {draw.choice(TAILS)}" for _ in group] for group in column
        ]
    return columns


def judge(sampled: Sampled, suspected: Sequence[Mapping[str, Any]], names: Sequence[str], seed: int) -> str | None:
    """The winner among the columns `names`, chosen as `diversity.conclude` does it; None if there is no winner."""
    scores = {name: sampled.scores[name] for name in names}
    flat = estimates(
        {(name, score): values for name, by_score in scores.items() for score, values in by_score.items()}, seed
    )
    intervals = {name: {score: flat[name, score] for score in scores[name] if (name, score) in flat} for name in names}
    evidence, decisive = evidence_of(names, intervals)
    spread = catalogue.SELF_CIDER if all("self_cider" in intervals[name] for name in names) else None
    compared = [measure.score for measure in (*decisive, spread, catalogue.LENGTH, catalogue.DEGENERATE) if measure]
    suspects, doubts = (
        {name: reasons for name, reasons in suspicions.items() if name in names} for suspicions in suspected
    )
    return decide(
        evidence,
        decisive,
        spread,
        names=names,
        intervals=intervals,
        differences=differences(scores, list(dict.fromkeys(compared)), seed),
        suspects=suspects,
        doubts=doubts,
    ).winner


def judge_set(annotated: Sequence[Mapping[str, Any]], seed: int, kinds: int, *, embedder: str) -> list[Outcome]:
    """Judge all fields of one resampled set, with `kinds` kinds of bad columns."""
    draw = random.Random(seed)
    chosen = draw.sample(annotated, PICTURES[seed % len(PICTURES)])
    count = 1 if draw.random() < 0.5 else draw.randint(2, 4)
    human = [draw.sample(picture["references"][:5], 5) for picture in chosen]
    references = [group[count : count + draw.randint(1, 4)] for group in human]
    good = {"people": [group[:count] for group in human]}
    if count == 1:
        good["machine"] = [picture["candidates"][:1] for picture in chosen]
    base = draw.choice(list(good))
    all_bad = bad_columns(good[base], CaptionChanges(references, draw))
    bad = {kind: all_bad[kind] for kind in draw.sample(sorted(all_bad), kinds)}
    columns = {**good, **bad}
    all_columns = {**columns, HUMAN: [group[:count] for group in references]}
    pictures = [
        ComparedPicture(
            str(index),
            {name: tuple(column[index]) for name, column in all_columns.items()},
            references=tuple(references[index]),
        )
        for index in range(len(chosen))
    ]
    sampled = sample_scores(
        pictures, list(columns), HUMAN, embedder=embedder, clip=None, device="cpu", semantic_pictures=1000
    )
    rows = {name: counts(column) for name, column in all_columns.items()}
    suspected = suspect_columns(
        sampled.scores, sampled.signs, rows, all_columns, list(columns), HUMAN, seed, by_agreement=True
    )

    def outcome(field: str, kind: str, *names: str) -> Outcome:
        winner = judge(sampled, suspected, names, seed)
        return Outcome(
            field,
            kind,
            base,
            pictures=len(chosen),
            winner=winner or "",
            suspect=kind in suspected[0],
            bad=winner in bad if winner else False,
        )

    outcomes = [
        Outcome("suspect", name, base, pictures=len(chosen), winner="", suspect=name in suspected[0], bad=False)
        for name in good
    ]
    for kind in bad:
        outcomes.append(outcome("pair", kind, base, kind))
        if len(good) > 1:
            outcomes.append(outcome("three", kind, *good, kind))
            if base == "people" and kind not in AS_TRUE:
                outcomes.append(outcome("crossed", kind, "machine", kind))
    if len(good) > 1:
        outcomes.append(outcome("good", "people or machine", *good))
    return outcomes


def counts(column: Column) -> dict[str, Any]:
    accumulator = CaptionAccumulator()
    accumulator.update(column)
    return accumulator.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=200)
    parser.add_argument("--kinds", type=int, default=8, help="number of bad columns in a set, drawn from all kinds")
    parser.add_argument("--embedder", default="none")
    parser.add_argument("--first", type=int, default=0, help="seed of the first set")
    options = parser.parse_args()
    annotated = json.loads((DATA / "coco1000.json").read_text(encoding="utf-8"))
    # No verdict uses the overlap, which takes a third of the time.
    Agreement.overlap = lambda self, groups, themselves: ({}, None)
    outcomes: list[Outcome] = []
    try:
        for seed in tqdm(range(options.first, options.first + options.sets)):
            outcomes += judge_set(annotated, seed, options.kinds, embedder=options.embedder)
    except KeyboardInterrupt:
        print(f"stopped before set {seed}")
    show(outcomes)


def show(outcomes: Sequence[Outcome]) -> None:
    """Print how often a bad column won, for each field and kind, and how often each good column won or was suspect."""
    for field in ("pair", "three", "crossed"):
        of_field = [outcome for outcome in outcomes if outcome.field == field]
        print(f"\n{field}: a bad column won {sum(outcome.bad for outcome in of_field)} of {len(of_field)}")
        for kind in sorted({outcome.kind for outcome in of_field}):
            of_kind = [outcome for outcome in of_field if outcome.kind == kind]
            bad, good, suspect = (
                sum(map(bool, values))
                for values in zip(
                    *((outcome.bad, outcome.winner and not outcome.bad, outcome.suspect) for outcome in of_kind)
                )
            )
            print(f"  {kind:24} {len(of_kind):4}   bad won {bad:3}   good won {good:3}   suspect {suspect:3}")
    for name in ("people", "machine"):
        of_name = [outcome for outcome in outcomes if outcome.field == "suspect" and outcome.kind == name]
        print(f"\n{name}: suspect in {sum(outcome.suspect for outcome in of_name)} of {len(of_name)} sets")
    for pictures in PICTURES:
        of_size = Counter(
            outcome.winner or "nobody"
            for outcome in outcomes
            if outcome.field == "good" and outcome.pictures == pictures
        )
        print(
            f"people and machine on {pictures} pictures: "
            + ", ".join(f"{name} {times}" for name, times in of_size.items())
        )


if __name__ == "__main__":
    main()
