"""Measure what mixing captioners adds: k captions of a picture from several in turn, against k of the best alone.

P: pictures   K: largest number of captions of a picture   n: columns of a mix
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from diversity.measures.lexical import within_picture
from diversity.measures.measure import Measure
from diversity.measures.pairs import Groups
from diversity.verdict.compare import Estimate, estimates
from diversity.words.content import content_words
from diversity.words.tokens import encode
from imagetext.hashes import name_hash
from imagetext.shown import Progress


class MixStep(NamedTuple):
    """A mix of captioners, compared with as many captions of the best captioner alone.

    Spread is Div-2. Coverage is `word_coverage`, None without references. Fidelity is in the units of its measure. A
    gain is how much better the mix is than the best captioner alone. The gain and the two means are over the pictures
    where both are defined.
    """

    columns: tuple[str, ...]  # in the order in which they joined the mix
    captions: int  # largest number of captions of a picture
    spread: float
    alone_spread: float
    spread_gain: Estimate
    coverage: float | None
    alone_coverage: float | None
    coverage_gain: Estimate | None
    fidelity: float
    alone_fidelity: float
    fidelity_gain: Estimate  # positive is better, also for measures of fidelity of which lower is better

    @property
    def gain(self) -> Estimate:
        """The gain that decides about a mix: in coverage, or in spread where there are no references."""
        return self.spread_gain if self.coverage_gain is None else self.coverage_gain

    @property
    def faithful(self) -> bool:
        """Whether the mix is not clearly worse in fidelity."""
        return self.fidelity_gain.high >= 0

    @property
    def adds(self) -> bool:
        """Whether the mix has a clear gain and no clear loss of fidelity."""
        return self.gain.low > 0 and self.faithful


class Mixes(NamedTuple):
    """Captioners in greedy order, one more with each step; steps[0] is the best captioner alone."""

    best: str
    spread_measure: str  # name of a score of pictures
    coverage_measure: str | None  # name of a score of pictures; None without references
    fidelity_measure: str  # name of a score of pictures
    steps: tuple[MixStep, ...]


def mixes(
    columns: Mapping[str, Groups],
    fidelity: Mapping[str, Sequence[np.ndarray]],
    fidelity_measure: Measure,
    keys: Sequence[str],
    seed: int,
    references: Groups | None = None,
) -> Mixes | None:
    """Measure what each captioner adds to the captioners before it.

    Returns None where fewer than two columns can be compared, or where no picture has several captions.

    columns[column][p] are the captions of picture keys[p], equally many in each column; fidelity[column][p] are their
    scores, NaN where undefined. The best captioner alone has the highest coverage (spread without references) among
    those whose fidelity is not clearly worse than the highest. Each step adds the captioner that makes this gain
    largest; captioners that clearly reduce the fidelity come last. Caption i of a mix of n columns is caption i of
    column (i + start) mod n, where start depends on the seed and the key. So each column contributes its share, and
    equal columns gain exactly nothing. Columns that have no spread or no fidelity at all are left out.

    Raises ValueError where columns differ in the number of captions of a picture, or where scores are missing.
    """
    _check(columns, fidelity, keys)
    pool = _CaptionPool(columns, fidelity, fidelity_measure, keys=keys, seed=seed, references=references)
    if len(columns) < 2 or pool.captions < 2:
        return None
    with Progress(
        desc="mixing captioners", total=len(columns) * (len(columns) + 1) // 2, unit="mix", delay=2
    ) as progress:
        alone = {}
        for column in columns:
            scores = pool.scores((column,))
            if all((~np.isnan(scores[name])).any() for name in ("spread", "fidelity")):
                alone[column] = scores
            progress.update()
        if len(alone) < 2:
            return None
        best = _best(alone, seed)
        first = pool.step((best,), alone[best])
        if first is None:
            return None
        steps = [first]
        while remaining := [column for column in alone if column not in steps[-1].columns]:
            candidates = []
            for column in remaining:
                if step := pool.step((*steps[-1].columns, column), alone[best]):
                    candidates.append(step)
                progress.update()
            if not candidates:
                break
            steps.append(max(candidates, key=lambda step: (step.faithful, step.gain.mean)))
    return Mixes(
        best=best,
        spread_measure="div_2",
        coverage_measure=None if pool.reference_words is None else "word_coverage",
        fidelity_measure=fidelity_measure.score,
        steps=tuple(steps),
    )


def word_coverage(captions: Groups, references: Groups) -> np.ndarray:
    """Return the share of the content words in a picture's references that are in any of its captions (P,).

    In [0, 1], higher is more. Content words are the different words without English function words. The share grows
    with the number and the length of captions. NaN where the references have no content word.
    """
    return _covered(captions, [content_words(group) for group in references])


def _covered(captions: Groups, reference_words: Sequence[frozenset[str]]) -> np.ndarray:
    shares = []
    for content, group in zip(reference_words, captions, strict=True):
        shares.append(len(content & content_words(group)) / len(content) if content else np.nan)
    return np.array(shares)


class _CaptionPool:
    """The captions and scores from which mixes are made; fidelity has its sign changed where lower is better."""

    def __init__(
        self,
        columns: Mapping[str, Groups],
        fidelity: Mapping[str, Sequence[np.ndarray]],
        measure: Measure,
        *,
        keys: Sequence[str],
        seed: int,
        references: Groups | None,
    ):
        self.columns, self.seed = columns, seed
        self.up = measure.direction
        self.captions = max((len(group) for groups in columns.values() for group in groups), default=0)
        self.fidelity = {column: self.up * _padded(fidelity[column], self.captions) for column in columns}
        self.starts = np.array([name_hash(f"{seed} {key}", bits=32) for key in keys])  # (P,)
        reference_words = [content_words(group) for group in references or ()]
        self.reference_words = reference_words if any(reference_words) else None

    def scores(self, mix: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Return the spread, coverage and fidelity of the mix in each picture, each (P,), NaN where undefined."""
        turns = (self.starts[:, None] + np.arange(self.captions)) % len(mix)  # (P, K) the column of each caption
        columns = [self.columns[column] for column in mix]
        groups = []
        for picture, columns_of_captions in enumerate(turns.tolist()):
            count = len(columns[0][picture])
            groups.append([columns[turn][picture][i] for i, turn in enumerate(columns_of_captions[:count])])
        fidelity = np.stack([self.fidelity[column] for column in mix])  # (n, P, K)
        fidelity = np.take_along_axis(fidelity, turns[None], axis=0)[0]  # (P, K)
        with np.errstate(invalid="ignore"):
            scores = {
                "spread": within_picture(encode(groups))["div_2"],
                "fidelity": np.nansum(fidelity, axis=1) / (~np.isnan(fidelity)).sum(axis=1),
            }
        if self.reference_words is not None:
            scores["coverage"] = _covered(groups, self.reference_words)
        return scores

    def step(self, mix: tuple[str, ...], alone: Mapping[str, np.ndarray]) -> MixStep | None:
        """Compare a mix with the scores of the best captioner alone.

        Returns None where no picture has the spread of both, or the fidelity of both.
        """
        mixed = self.scores(mix)
        gains = {name: mixed[name] - alone[name] for name in mixed}
        intervals = estimates(gains, self.seed)
        if not {"spread", "fidelity"} <= intervals.keys():
            return None
        parts = {}
        for name, interval in intervals.items():
            defined, up = ~np.isnan(gains[name]), self.up if name == "fidelity" else 1
            parts[name] = up * float(mixed[name][defined].mean()), up * float(alone[name][defined].mean()), interval
        return MixStep(mix, self.captions, *parts["spread"], *parts.get("coverage", (None,) * 3), *parts["fidelity"])


