"""From records to reinforced ones: views of a picture, teachers' embeddings of them and of the record's texts.

decode, draw and make the views (workers) -> embed a group of pictures' views and new texts, teacher by teacher -> records

Dimensions: S side of a view, V views of a picture, N all views of a group, T texts, D embedding of all teachers joined.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from generate.reinforce.augment import draw_views
from generate.reinforce.config import ReinforceConfig
from generate.reinforce.teachers import Teacher
from generate.runs.workers import Workers, decoding
from imagetext.readers.row_records import well_formed
from imagetext.reinforced.embeddings import named_texts, pack, to_newer_layout, unpack
from imagetext.reinforced.views import View, decode_stored, read_views, replay, write_views
from imagetext.sample import Record, image_size

GROUP = 64  # pictures whose views are held, and embedded by one teacher before the next
CACHED_TEXTS = 50_000  # of a shard, whose embeddings are held: the last that were new


class Settled(NamedTuple):
    """What a run has settled, where its configuration leaves it open."""

    size: int  # side of a view in pixels
    batch_size: int  # views or texts at a time


@dataclass(frozen=True)
class Texts:
    """The texts of a record: `txt`, all original captions, and the columns, those to embed among them."""

    text: str | None
    captions: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]]
    chosen: tuple[str, ...]

    def named(self) -> dict[str, Sequence[str]]:
        """The texts to embed, by the name of their embeddings."""
        return named_texts(self.text, self.captions, {name: self.columns[name] for name in self.chosen})


class PendingViews(NamedTuple):
    """A record on its way: texts, views and, where a teacher is to see them, their pixels (V, 3, S, S), uint8; or an error."""

    record: Record
    texts: Texts
    views: list[View] = []
    pixels: Tensor | None = None
    error: str = ""


def reinforce_samples(
    samples: Iterable[Record],
    teachers: Sequence[Teacher],
    config: ReinforceConfig,
    settled: Settled,
    workers: Workers,
    following: Iterable[Record] | None = None,
) -> Iterator[tuple[Record, str | None]]:
    """Each record reinforced, in order, with its `txt`; texts that repeat are embedded once.

    One without a picture that decodes, or without captions to embed, is a record with an error.
    following: records of which the first are prepared once these all are.
    Raises: ValueError where a teacher gives no finite numbers, and whatever `samples` or the teachers raise.
    """
    pictures = (
        PendingViews(record, texts, views, pixels, error)
        for (record, texts), (views, pixels, error) in workers.prepared(samples, GROUP, following)
    )
    known: dict[str, Tensor] = {}
    while group := list(islice(pictures, GROUP)):
        embedded = embed_group(group, teachers, known, settled.batch_size) if teachers else ({} for _ in group)
        for picture, embeddings in zip(group, embedded, strict=True):
            yield reinforced(picture, embeddings, config), picture.texts.text
        for text in list(islice(known, max(0, len(known) - CACHED_TEXTS))):
            del known[text]


def workers_for(
    config: ReinforceConfig, size: int, count: int
) -> Workers[tuple[Record, Texts], tuple[str, bytes | None, str], tuple]:
    """Workers that make views of records' pictures, `size` pixels wide; a picture is decoded once for all of them."""

    def requests(samples: Iterable[Record]) -> Iterator[tuple[tuple[Record, Texts], tuple[str, bytes | None, str]]]:
        for record in samples:
            texts, error = read_texts(record, config)
            yield (record, texts), (record.key, record.image, error)

    return Workers(requests, partial(_make_views, config, size), count, message=1)  # all views of one are large enough


def _make_views(
    config: ReinforceConfig, size: int, asked: tuple[str, bytes | None, str]
) -> tuple[list[View], Tensor | None, str]:
    """Views of a picture and their pixels, by its key, encoded bytes, and why there can be none."""
    key, encoded, error = asked
    if error:
        return [], None, error
    try:
        with decoding(encoded):
            image = decode_stored(encoded)
            views = draw_views(config.seed, key, config.views, image.size, size, config.crop_area)
            if config.embeddings == "none":  # no teacher sees them
                return views, None, ""
            return views, torch.stack([replay(view, image, size) for view in views]), ""
    except ValueError as undecodable:
        return [], None, str(undecodable)


def read_texts(record: Record, config: ReinforceConfig) -> tuple[Texts, str]:
    """The record's texts, and what is known to be wrong with it before its picture is decoded."""
    columns = {name: texts for name, texts in record.syn_text.items() if any(map(str.strip, texts))}
    chosen = tuple(name for name in columns if re.match(config.columns, name))
    captions = tuple(map(well_formed, record.captions))
    synthetic = columns.values() if config.text_from_synthetic else ()
    text = next((text for texts in (*synthetic, captions) for text in texts if text.strip()), None)
    without = config.embeddings == "none" and text is not None  # nothing is to be embedded
    error = record.error or ("" if chosen or without else f"no captions in columns like {config.columns!r}")
    return Texts(text, captions, columns, chosen), error


def embed_group(
    group: Sequence[PendingViews], teachers: Sequence[Teacher], known: dict[str, Tensor], batch_size: int
) -> list[dict[str, Tensor]]:
    """Each picture's embeddings by name, rows (V or T, D) in float32; `known` has those of texts (D,), and gets the new ones."""
    good = [picture for picture in group if not picture.error]
    if not good:
        return [{} for _ in group]
    named = [picture.texts.named() for picture in good]
    new = list(dict.fromkeys(text for texts in named for some in texts.values() for text in some if text not in known))
    pixels = torch.cat([picture.pixels for picture in good if picture.pixels is not None])  # (N, 3, S, S)
    embedded = [teacher.embed(pixels, new, batch_size) for teacher in teachers]
    of_views, of_texts = (torch.cat(parts, dim=1) for parts in zip(*embedded, strict=True))  # (N, D), (T, D)
    known.update(zip(new, of_texts, strict=True))
    rows = iter(of_views.split([len(picture.views) for picture in good]))  # (V, D) each
    texts = (
        {name: torch.stack([known[text] for text in some]) if some else of_texts[:0] for name, some in texts.items()}
        for texts in named
    )
    return [{} if picture.error else {"image_emb": next(rows), **next(texts)} for picture in group]


def convert_samples(samples: Iterable[Record], config: ReinforceConfig) -> Iterator[tuple[Record, str | None]]:
    """Each record that is reinforced already, in either layout, with its views and embeddings in the newer one.

    One without them, or whose embeddings are not of its texts, is a record with an error.
    """
    for record in samples:
        texts, error = read_texts(record, config)
        views, embeddings = [], {}
        try:
            if not error:
                image_size(record.image)  # that there is one
                views = read_views(record.members.get("paug.json", b"{}"))
                embeddings = to_newer_layout(unpack(record.members), len(views), texts.named())
        except ValueError as problem:
            error = str(problem)
        yield reinforced(PendingViews(record, texts, views, error=error), embeddings, config), texts.text


def reinforced(picture: PendingViews, embeddings: Mapping[str, Tensor], config: ReinforceConfig) -> Record:
    """The record with `paug.json` and its embeddings in the place of those it may have had."""
    members = {
        name: data for name, data in picture.record.members.items() if name not in ("paug.json", "npz", "pth.gz")
    }
    if not picture.error:
        members["paug.json"] = write_views(picture.views)
        if embeddings:
            members[config.embeddings] = pack(embeddings, config.embeddings)
    return replace(picture.record, members=members, error=picture.error)
