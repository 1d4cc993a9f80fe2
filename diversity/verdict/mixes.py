"""What mixing captioners adds: k captions of a picture taken in turn from several, against k of the best one alone.

P: pictures   K: captions of a picture, the most where pictures differ
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
    """A mix after one more captioner: so many captions of a picture, from its columns in turn, against as many of the best alone.

    Spread is Div-2, coverage `word_coverage` (None without references), fidelity in the units of its measure. A gain is how much
    better the mix is, over the pictures where both are defined, and so are the two means.
    """

    columns: tuple[str, ...]  # in the order in which they joined
    captions: int  # of a picture, the most where pictures differ
    spread: float
    alone_spread: float
    spread_gain: Estimate
    coverage: float | None
    alone_coverage: float | None
    coverage_gain: Estimate | None
    fidelity: float
    alone_fidelity: float
    fidelity_gain: Estimate  # positive is better, where lower fidelity scores are better too

    @property
    def gain(self) -> Estimate:
        """What a mix is judged by: coverage, or spread without references."""
        return self.spread_gain if self.coverage_gain is None else self.coverage_gain

    @property
    def faithful(self) -> bool:
        """Whether the fidelity is not certainly worse."""
        return self.fidelity_gain.high >= 0

    @property
    def adds(self) -> bool:
        """Whether the gain is certain at no certain loss of fidelity."""
        return self.gain.low > 0 and self.faithful


class Mixes(NamedTuple):
    """Captioners in greedy order, one more with each step; steps[0] is the best one alone."""

    best: str
    spread_measure: str  # names of scores by picture
    coverage_measure: str | None
    fidelity_measure: str
    steps: tuple[MixStep, ...]


def mixes(
    columns: Mapping[str, Groups],
    fidelity: Mapping[str, Sequence[np.ndarray]],
    fidelity_measure: Measure,
    keys: Sequence[str],
    seed: int,
    references: Groups | None = None,
) -> Mixes | None:
    """What each captioner adds to those before it; None where there are not two, or one caption a picture only.

    columns[column][p] holds the captions of picture keys[p], equally many in each column, and fidelity[column][p] their scores,
    NaN where undefined. The best one alone has most coverage (spread without references) among those whose fidelity is not
    certainly worse than the highest. Each step adds the captioner with which that is greatest, those that cost fidelity for
    certain last. Caption i of a mix of n columns is the i-th of column (i + start) mod n, start a function of seed and key: each
    column gives its share, and equal columns gain exactly nothing. Columns without any spread or fidelity take no part.

    Raises:
        ValueError: columns do not have equally many captions, or not as many scores, of some picture.
    """
    _check(columns, fidelity, keys)
    pool = _Pool(columns, fidelity, fidelity_measure, keys, seed, references)
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
        while left := [column for column in alone if column not in steps[-1].columns]:
            tried = []
            for column in left:
                if step := pool.step((*steps[-1].columns, column), alone[best]):
                    tried.append(step)
                progress.update()
            if not tried:
                break
            steps.append(max(tried, key=lambda step: (step.faithful, step.gain.mean)))
    return Mixes(best, "div_2", None if pool.wanted is None else "word_coverage", fidelity_measure.score, tuple(steps))


def word_coverage(captions: Groups, references: Groups) -> np.ndarray:
    """Content words of a picture's references that some of its captions has ÷ content words of its references (P,).

    In [0, 1], higher is more. Content words are the different words but for English function words. It grows with the number and
    the length of captions. NaN where the references have no such word.
    """
    return _covered(captions, [content_words(group) for group in references])


def _covered(captions: Groups, wanted: Sequence[frozenset[str]]) -> np.ndarray:
    return np.array(
        [
            len(content & content_words(group)) / len(content) if content else np.nan
            for content, group in zip(wanted, captions, strict=True)
        ]
    )


class _Pool:
    """Captions and their scores, from which mixes are drawn; its fidelity is turned so that higher is better."""

    def __init__(
        self,
        columns: Mapping[str, Groups],
        fidelity: Mapping[str, Sequence[np.ndarray]],
        measure: Measure,
        keys: Sequence[str],
        seed: int,
        references: Groups | None,
    ):
        self.columns, self.seed = columns, seed
        self.up = -1 if measure.better == "lower" else 1
        self.captions = max((len(group) for groups in columns.values() for group in groups), default=0)
        self.fidelity = {column: self.up * _padded(fidelity[column], self.captions) for column in columns}
        self.starts = np.array([name_hash(f"{seed} {key}", bits=32) for key in keys])  # (P,)
        wanted = [content_words(group) for group in references or ()]
        self.wanted = wanted if any(wanted) else None

    def scores(self, mix: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Spread, coverage and fidelity of the mix in each picture, each (P,), NaN where undefined."""
        turns = (self.starts[:, None] + np.arange(self.captions)) % len(mix)  # (P, K) whose caption it is
        parts = [self.columns[column] for column in mix]
        groups = [
            [parts[turn][picture][i] for i, turn in enumerate(of_picture[: len(parts[0][picture])])]
            for picture, of_picture in enumerate(turns.tolist())
        ]
        fidelity = np.stack([self.fidelity[column] for column in mix])  # (n, P, K)
        fidelity = np.take_along_axis(fidelity, turns[None], axis=0)[0]  # (P, K)
        with np.errstate(invalid="ignore"):
            scores = {
                "spread": within_picture(encode(groups))["div_2"],
                "fidelity": np.nansum(fidelity, axis=1) / (~np.isnan(fidelity)).sum(axis=1),
            }
        return scores if self.wanted is None else {**scores, "coverage": _covered(groups, self.wanted)}

    def step(self, mix: tuple[str, ...], alone: Mapping[str, np.ndarray]) -> MixStep | None:
        """The mix against the best one alone; None where no picture has both spreads or both fidelities."""
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
    """Of the columns whose fidelity is not certainly worse than the highest, the one with most coverage, or else spread."""
    highest = max(alone, key=lambda column: np.nanmean(alone[column]["fidelity"]))
    behind = estimates(
        {column: scores["fidelity"] - alone[highest]["fidelity"] for column, scores in alone.items()}, seed
    )
    equal = [column for column in alone if column in behind and behind[column].high >= 0]
    return max(equal, key=lambda column: np.nanmean(alone[column].get("coverage", alone[column]["spread"])))


def _check(columns: Mapping[str, Groups], fidelity: Mapping[str, Sequence[np.ndarray]], keys: Sequence[str]) -> None:
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
    """The scores of each picture's captions as rows (P, K), NaN behind them."""
    rows = np.full((len(scores), length), np.nan)
    for row, of_picture in zip(rows, scores):
        row[: len(of_picture)] = of_picture
    return rows
