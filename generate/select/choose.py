"""The second pass: a record with what stays of it, or why nothing does. Scores and embeddings stay beside their captions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from generate.select.config import ORIGINALS
from generate.select.judge import Judge, Judged, Lacking, class_of, same_text, tie_of
from generate.select.settle import KEPT, LACKING, UNUSABLE, Settled, best_by_text, class_hash
from imagetext.reinforced.embeddings import named_texts, pack, to_newer_layout, unpack
from imagetext.sample import Record
from imagetext.sets.room import text_embeddings

Places = Mapping[str, Sequence[int]]  # of the captions that stay, by column


class Chosen(NamedTuple):
    """What stays of a record: the record and its `txt`, or None, which of FATES that is, and why.

    left_out: how many captions do not stay, by what asked for that.
    """

    record: Record | None
    text: str | None = None
    kind: str = KEPT
    reason: str = ""
    left_out: Mapping[str, int] = {}


def choose(record: Record, shard: str, judge: Judge, settled: Settled, *, text_from_synthetic: bool = False) -> Chosen:
    """The captions that pass all that is asked for and settled; a function of the record, its shard's name and what is settled."""
    try:
        judged = judge.captions(record)
    except ValueError as error:
        return Chosen(None, kind=LACKING if isinstance(error, Lacking) else UNUSABLE, reason=str(error))
    judged, reason = _within_limits(judged, record, tie_of(record, shard), judge, settled)
    left_out = Counter(one.reason.partition(":")[0] for one in judged if one.reason)
    if reason:
        return Chosen(None, kind="max-per-class", reason=reason, left_out=left_out)
    if all(one.reason for one in judged):
        return Chosen(None, None, *_why(judged, judge, settled), left_out)
    places: dict[str, list[int]] = {one.column: [] for one in judged}
    for one in judged:
        if not one.reason:
            places[one.column].append(one.place)
    try:
        return Chosen(*with_captions(record, places, text_from_synthetic=text_from_synthetic), left_out=left_out)
    except ValueError as error:
        return Chosen(None, kind=UNUSABLE, reason=str(error))


def _within_limits(
    judged: Sequence[Judged], record: Record, tie: int, judge: Judge, settled: Settled
) -> tuple[list[Judged], str]:
    """The captions, each with the reason for which it does not stay, if it does not; and that of the record as a whole."""
    best = best_by_text([one for one in judged if not one.reason]) if judge.config.max_per_caption else {}
    over = {text for text, score in best.items() if not settled.of_captions.passes(text, score, tie)}
    judged = [
        one._replace(reason="max-per-caption") if over and not one.reason and same_text(one.text) in over else one
        for one in judged
    ]
    scores = [one.score for one in judged if not one.reason]
    name = class_of(record)
    if scores and judge.config.max_per_class and name is not None:
        if not settled.of_classes.passes(class_hash(name), max(scores), tie):
            most = judge.config.max_per_class
            return judged, f"{most:,} records of the class {name!r} are worth more than {max(scores):.4g}"
    least = settled.threshold
    return [
        one._replace(reason="top") if least and not one.reason and not least.passes(one.score, tie) else one
        for one in judged
    ], ""


def _why(judged: Sequence[Judged], judge: Judge, settled: Settled) -> tuple[str, str]:
    """Which of FATES it is that no caption stays, and why; of those that fell, the best has come farthest."""
    reasons = [one.reason for one in judged]
    if "top" in reasons and settled.threshold:
        best = max(one.score for one in judged if one.reason == "top")
        return "top", f"worth {best:.4g} at best, and the threshold is {settled.threshold.score:.4g}"
    if "max-per-caption" in reasons:
        most = judge.config.max_per_caption
        return "max-per-caption", f"{most:,} records with captions of these words are worth more"
    (commonest, _), *_ = Counter(reasons).most_common()
    why = f"is {judge.config.where}" if commonest == "where" else f"passes: {commonest}"
    return "where", f"none of {len(judged)} captions {why}"


def with_captions(record: Record, places: Places, *, text_from_synthetic: bool = False) -> tuple[Record, str | None]:
    """The record with only the captions at these places of these columns, and its `txt`.

    Scores and embeddings of the others go with them: of `npz`, `pth.gz` and fields with one vector for each caption. A column of which
    nothing stays goes. Raises: ValueError where it cannot be told which embeddings are whose.
    """
    of_column = {**record.columns, ORIGINALS: record.captions}
    fewer = {name: kept for name, kept in places.items() if len(kept) < len(of_column[name])}
    texts = {name: tuple(of_column[name][place] for place in kept) for name, kept in fewer.items()}
    captions = texts.pop(ORIGINALS, record.captions)
    columns = {name: of for name, of in {**record.columns, **texts}.items() if of}
    scores = {
        name: _taken(of, fewer[name], len(of_column[name])) if name in fewer else of
        for name, of in record.scores.items()
        if name in columns or name not in fewer
    }
    chosen = replace(record, captions=captions, columns=columns, scores=scores)
    text = _text(chosen, text_from_synthetic)
    if fewer:
        chosen = _with_embeddings(record, chosen, text, fewer, text_from_synthetic)
    return chosen, text


def _taken(scores: Mapping[str, object], kept: Sequence[int], count: int) -> dict[str, object]:
    """The scores of the captions that stay; what is none of each caption stays as it is."""
    return {
        name: [values[place] for place in kept] if isinstance(values, list) and len(values) == count else values
        for name, values in scores.items()
    }


def _text(record: Record, from_synthetic: bool) -> str | None:
    synthetic = record.syn_text.values() if from_synthetic else ()
    return next((text for texts in (*synthetic, record.captions) for text in texts if text.strip()), None)


def _with_embeddings(before: Record, record: Record, text: str | None, fewer: Places, from_synthetic: bool) -> Record:
    """The record with the embeddings of its captions, in the newer layout, where it had some of all."""
    meta = dict(record.meta)
    for name, kept in fewer.items():
        field, count = f"{name}_emb", len(before.columns.get(name, before.captions))
        if field in meta:
            if not isinstance(meta[field], list) or len(meta[field]) != count:
                raise ValueError(f"{field}: no vector for each of {count} captions, and some of these do not stay")
            meta[field] = [meta[field][place] for place in kept]
    record = replace(record, meta=meta)
    kind = next((kind for kind in ("npz", "pth.gz") if kind in record.members), None)
    if kind is None or not text_embeddings(replace(record, meta={})):
        return record
    embeddings = unpack(record.members)
    columns = {name: of for name, of in before.syn_text.items() if any(map(str.strip, of))}
    if any(f"{name}_emb" in embeddings for name in columns):  # not of all columns, in the newer layout
        columns = {name: of for name, of in columns.items() if f"{name}_emb" in embeddings}
    texts = named_texts(_text(before, from_synthetic), before.captions, columns)
    rows = to_newer_layout(embeddings, len(embeddings.get("image_emb", ())), texts)
    row_of = {text: row for name, of in texts.items() for text, row in zip(of, rows[name], strict=True)}
    wanted = named_texts(
        text, record.captions, {name: record.columns[name] for name in columns if name in record.columns}
    )
    if lacking := [one for of in wanted.values() for one in of if one not in row_of]:
        raise ValueError(f"{kind}: no embedding of its text: {lacking[0]!r}")
    views = rows["image_emb"]
    packed = {name: torch.stack([row_of[one] for one in of]) if of else views[:0] for name, of in wanted.items()}
    return replace(record, members={**record.members, kind: pack({"image_emb": views, **packed}, kind)})
