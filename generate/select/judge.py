"""Judges the captions of a record, each by itself: whether it passes, and its score."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from diversity.words.tokens import words
from generate.captions.sandbox import bounded
from generate.captions.templates import Expression
from generate.select.config import ORIGINALS, SelectConfig
from imagetext.columns import is_caption_column
from imagetext.hashes import name_hash
from imagetext.sample import Record, Shard, image_size

# Names in an expression, beside the scores of a caption: those of the caption, and those of its record.
CAPTION_NAMES = ("text", "column")
RECORD_NAMES = ("label", "key", "json")
SHARDS_LOOKED_AT = 3
RECORDS_LOOKED_AT = 100  # of each of these shards


class JudgedCaption(NamedTuple):
    """A caption with its score and, where it does not pass, the reason. index: of the caption in its column.

    score: the value of --by; NaN if the caption has none, and no record is chosen by it.
    """

    column: str
    index: int
    text: str
    score: float = 0.0
    reason: str = ""


class Lacking(ValueError):
    """A record has nothing to be judged by; that is no fault of the record."""


@dataclass(frozen=True)
class Judge:
    """Judges captions by the configuration; the result depends on the record alone."""

    config: SelectConfig

    def captions(self, record: Record) -> list[JudgedCaption]:
        """Return the record's captions, judged.

        Raises: ValueError, with the reason, where the record cannot be used; Lacking where it has no captions or no
        class.
        """
        if record.error:
            raise ValueError(record.error)
        if record.image is not None:
            image_size(record.image)
        if self.config.max_per_class and class_of(record) is None:
            raise Lacking("no class")
        judged = [
            self._judge(record, column, index, text=text)
            for column, texts in judged_columns(record, self.config.column).items()
            for index, text in enumerate(texts)
        ]
        if not judged:
            raise Lacking(f"no captions in {', '.join(self.config.column) or 'any column'}")
        return judged

    def _judge(self, record: Record, column: str, index: int, *, text: str) -> JudgedCaption:
        if not text.strip():
            return JudgedCaption(column, index, text, reason="is empty")
        score, reason = 0.0, ""
        for name, expression in self.config.expressions.items():
            try:
                value = expression.value(values_of(expression, record, column, index=index, text=text))
                if name == "by":
                    score = _number(value)
                elif not value:
                    reason = name
            except ValueError as error:
                if name == "by" and not self.config.settles:
                    score = math.nan
                else:
                    reason = reason or f"{name}: {error}"
        return JudgedCaption(column, index, text, score=score, reason=reason)


def judged_columns(record: Record, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the columns whose captions are judged: those with the names, or all synthetic captions without names."""
    if not names:
        return record.syn_text
    columns = {**record.columns, ORIGINALS: record.captions}
    return {name: columns[name] for name in names if name in columns}


def values_of(expression: Expression, record: Record, column: str, *, index: int, text: str) -> dict[str, Any]:
    """Return the values of the expression's names, as far as the record has them."""
    values: dict[str, Any] = {"text": bounded(text, "text"), "column": column, "key": record.key}
    if "label" in expression.names and (label := class_of(record)) is not None:
        values["label"] = label
    if "json" in expression.names:
        values["json"] = {name: bounded(value, f"json.{name}") for name, value in record.meta.items()}
    scores = record.scores.get(column) or {}
    for name in expression.names - {*CAPTION_NAMES, *RECORD_NAMES}:
        column_scores = scores.get(name)
        if isinstance(column_scores, list) and index < len(column_scores) and column_scores[index] is not None:
            values[name] = bounded(column_scores[index], name)
    return values


def class_of(record: Record) -> str | None:
    """Return the record's class: its label, or the label that an earlier run wrote; None where it has none."""
    label = record.meta.get("label") if record.label is None else record.label
    return str(label) if isinstance(label, str | int) else None


def text_hash(text: str) -> int:
    """Return a 63-bit hash that captions with the same words share, whatever their case and punctuation.

    Texts without words share it if they are equal.
    """
    return name_hash(" ".join(words(text)) or text, "caption") >> 1