def _best(alone: Mapping[str, Mapping[str, np.ndarray]], seed: int) -> str:
    """Return the column with most coverage, or else spread, among those not clearly less faithful than the best."""
    highest = max(alone, key=lambda column: np.nanmean(alone[column]["fidelity"]))
    distances = estimates(
        {column: scores["fidelity"] - alone[highest]["fidelity"] for column, scores in alone.items()}, seed
    )
    faithful = [column for column in alone if column in distances and distances[column].high >= 0]
    return max(faithful, key=lambda column: np.nanmean(alone[column].get("coverage", alone[column]["spread"])))


def _check(columns: Mapping[str, Groups], fidelity: Mapping[str, Sequence[np.ndarray]], keys: Sequence[str]) -> None:
    """Raise ValueError with every picture whose numbers of captions and scores differ between columns."""
    problems, first = [], next(iter(columns.values()), ())
    for column, groups in columns.items():
        if not len(keys) == len(groups) == len(fidelity[column]):
            problems.append(f"{column}: {len(groups)} pictures, {len(fidelity[column])} with scores, {len(keys)} keys")
            continue
        problems += [
            f"{column}, picture {key}: {len(group)} captions, {len(scores)} scores, {len(others)} in the first column"
            for key, group, scores, others in zip(keys, groups, fidelity[column], first)
            if not len(group) == len(scores) == len(others)
        ]
    if problems:
        raise ValueError("mixes need equally many captions of a picture in each column: " + "; ".join(problems))


def _padded(scores: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Return the scores of each picture's captions as rows (P, K), filled up with NaN."""
    rows = np.full((len(scores), length), np.nan)
    for row, scores_of_picture in zip(rows, scores):
        row[: len(scores_of_picture)] = scores_of_picture
    return rows
