"""A record's captions, each judged by itself: whether it passes, and what it is worth."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from diversity.words.tokens import words
from generate.captions.templates import Expression, bounded
from generate.select.config import ORIGINALS, SelectConfig
from imagetext.hashes import name_hash
from imagetext.sample import Record, Shard, image_size, is_caption_column

OF_CAPTION = ("text", "column")  # what an expression has beside the scores of a caption,
OF_RECORD = ("label", "key", "json")  # and of its record
SHARDS_LOOKED_AT = 3
RECORDS_LOOKED_AT = 100  # of each of these shards


class Judged(NamedTuple):
    """A caption: where it stands, its text, what it is worth, and why it does not pass, if it does not."""

    column: str
    place: int
    text: str
    score: float = 0.0
    reason: str = ""


class Lacking(ValueError):
    """A record has nothing to be judged by, which is no fault of it."""


@dataclass(frozen=True)
class Judge:
    """Judges captions as the configuration says; a function of the record alone."""

    config: SelectConfig

    def captions(self, record: Record) -> list[Judged]:
        """The captions that are to be judged; ValueError, with the reason, where it cannot be used, Lacking where it has none."""
        if record.error:
            raise ValueError(record.error)
        if record.image is not None:
            image_size(record.image)
        if self.config.max_per_class and class_of(record) is None:
            raise Lacking("no class")
        found = [
            self._judged(record, column, place, text)
            for column, texts in judged_columns(record, self.config.column).items()
            for place, text in enumerate(texts)
        ]
        if not found:
            raise Lacking(f"no captions in {', '.join(self.config.column) or 'any column'}")
        return found

    def _judged(self, record: Record, column: str, place: int, text: str) -> Judged:
        if not text.strip():
            return Judged(column, place, text, reason="is empty")
        score, reason = 0.0, ""
        for name, expression in self.config.expressions.items():
            try:
                value = expression.value(values_of(expression, record, column, place, text))
                if name == "by":
                    score = _number(value)
                elif not value:
                    reason = name
            except ValueError as error:
                reason = reason or f"{name}: {error}"
        return Judged(column, place, text, score, reason)


def judged_columns(record: Record, asked: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The columns whose captions are judged: those that are asked for, or all of synthetic captions."""
    if not asked:
        return record.syn_text
    columns = {**record.columns, ORIGINALS: record.captions}
    return {name: columns[name] for name in asked if name in columns}


def values_of(expression: Expression, record: Record, column: str, place: int, text: str) -> dict[str, Any]:
    """What the expression's names stand for, those that there are."""
    values: dict[str, Any] = {"text": bounded(text, "text"), "column": column, "key": record.key}
    if "label" in expression.names and (label := class_of(record)) is not None:
        values["label"] = label
    if "json" in expression.names:
        values["json"] = {name: bounded(value, f"json.{name}") for name, value in record.meta.items()}
    scores = record.scores.get(column) or {}
    for name in expression.names - {*OF_CAPTION, *OF_RECORD}:
        of_caption = scores.get(name)
        if isinstance(of_caption, list) and place < len(of_caption) and of_caption[place] is not None:
            values[name] = bounded(of_caption[place], name)
    return values


def class_of(record: Record) -> str | None:
    """The record's class: its label, or the one that an earlier run wrote."""
    label = record.meta.get("label") if record.label is None else record.label
    return str(label) if isinstance(label, str | int) else None


def same_text(text: str) -> int:
    """A number that captions of the same words share, whatever their case and marks; of those without words, the same texts. 63 bits."""
    return name_hash(" ".join(words(text)) or text, "caption") >> 1


def tie_of(record: Record, shard: str) -> int:
    """What settles ties: a hash of the record's key, and of its shard, for keys of two shards may be the same. 63 bits."""
    return name_hash(f"{shard}\n{record.key}", "select") >> 1


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{str(value)[:100]!r} is no number")
    return float(value)


# ---- before any work -----------------------------------------------------------------------------------------------------


def look(shards: Sequence[Shard], config: SelectConfig) -> list[str]:
    """The columns of captions in the first records of a few shards.

    Raises: ValueError, with every problem, where none of these records has what the configuration names.
    """
    columns: Counter[str] = Counter()
    scores: set[str] = set()
    classes = looked_at = 0
    for record in _first(shards):
        looked_at += 1
        classes += class_of(record) is not None
        columns.update([*record.columns, *[ORIGINALS] * bool(record.captions)])
        for column in judged_columns(record, config.column):
            scores |= (record.scores.get(column) or {}).keys()
    if looked_at:
        _check(config, columns, scores, classes, f"of the first {looked_at} records that are looked at")
    return sorted(columns.keys() - {ORIGINALS})


def _check(config: SelectConfig, columns: Mapping[str, int], scores: set[str], classes: int, looked_at: str) -> None:
    has = f"they have {', '.join(sorted(columns)) or 'none'}"
    problems = [f"--column: {name}: none {looked_at} has it; {has}" for name in config.column if name not in columns]
    if not config.column and not any(map(is_caption_column, columns)):
        problems.append(
            f"--column: none {looked_at} has synthetic captions; {has}, where {ORIGINALS} is the original captions"
        )
    for field, expression in config.expressions.items() if not problems else ():
        if missing := sorted(expression.needed - {*OF_CAPTION, *OF_RECORD} - scores):
            problems.append(
                f"--{field}: {expression.source}: names {', '.join(missing)}, which no caption {looked_at} has; there is "
                f"{', '.join((*sorted(scores), *OF_CAPTION, *OF_RECORD))}, and other fields of a record are json.x"
                + ("; capsmith generate --similarity scores captions" if "similarity" in missing else "")
                + ("; where chance is to decide, --by 0" if field == "by" else "")
            )
    if config.needs_class and not classes:
        problems.append(f"--label: none {looked_at} has a class; --label says where it stands")
    if problems:
        raise ValueError("\n  ".join(["nothing can be chosen so:", *problems]))


def _first(shards: Sequence[Shard]) -> Iterator[Record]:
    """The first records of a few shards that have not failed; a shard that cannot be read is told of in its turn."""
    for shard in shards[:: max(1, len(shards) // SHARDS_LOOKED_AT)][:SHARDS_LOOKED_AT]:
        try:
            yield from islice((record for record in shard if not record.error), RECORDS_LOOKED_AT)
        except (OSError, ValueError):
            continue
