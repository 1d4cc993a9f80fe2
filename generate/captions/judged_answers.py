"""Answers of a captioner, read into the texts of their columns and judged by the gate; redraws may replace them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from captioners.base import Caption
from diversity.words.written import Source
from generate.captions.answers import Answer, read_answer
from generate.captions.gate import DUPLICATE, Gate, Judged, judge, unparsed
from generate.captions.tasks import Instructed
from imagetext.columns import is_tags


@dataclass(frozen=True)
class JudgedAnswer:
    """An answer: its judged texts by column, and what was cut off it.

    refused: for every other answer that was drawn in its place, the reasons why that one was refused.
    """

    texts: Mapping[str, tuple[Judged, ...]]
    cut: tuple[str, ...] = ()
    refused: tuple[tuple[str, ...], ...] = ()

    @property
    def failing(self) -> list[str]:
        """The columns that fail: a column of captions if any of its captions is refused, one of tags if all are."""
        columns = []
        for column, texts in self.texts.items():
            refused = [bool(text.flags) for text in texts]
            fails = all(refused) if is_tags(column) else any(refused)
            if texts and fails:
                columns.append(column)
        return columns

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the answer is refused, each reason once; () where it is accepted."""
        flags = [flag for column in self.failing for text in self.texts[column] for flag in text.flags]
        return tuple(dict.fromkeys(flags))


@dataclass(frozen=True)
class AnswerReader:
    """Reads and judges the answers of a column.

    columns: the columns that one answer writes: one for each field of JSON, else a single one.
    from_words_alone: whether the captioner is not shown the picture.
    is_plain: whether the captioner takes no instructions, and so wraps nothing round its captions.
    """

    columns: tuple[str, ...]
    answer: Literal["text", "line", "json"]
    fields: Mapping[str, str]
    gate: Gate
    from_words_alone: bool = False
    is_plain: bool = False

    def judge_all(self, captions: Sequence[Caption], instructed: Instructed) -> list[JudgedAnswer]:
        """Return the answers to one request, each judged beside those before it."""
        answers: list[JudgedAnswer] = []
        for caption in captions:
            answers.append(self.judge(caption, answers, instructed))
        return _without_lone_duplicates(answers)

    def replace_failing(
        self, answers: Sequence[JudgedAnswer], redrawn: Sequence[Caption], instructed: Instructed
    ) -> list[JudgedAnswer]:
        """Return the answers; a failing one is replaced by its redraw where fewer columns fail in the redraw.

        redrawn: a caption for each answer, in their order.
        """
        result = list(answers)
        for i, caption in enumerate(redrawn):
            before = result[i]
            if not before.failing:
                continue
            siblings = [other for j, other in enumerate(result) if j != i and not other.failing]
            candidate = self.judge(caption, siblings, instructed)
            if len(candidate.failing) < len(before.failing):
                better, worse = candidate, before
            else:
                better, worse = before, candidate
            result[i] = replace(better, refused=(*before.refused, worse.reasons))
        return _without_lone_duplicates(result)

    def judge(self, caption: Caption, siblings: Sequence[JudgedAnswer], instructed: Instructed) -> JudgedAnswer:
        """Return the answer, judged beside the other answers to its request."""
        try:
            if self.is_plain and self.answer == "text":
                answer = Answer({"": (caption.text,)})
            else:
                answer = read_answer(caption.text, self.answer, self.fields)
        except ValueError:
            return JudgedAnswer({column: (unparsed(caption),) for column in self.columns})
        texts = {column or self.columns[0]: column_texts for column, column_texts in answer.texts.items()}
        judged_texts = {}
        for column in self.columns:
            source = Source(
                instructed.text,
                instructed.instruction or "",
                instructed.examples,
                positive=self._true_texts(column, texts, instructed),
                tag=is_tags(column),
            )
            # A duplicate may be of a text whose answer is replaced now, so it refuses no other text.
            judged = [text for sibling in siblings for text in sibling.texts[column] if DUPLICATE not in text.flags]
            number_of_siblings = len(judged)
            for text in texts[column]:
                drawn = replace(caption, text=text, truncated=caption.truncated and not answer.finished)
                judged.append(judge(drawn, judged, self._gate_of(column), source=source))
            judged_texts[column] = tuple(judged[number_of_siblings:])
        return JudgedAnswer(judged_texts, answer.cut)

    def _gate_of(self, column: str) -> Gate:
        """Return the gate of one of the columns; a column of false texts may have facts that its source lacks."""
        return self.gate.model_copy(update={"keep_facts": False}) if column.startswith("neg_") else self.gate

    def _true_texts(self, column: str, texts: Mapping[str, Sequence[str]], instructed: Instructed) -> str:
        """Return what is true of the picture, in lines, for a column whose texts are meant to be false; "" for others.

        True are the captions that the answer was written from, or, where the picture was shown or for tags, the texts
        of the same kind in the same answer.
        """
        if not column.startswith("neg_"):
            return ""
        if self.from_words_alone and not is_tags(column):
            return instructed.text
        true_columns = [other for other in texts if not other.startswith("neg_") and is_tags(other) == is_tags(column)]
        return "\n".join(text for true_column in true_columns for text in texts[true_column])


def _without_lone_duplicates(answers: Sequence[JudgedAnswer]) -> list[JudgedAnswer]:
    """Return the answers, in which a text is no duplicate if no accepted text of its column has its words.

    The text that it repeats may have been refused, or replaced by a redraw.
    """
    accepted = {
        (column, *text.words)
        for answer in answers
        for column, texts in answer.texts.items()
        for text in texts
        if not text.flags
    }
    result = []
    for answer in answers:
        answer_texts = {}
        for column, texts in answer.texts.items():
            judged = []
            for text in texts:
                if text.flags == (DUPLICATE,) and (column, *text.words) not in accepted:
                    accepted.add((column, *text.words))
                    text = replace(text, flags=())
                judged.append(text)
            answer_texts[column] = tuple(judged)
        result.append(replace(answer, texts=answer_texts))
    return result
