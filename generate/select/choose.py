"""The second pass: reduces each record to the captions that are kept, or gives the reason why none is kept.

Scores and embeddings stay with their captions.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from generate.select.config import ORIGINALS
from generate.select.judge import Judge, JudgedCaption, Lacking, class_of, text_hash, tie_of
from generate.select.settle import KEPT, LACKING, UNUSABLE, SettledLimits, best_by_text, class_hash
from imagetext.reinforced.embeddings import named_texts, pack, to_newer_layout, unpack
from imagetext.sample import Record
from imagetext.sets.room import text_embeddings

Indices = Mapping[str, Sequence[int]]  # of the captions that are kept, by column


class Chosen(NamedTuple):
    """What is kept of a record.

    record: with the kept captions; None where none is kept. text: its `txt`. kind: one of FATES.
    reason: why no caption is kept. left_out: how many captions are not kept, by the flag that excludes them.
    """

    record: Record | None
    text: str | None = None
    kind: str = KEPT
    reason: str = ""
    left_out: Mapping[str, int] = {}


def choose(
    record: Record, shard: str, judge: Judge, *, settled: SettledLimits, text_from_synthetic: bool = False
) -> Chosen:
    """Return the record with the captions that pass all conditions and limits.

    The result depends only on the record, its shard's name, the configuration and the settled limits.
    """
    try:
        judged = judge.captions(record)
    except ValueError as error:
        return Chosen(None, kind=LACKING if isinstance(error, Lacking) else UNUSABLE, reason=str(error))
    judged, reason = _within_limits(judged, record, tie_of(record, shard), judge=judge, settled=settled)
    left_out = Counter(caption.reason.partition(":")[0] for caption in judged if caption.reason)
    if reason:
        return Chosen(None, kind="max-per-class", reason=reason, left_out=left_out)
    if all(caption.reason for caption in judged):
        kind, reason = _why_none(judged, judge, settled)
        return Chosen(None, kind=kind, reason=reason, left_out=left_out)
    indices: dict[str, list[int]] = {caption.column: [] for caption in judged}
    for caption in judged:
        if not caption.reason:
            indices[caption.column].append(caption.index)
    try:
        reduced, text = with_captions(record, indices, text_from_synthetic=text_from_synthetic)
    except ValueError as error:
        return Chosen(None, kind=UNUSABLE, reason=str(error))
    return Chosen(reduced, text, left_out=left_out)


def _within_limits(
    judged: Sequence[JudgedCaption], record: Record, tie: int, *, judge: Judge, settled: SettledLimits
) -> tuple[list[JudgedCaption], str]:
    """Return the captions, with a reason for each that a limit excludes; and the reason if one excludes the record."""
    if judge.config.max_per_caption:
        best = best_by_text([caption for caption in judged if not caption.reason])
        if excluded := {text for text, score in best.items() if not settled.of_captions.passes(text, score, tie)}:
            judged = _excluded(judged, "max-per-caption", lambda caption: text_hash(caption.text) in excluded)
    scores = [caption.score for caption in judged if not caption.reason]
    name = class_of(record)
    if scores and judge.config.max_per_class and name is not None:
        if not settled.of_classes.passes(class_hash(name), max(scores), tie):
            most = judge.config.max_per_class
            return [*judged], f"{most:,} records of the class {name!r} have a better score than {max(scores):.4g}"
    if threshold := settled.threshold:
        judged = _excluded(judged, "top", lambda caption: not threshold.passes(caption.score, tie))
    return [*judged], ""


def _excluded(
    judged: Sequence[JudgedCaption], reason: str, excludes: Callable[[JudgedCaption], bool]
) -> list[JudgedCaption]:
    """Return the captions, with this reason for each that has none yet and is to be excluded."""
    return [
        caption._replace(reason=reason) if not caption.reason and excludes(caption) else caption for caption in judged
    ]


def _why_none(judged: Sequence[JudgedCaption], judge: Judge, settled: SettledLimits) -> tuple[str, str]:
    """Return why no caption of a record is kept: which of FATES, and the reason of the caption that came farthest."""
    reasons = [caption.reason for caption in judged]
    if "top" in reasons and settled.threshold:
        best = max(caption.score for caption in judged if caption.reason == "top")
        if best == settled.threshold.score:
            return "top", f"its best score is the threshold, {best:.4g}; a hash of the key chose among equal scores"
        return "top", f"its best score is {best:.4g}, and the threshold is {settled.threshold.score:.4g}"
    if "max-per-caption" in reasons:
        most = judge.config.max_per_caption
        return "max-per-caption", f"{most:,} records with captions of these words have a better score"
    (commonest, _), *_ = Counter(reasons).most_common()
    condition = f"meets {judge.config.where}" if commonest == "where" else f"passes: {commonest}"
    return "where", f"none of {len(judged)} captions {condition}"


def with_captions(record: Record, indices: Indices, *, text_from_synthetic: bool = False) -> tuple[Record, str | None]:
    """Return the record with only the captions at these indices of these columns, and its `txt`.

    Scores and embeddings of all other captions are removed: from `npz`, `pth.gz`, and fields with one vector for each
    caption. A column without captions left is removed.
    Raises: ValueError where it cannot be told which embedding belongs to which caption.
    """
    texts_of = {**record.columns, ORIGINALS: record.captions}
    reduced = {name: kept for name, kept in indices.items() if len(kept) < len(texts_of[name])}
    texts = {name: tuple(texts_of[name][index] for index in kept) for name, kept in reduced.items()}
    captions = texts.pop(ORIGINALS, record.captions)
    columns = {name: column_texts for name, column_texts in {**record.columns, **texts}.items() if column_texts}
    scores = {}
    for name, column_scores in record.scores.items():
        if name not in reduced:
            scores[name] = column_scores
        elif name in columns:
            scores[name] = _kept_scores(column_scores, reduced[name], len(texts_of[name]))
    chosen = replace(record, captions=captions, columns=columns, scores=scores)
    text = chosen.first_text(from_synthetic=text_from_synthetic)
    if reduced:
        chosen = _with_embeddings(record, chosen, text, reduced=reduced, text_from_synthetic=text_from_synthetic)
    return chosen, text


def _kept_scores(scores: Mapping[str, object], kept: Sequence[int], count: int) -> dict[str, object]:
    """Return the scores of the kept captions; a score without a value for each of `count` captions stays as it is."""
    return {
        name: [values[index] for index in kept] if isinstance(values, list) and len(values) == count else values
        for name, values in scores.items()
    }


def _with_embeddings(
    before: Record, record: Record, text: str | None, *, reduced: Indices, text_from_synthetic: bool
) -> Record:
    """Return the record with the embeddings of its captions, in the newer layout, if it had text embeddings `before`.

    text: its `txt`. reduced: the indices of the kept captions, for the columns that lost some.
    """
    meta = dict(record.meta)
    for name, kept in reduced.items():
        field, count = f"{name}_emb", len(before.columns.get(name, before.captions))
        if field in meta:
            if not isinstance(meta[field], list) or len(meta[field]) != count:
                raise ValueError(f"{field}: has no vector for each of the {count} captions, and some are left out")
            meta[field] = [meta[field][index] for index in kept]
    record = replace(record, meta=meta)
    kind = next((kind for kind in ("npz", "pth.gz") if kind in record.members), None)
    if kind is None or not text_embeddings(replace(record, meta={})):
        return record
    embeddings = unpack(record.members)
    columns = {name: texts for name, texts in before.syn_text.items() if any(map(str.strip, texts))}
    if any(f"{name}_emb" in embeddings for name in columns):  # the newer layout, which may embed only some columns
        columns = {name: texts for name, texts in columns.items() if f"{name}_emb" in embeddings}
    text_before = before.first_text(from_synthetic=text_from_synthetic)
    texts_before = named_texts(text_before, before.captions, columns)
    rows = to_newer_layout(embeddings, len(embeddings.get("image_emb", ())), texts_before)
    row_of = {}
    for name, texts in texts_before.items():
        row_of.update(zip(texts, rows[name], strict=True))
    columns_left = {name: record.columns[name] for name in columns if name in record.columns}
    texts_left = named_texts(text, record.captions, columns_left)
    if lacking := [text for texts in texts_left.values() for text in texts if text not in row_of]:
        raise ValueError(f"{kind}: has no embedding of its text {lacking[0]!r}")
    packed = {"image_emb": rows["image_emb"]}
    for name, texts in texts_left.items():
        packed[name] = torch.stack([row_of[text] for text in texts]) if texts else rows["image_emb"][:0]
    return replace(record, members={**record.members, kind: pack(packed, kind)})