def tie_of(record: Record, shard: str) -> int:
    """Return a 63-bit hash of the record's key and shard, which orders records with the same score.

    Keys of different shards may be the same, so the shard is part of it.
    """
    return name_hash(f"{shard}\n{record.key}", "select") >> 1


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{str(value)[:100]!r} is no number")
    return float(value)


# ---- before any work ----------------------------------------------------------------------------------------------


def check_first_records(shards: Sequence[Shard], config: SelectConfig) -> list[str]:
    """Check that the first records of a few shards have what the configuration names; returns their caption columns.

    Raises: ValueError, with every problem, where none of these records has it.
    """
    columns: Counter[str] = Counter()
    scores: set[str] = set()
    fields: set[str] = set()
    class_count = record_count = 0
    judge = Judge(config.model_copy(update={"where": None}))
    unranked: list[str] = []  # why captions cannot be ranked
    caption_count = 0
    for record in _first_records(shards):
        record_count += 1
        class_count += class_of(record) is not None
        fields |= record.meta.keys()
        columns.update([*record.columns, *[ORIGINALS] * bool(record.captions)])
        for column in judged_columns(record, config.column):
            scores |= (record.scores.get(column) or {}).keys()
        if config.settles:
            with suppress(ValueError):  # it cannot be used, or has no class
                captions = judge.captions(record)
                caption_count += len(captions)
                unranked += [caption.reason for caption in captions if caption.reason.startswith("by: ")]
    if record_count:
        _check(
            config,
            columns,
            scores,
            fields,
            class_count=class_count,
            records=f"of the first {record_count} records",
        )
    if caption_count and len(unranked) == caption_count:
        raise ValueError(
            f"--{unranked[0]}; none of the first {caption_count:,} captions has a number as {config.by}, by which "
            "records are chosen"
        )
    return sorted(columns.keys() - {ORIGINALS})


def _check(
    config: SelectConfig,
    columns: Mapping[str, int],
    scores: set[str],
    fields: set[str],
    *,
    class_count: int,
    records: str,
) -> None:
    has = f"they have {', '.join(sorted(columns)) or 'none'}"
    problems = [f"--column: {name}: none {records} has it; {has}" for name in config.column if name not in columns]
    if not config.column and not any(map(is_caption_column, columns)):
        problems.append(
            f"--column: none {records} has synthetic captions; {has}, where {ORIGINALS} is the original captions"
        )
    for field, expression in config.expressions.items() if not problems else ():
        if field == "by" and not config.settles and config.where:
            continue  # a dry run shows it as far as it is there
        if missing := sorted(expression.needed - {*CAPTION_NAMES, *RECORD_NAMES} - scores):
            problem = (
                f"--{field} {expression.source!r} names {', '.join(missing)}, which no caption {records} has. It may "
                f"name {', '.join((*sorted(scores), *CAPTION_NAMES, *RECORD_NAMES))}, and json.x for a field x of the "
                "record"
            )
            if "similarity" in missing:
                problem += "; `capsmith generate --similarity` writes similarities"
            if field == "by":
                problem += "; to choose at random, use --by 0"
            problems.append(problem)
        if missing := sorted(expression.fields - fields):
            problems.append(
                f"--{field} {expression.source!r} names {', '.join(f'json.{name}' for name in missing)}, but none "
                f"{records} has this field; they have {', '.join(sorted(fields))}"
            )
    if config.needs_class and not class_count:
        problems.append(
            f"--label: none {records} has a class; use --label to say where it is: folder, for the name of the "
            "folder in the record's key, cls, or a field"
        )
    if problems:
        raise ValueError("\n  ".join(["the input lacks what the command names:", *problems]))


def _first_records(shards: Sequence[Shard]) -> Iterator[Record]:
    """Yield the first records of a few shards, except failed ones; a shard that cannot be read is reported later."""
    for shard in shards[:: max(1, len(shards) // SHARDS_LOOKED_AT)][:SHARDS_LOOKED_AT]:
        try:
            yield from islice((record for record in shard if not record.error), RECORDS_LOOKED_AT)
        except (OSError, ValueError):
            continue
