"""From records to reinforced records: makes views of the pictures, and teachers embed the views and the texts.

decode, draw and make views (workers) -> embed views and new texts of a group, teacher by teacher -> records

Dimensions: S side of a view, V views of a picture, N all views of a group, T texts, D embedding of all teachers
joined.
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
from imagetext.fields import well_formed
from imagetext.reinforced.embeddings import named_texts, pack, to_newer_layout, unpack
from imagetext.reinforced.views import View, check_views, decode_stored, read_views, replay, write_views
from imagetext.sample import Record, open_image

GROUP = 64  # pictures whose views are embedded by one teacher before the next
CACHED_TEXTS = 50_000  # texts of a shard whose embeddings stay in memory: the last new ones


class ViewSettings(NamedTuple):
    """What a run has settled where its configuration leaves it open."""

    size: int  # side of a view in pixels
    batch_size: int  # views or texts at a time


@dataclass(frozen=True)
class RecordTexts:
    """The texts of a record: its `txt`, all original captions, its columns, and the names of the columns to embed."""

    text: str | None
    captions: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]]
    chosen: tuple[str, ...]

    def named(self) -> dict[str, Sequence[str]]:
        """Return the texts to embed, by the name of their embeddings."""
        return named_texts(self.text, self.captions, {name: self.columns[name] for name in self.chosen})


class PendingViews(NamedTuple):
    """A record before it is embedded: its texts and views; or an error.

    pixels: of the views, (V, 3, S, S), uint8; None where no teacher sees them.
    """

    record: Record
    texts: RecordTexts
    views: list[View] = []
    pixels: Tensor | None = None
    error: str = ""


def reinforce_samples(
    samples: Iterable[Record],
    teachers: Sequence[Teacher],
    config: ReinforceConfig,
    *,
    batch_size: int,
    workers: Workers,
    following: Iterable[Record] | None = None,
) -> Iterator[tuple[Record, str | None]]:
    """Yield each record reinforced, in order, with its `txt`; a repeated text is embedded once.

    A record whose picture does not decode, or that has no captions to embed, gets an error.
    batch_size: views or texts at a time. following: the records to prepare next, once all of these are prepared.
    Raises: ValueError where a teacher gives no finite numbers, and whatever `samples` or the teachers raise.
    """
    pictures = (
        PendingViews(record, texts, views, pixels=pixels, error=error)
        for (record, texts), (views, pixels, error) in workers.prepared(samples, GROUP, following)
    )
    embedded_texts: dict[str, Tensor] = {}
    while group := list(islice(pictures, GROUP)):
        if teachers:
            embedded = embed_group(group, teachers, embedded_texts, batch_size=batch_size)
        else:
            embedded = [{} for _ in group]
        for picture, embeddings in zip(group, embedded, strict=True):
            yield reinforced(picture, embeddings, config), picture.texts.text
        for text in list(islice(embedded_texts, max(0, len(embedded_texts) - CACHED_TEXTS))):
            del embedded_texts[text]


def workers_for(
    config: ReinforceConfig, size: int, count: int
) -> Workers[tuple[Record, RecordTexts], tuple[str, bytes | None, str], tuple]:
    """Return workers that make views of records' pictures, `size` pixels wide; each picture is decoded once."""

    def requests(
        samples: Iterable[Record],
    ) -> Iterator[tuple[tuple[Record, RecordTexts], tuple[str, bytes | None, str]]]:
        for record in samples:
            texts, error = read_texts(record, config)
            yield (record, texts), (record.key, record.image, error)

    # The views of one picture are large enough for a message.
    return Workers(requests, partial(_make_views, config, size), count, message=1)


def _make_views(
    config: ReinforceConfig, size: int, request: tuple[str, bytes | None, str]
) -> tuple[list[View], Tensor | None, str]:
    """Return the views of a picture, their pixels, and the reason where there are none.

    request: the record's key, the encoded picture, and the reason where it is known already that there can be no
    views.
    """
    key, encoded, error = request
    if error:
        return [], None, error
    try:
        with decoding(encoded):
            image = decode_stored(encoded)
            views = draw_views(config.seed, key, config.views, size=image.size, side=size, crop_area=config.crop_area)
            if config.embeddings == "none":  # no teacher sees them
                return views, None, ""
            return views, torch.stack([replay(view, image, size) for view in views]), ""
    except ValueError as undecodable:
        return [], None, str(undecodable)


