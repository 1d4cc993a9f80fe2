"""What an answer says in each of its columns: read, judged beside what it was made of, and replaced by what passes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from captioners.base import Caption
from diversity.words.written import Source
from generate.captions.answers import Answer, read_answer
from generate.captions.gate import Gate, Judged, judge, unparsed
from generate.captions.tasks import Instructed
from imagetext.columns import is_tags


@dataclass(frozen=True)
class Reading:
    """How the answers of a column are read and judged.

    columns: those that one answer writes, one for each field of JSON, or one. of_words: whether they are made of words alone.
    """

    columns: tuple[str, ...]
    answer: Literal["text", "line", "json"]
    fields: Mapping[str, str]
    gate: Gate
    of_words: bool = False

    def judge_all(self, captions: Sequence[Caption], asked: Instructed) -> "list[Said]":
        """The answers to one request, each judged beside those before it."""
        said: list[Said] = []
        for caption in captions:
            said.append(self.judge(caption, said, asked))
        return said

    def replace_failing(self, said: "Sequence[Said]", redrawn: Sequence[Caption], asked: Instructed) -> "list[Said]":
        """The answers, each failing one replaced by its redraw where fewer columns fail in that; `redrawn` has one for each, in order."""
        result = list(said)
        for i, caption in enumerate(redrawn):
            if result[i].failing:
                others = [other for j, other in enumerate(result) if j != i and not other.failing]
                candidate, before = self.judge(caption, others, asked), result[i]
                better = len(candidate.failing) < len(before.failing)
                kept, left = (candidate, before) if better else (before, candidate)
                result[i] = replace(kept, refused=(*before.refused, left.reasons))
        return result

    def judge(self, caption: Caption, siblings: "Sequence[Said]", asked: Instructed) -> "Said":
        """The answer, beside the others to its request; one that nothing was asked for but a caption is taken as it is."""
        try:
            plain = asked.instruction is None and self.answer == "text"
            answer = Answer({"": (caption.text,)}) if plain else read_answer(caption.text, self.answer, self.fields)
        except ValueError:
            return Said({column: (unparsed(caption),) for column in self.columns})
        texts = {column or self.columns[0]: texts for column, texts in answer.texts.items()}
        parts = {}
        for column in self.columns:
            source = Source(
                asked.text,
                asked.instruction or "",
                asked.examples,
                self._positive(column, texts, asked),
                is_tags(column),
            )
            judged = [part for other in siblings for part in other.parts[column]]
            for text in texts[column]:
                drawn = replace(caption, text=text, truncated=caption.truncated and not answer.finished)
                judged.append(judge(drawn, judged, self._gate(column), source))
            parts[column] = tuple(judged[-len(texts[column]) :]) if texts[column] else ()
        return Said(parts, answer.cut)

    def _gate(self, column: str) -> Gate:
        """The gate of one of the columns: what is not true may well have other facts."""
        return self.gate.model_copy(update={"keep_facts": False}) if column.startswith("neg_") else self.gate

    def _positive(self, column: str, texts: Mapping[str, Sequence[str]], asked: Instructed) -> str:
        """What is true of the picture, for a column that says what is not: what it was made of, or the same answer by a look at it."""
        if not column.startswith("neg_") or self.of_words and not is_tags(column):
            return asked.text if column.startswith("neg_") else ""
        true = [texts[other] for other in texts if not other.startswith("neg_") and is_tags(other) == is_tags(column)]
        return "\n".join(text for of_column in true for text in of_column)


@dataclass(frozen=True)
class Said:
    """An answer: what it says in each column, as judged, and what was cut off it.

    refused: of each other answer in its place, why it was refused.
    """

    parts: Mapping[str, tuple[Judged, ...]]
    cut: tuple[str, ...] = ()
    refused: tuple[tuple[str, ...], ...] = ()

    @property
    def failing(self) -> list[str]:
        """The columns of which it says nothing that passes; of captions, all are to pass, of tags, some."""
        return [
            column
            for column, parts in self.parts.items()
            if (all if is_tags(column) else any)(part.flags for part in parts) and parts
        ]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is refused, each reason once; none where it is not."""
        flags = [flag for column in self.failing for part in self.parts[column] for flag in part.flags]
        return tuple(dict.fromkeys(flags))
