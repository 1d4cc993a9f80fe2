"""A record while its columns are made, which of its captions are kept, and the finished record."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from torch import Tensor

from captioners.base import Caption
from generate.captions.gate import Judged
from generate.captions.judged_answers import JudgedAnswer
from generate.captions.settled_column import SettledColumn
from generate.captions.tasks import Instructed
from imagetext.columns import is_caption_column
from imagetext.fields import CUT, FALLBACK, KIND
from imagetext.sample import Record
from imagetext.shown import masked
from imagetext.writers.record_fields import has_captions


@dataclass
class PendingRecord:
    """A record while its columns are made; all mappings are by the name of a `SettledColumn`.

    pixels: (3, H, W) for each column, None for columns that do not look at the picture.
    error: why the picture cannot be captioned. instructions: what was asked. answers: the judged answers so far.
    refused: why a column has no answers. kept: the captions to write, for each column that the answers write.
    """

    record: Record
    pixels: Sequence[Tensor | None] = ()
    error: str = ""
    instructions: dict[str, Instructed] = field(default_factory=dict)
    answers: dict[str, Future[list[JudgedAnswer]]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    kept: dict[str, Mapping[str, Sequence[Judged]]] = field(default_factory=dict)

    def is_failing(self, column: SettledColumn) -> bool:
        """Return whether an answer of the column is refused."""
        return column.name in self.answers and any(answer.failing for answer in self.answers[column.name].result())

    @property
    def written(self) -> dict[str, list[str]]:
        """The texts of the columns that are finished."""
        return {
            name: [caption.text for caption in captions]
            for columns in self.kept.values()
            for name, captions in columns.items()
        }


def keep(pending: PendingRecord, column: SettledColumn) -> Mapping[str, Sequence[Judged]]:
    """Settle and return what is written to each column that the answers write.

    These are the accepted captions, and with `on_degenerate` "keep" the refused ones, too. Where there are none, a
    column of captions gets its fallback.
    """
    if column.name not in pending.kept:
        answers = pending.answers[column.name].result() if column.name in pending.answers else []
        kept: dict[str, Sequence[Judged]] = {}
        for name in column.writes:
            kept[name] = [
                replace(text, flags=(*text.flags, *_notes(answer, text)))
                for answer in answers
                for text in answer.texts[name]
                if _is_kept(text, column)
            ]
            if not kept[name] and is_caption_column(name):
                kept[name] = _fallback(pending, column)
        pending.kept[column.name] = kept
    return pending.kept[column.name]


def _is_kept(caption: Judged, column: SettledColumn) -> bool:
    if not caption.text.strip() or "unparsed" in caption.flags:
        return False
    return not caption.flags or column.gate.on_degenerate == "keep"


def _notes(answer: JudgedAnswer, caption: Judged) -> Iterator[str]:
    """Yield flags that are no reason to refuse: what was cut off the answer, and how a negative was made false."""
    yield from (CUT + part for part in dict.fromkeys((*caption.drawn.cut, *answer.cut)))
    if caption.drawn.kind:
        yield KIND + caption.drawn.kind


def _fallback(pending: PendingRecord, column: SettledColumn) -> list[Judged]:
    fallback = column.task.fall_back(pending.record, pending.written, column=column.name, seed=column.sampling.seed)
    if fallback is None:
        return []
    name, text = fallback
    return [Judged(text, Caption(text, None, False), flags=(FALLBACK + name,))]


def record_of(pending: PendingRecord, columns: Sequence[SettledColumn]) -> Record:
    """Return the finished record: with an error where its picture has one, or where no column has a caption."""
    if pending.error:
        return replace(pending.record, error=pending.error)
    captions, scores, refused = {}, {}, {}
    for column in columns:
        for name, kept in keep(pending, column).items():
            if kept:
                captions[name] = tuple(caption.text for caption in kept)
                scores[name] = _scores(kept)
            else:
                refused[name] = masked(_why_none(pending, column, name))
                scores[name] = {"logprob": [], "truncated": [], "flags": [refused[name]]}
    names = [name for column in columns for name in column.writes]
    all_columns = {**pending.record.columns, **captions}
    makes_captions = any(map(is_caption_column, names))
    if makes_captions and not captions or not has_captions(all_columns, pending.record.captions, names):
        return replace(pending.record, error=", ".join(f"{name}: {reason}" for name, reason in refused.items()))
    return replace(pending.record, columns=all_columns, scores={**pending.record.scores, **scores})


def _why_none(pending: PendingRecord, column: SettledColumn, name: str) -> str:
    if reason := pending.refused.get(column.name):
        return reason
    refused = [text for answer in pending.answers[column.name].result() for text in answer.texts[name]]
    return f"no caption passed: {'; '.join(_reasons(refused))}" if refused else "the answer lists none"


def _scores(kept: Sequence[Judged]) -> dict[str, list]:
    """Return the scores of a column's captions: lists with one entry a caption; flags are joined with blanks."""
    scores: dict[str, list] = {
        "logprob": [None if judged.drawn.logprob is None else round(judged.drawn.logprob, 4) for judged in kept],
        "truncated": [judged.truncated for judged in kept],
        "flags": [" ".join(judged.flags) for judged in kept],
    }
    similarities = [judged.drawn.similarity for judged in kept if judged.drawn.similarity is not None]
    if similarities:
        scores["similarity"] = [round(similarity, 4) for similarity in similarities]
    return scores


def _reasons(refused: Sequence[Judged]) -> list[str]:
    """Return the flags of each refused caption, and its first 40 characters."""
    return [f"{' '.join(caption.flags)} {caption.text[:40]!r}" for caption in refused]