def read_texts(record: Record, config: ReinforceConfig) -> tuple[RecordTexts, str]:
    """Return the record's texts, and what is wrong with it as far as that is known before its picture is decoded."""
    columns = {name: texts for name, texts in record.syn_text.items() if any(map(str.strip, texts))}
    chosen = tuple(name for name in columns if re.match(config.columns, name))
    captions = tuple(map(well_formed, record.captions))
    text = record.first_text(from_synthetic=config.text_from_synthetic)
    text = None if text is None else well_formed(text)
    needs_no_column = config.embeddings == "none" and text is not None
    error = record.error
    if not error and not chosen and not needs_no_column:
        error = f"no captions in columns like {config.columns!r}"
    return RecordTexts(text, captions, columns, chosen=chosen), error


def embed_group(
    group: Sequence[PendingViews],
    teachers: Sequence[Teacher],
    embedded_texts: dict[str, Tensor],
    *,
    batch_size: int,
) -> list[dict[str, Tensor]]:
    """Return each picture's embeddings by name, (V or T, D) in float32; {} for a picture with an error.

    embedded_texts: embeddings (D,) of texts, which are not embedded again; the new ones are added.
    """
    good = [picture for picture in group if not picture.error]
    if not good:
        return [{} for _ in group]
    named_texts_of = [picture.texts.named() for picture in good]
    all_texts = [text for named in named_texts_of for texts in named.values() for text in texts]
    new_texts = [text for text in dict.fromkeys(all_texts) if text not in embedded_texts]
    pixels = torch.cat([picture.pixels for picture in good if picture.pixels is not None])  # (N, 3, S, S)
    parts = [teacher.embed(pixels, new_texts, batch_size) for teacher in teachers]
    view_parts, text_parts = zip(*parts, strict=True)
    view_rows, text_rows = torch.cat(view_parts, dim=1), torch.cat(text_parts, dim=1)  # (N, D), (T, D)
    embedded_texts.update(zip(new_texts, text_rows, strict=True))
    embeddings_of_good = []
    rows_of_pictures = view_rows.split([len(picture.views) for picture in good])  # (V, D) each
    for rows, named in zip(rows_of_pictures, named_texts_of, strict=True):
        embeddings = {"image_emb": rows}
        for name, texts in named.items():
            embeddings[name] = torch.stack([embedded_texts[text] for text in texts]) if texts else text_rows[:0]
        embeddings_of_good.append(embeddings)
    good_embeddings = iter(embeddings_of_good)
    return [{} if picture.error else next(good_embeddings) for picture in group]


def convert_samples(samples: Iterable[Record], config: ReinforceConfig) -> Iterator[tuple[Record, str | None]]:
    """Yield each record, which is reinforced already in either layout, with views and embeddings in the newer layout.

    A record without them, or whose embeddings are not those of its texts, gets an error.
    """
    for record in samples:
        texts, error = read_texts(record, config)
        views, embeddings = [], {}
        try:
            if not error:
                size = open_image(record.image).size  # raises where there is no picture
                views = read_views(record.members.get("paug.json"))
                check_views(views, size)
                embeddings = to_newer_layout(unpack(record.members), len(views), texts.named())
        except ValueError as problem:
            error = str(problem)
        yield reinforced(PendingViews(record, texts, views, error=error), embeddings, config), texts.text


def reinforced(picture: PendingViews, embeddings: Mapping[str, Tensor], config: ReinforceConfig) -> Record:
    """Return the record with `paug.json` and its embeddings, in place of any that it had."""
    members = {
        name: data for name, data in picture.record.members.items() if name not in ("paug.json", "npz", "pth.gz")
    }
    if not picture.error:
        members["paug.json"] = write_views(picture.views)
        if embeddings:
            members[config.embeddings] = pack(embeddings, config.embeddings)
    return replace(picture.record, members=members, error=picture.error)
