"""A record while its columns are made, what is kept of the answers, and the record that is written in the end."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from torch import Tensor

from captioners.base import Caption
from generate.captions.column import Column
from generate.captions.gate import Judged
from generate.captions.said import Said
from generate.captions.tasks import Instructed
from imagetext.fields import CUT, FALLBACK, KIND
from imagetext.sample import Record, is_caption_column
from imagetext.shown import masked
from imagetext.writers.record_fields import has_captions


@dataclass
class PendingRecord:
    """A record on its way: its pixels for each captioner, or why there are none, what was asked of it, and what was said so far."""

    record: Record
    pixels: Sequence[Tensor | None] = ()  # (3, H, W) for each column that looks at them
    error: str = ""
    asked: dict[str, Instructed] = field(default_factory=dict)  # of each column, by its name
    said: dict[str, Future[list[Said]]] = field(default_factory=dict)
    refused: dict[str, str] = field(
        default_factory=dict
    )  # why a column has no answers, where nothing could be asked or said
    kept: dict[str, Mapping[str, Sequence[Judged]]] = field(default_factory=dict)  # what goes into each of its columns

    def failing(self, column: Column) -> bool:
        return column.name in self.said and any(said.failing for said in self.said[column.name].result())

    @property
    def written(self) -> dict[str, list[str]]:
        """The texts of the columns that are made."""
        return {name: [one.text for one in kept] for columns in self.kept.values() for name, kept in columns.items()}


def keep(picture: PendingRecord, column: Column) -> Mapping[str, Sequence[Judged]]:
    """What goes into each column that the answers write: what passes, or may be kept; else what captions fall back to."""
    if column.name not in picture.kept:
        said = picture.said[column.name].result() if column.name in picture.said else []
        kept: dict[str, Sequence[Judged]] = {}
        for name in column.writes:
            kept[name] = [
                replace(part, flags=(*part.flags, *_told(one, part)))
                for one in said
                for part in one.parts[name]
                if part.text.strip()
                and "unparsed" not in part.flags
                and not (part.flags and column.gate.on_degenerate == "drop")
            ]
            if not kept[name] and is_caption_column(name):
                kept[name] = _fallen_back(picture, column)
        picture.kept[column.name] = kept
    return picture.kept[column.name]


def _told(said: Said, part: Judged) -> Iterator[str]:
    """Flags that refuse nothing: what was cut off the answer, and how a negative was made false."""
    yield from (CUT + what for what in dict.fromkeys((*part.drawn.cut, *said.cut)))
    if part.drawn.kind:
        yield KIND + part.drawn.kind


def _fallen_back(picture: PendingRecord, column: Column) -> list[Judged]:
    fallback = column.task.fall_back(picture.record, picture.written, column.name, column.sampling.seed)
    return (
        [Judged(fallback[1], Caption(fallback[1], None, False), flags=(FALLBACK + fallback[0],))] if fallback else []
    )


def record_of(picture: PendingRecord, columns: Sequence[Column]) -> Record:
    """The picture's record, an error where it has one, or where no caption is left in any column."""
    if picture.error:
        return replace(picture.record, error=picture.error)
    captions, scores, refused = {}, {}, {}
    for column in columns:
        for name, kept in keep(picture, column).items():
            if kept:
                captions[name] = tuple(one.text for one in kept)
            else:
                refused[name] = masked(_why_none(picture, column, name))
            scores[name] = _scores(kept) if kept else {"logprob": [], "truncated": [], "flags": [refused[name]]}
    names = [name for column in columns for name in column.writes]
    made = {**picture.record.columns, **captions}
    makes_captions = any(map(is_caption_column, names))
    if makes_captions and not captions or not has_captions(made, picture.record.captions, names):
        return replace(picture.record, error=", ".join(f"{name}: {why}" for name, why in refused.items()))
    return replace(picture.record, columns=made, scores={**picture.record.scores, **scores})


def _why_none(picture: PendingRecord, column: Column, name: str) -> str:
    if reason := picture.refused.get(column.name):
        return reason
    judged = [part for one in picture.said[column.name].result() for part in one.parts[name]]
    return f"no caption passed: {'; '.join(_reasons(judged))}"


def _scores(kept: Sequence[Judged]) -> dict[str, list]:
    """What a record says of a column's captions, a list of each with one entry a caption; flags are words with spaces between."""
    scores: dict[str, list] = {
        "logprob": [None if judged.drawn.logprob is None else round(judged.drawn.logprob, 4) for judged in kept],
        "truncated": [judged.truncated for judged in kept],
        "flags": [" ".join(judged.flags) for judged in kept],
    }
    similarities = [judged.drawn.similarity for judged in kept if judged.drawn.similarity is not None]
    if similarities:
        scores["similarity"] = [round(similarity, 4) for similarity in similarities]
    return scores


def _reasons(judged: Sequence[Judged]) -> list[str]:
    """The refused captions, each with its flags, a few words of them."""
    return [f"{' '.join(one.flags)} {one.text[:40]!r}" for one in judged]
