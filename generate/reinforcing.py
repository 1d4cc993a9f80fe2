"""From samples to reinforced records: views of a picture, teachers' embeddings of them and of the record's texts.

decode, draw and make the views (workers) -> embed a group of pictures' views and new texts, teacher by teacher -> records

Dimensions: S side of a view, V views of a picture, N all views of a group, T texts, D embedding of all teachers joined.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from generate.augment import draw_views
from generate.reinforce_config import ReinforceConfig
from generate.teachers import Teacher
from imagetext.embeddings import modern, named_texts, pack, unpack
from imagetext.rows import caption_columns, well_formed
from imagetext.sample import Record, Sample, image_size
from imagetext.views import View, decode_stored, read_views, replay, write_views

GROUP = 64             # pictures whose views are held, and embedded by one teacher before the next
CACHED_TEXTS = 50_000  # of a shard, whose embeddings are held: the last that were new


class Settled(NamedTuple):
    """What a run has settled, where its configuration leaves it open."""

    size: int        # side of a view in pixels
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


class Picture(NamedTuple):
    """A sample on its way: texts, views and, where a teacher is to see them, their pixels (V, 3, S, S), uint8; or an error."""

    sample: Sample
    texts: Texts
    views: list[View] = []
    pixels: Tensor | None = None
    error: str = ""


def reinforce_samples(samples: Iterable[Sample], teachers: Sequence[Teacher], config: ReinforceConfig,
                      settled: Settled) -> Iterator[tuple[Record, str | None]]:
    """A record for each sample, in order, with its `txt`; texts that repeat are embedded once.

    A sample without a picture that decodes, or without captions to embed, is a record with an error.
    Raises: ValueError where a teacher gives no finite numbers, and whatever `samples` or the teachers raise.
    """
    pictures, known = make_views(samples, config, settled.size), {}
    while group := list(islice(pictures, GROUP)):
        embedded = embed_group(group, teachers, known, settled.batch_size) if teachers else ({} for _ in group)
        for picture, embeddings in zip(group, embedded, strict=True):
            yield reinforced(picture, embeddings, config), picture.texts.text
        for text in list(islice(known, max(0, len(known) - CACHED_TEXTS))):
            del known[text]


def make_views(samples: Iterable[Sample], config: ReinforceConfig, size: int) -> Iterator[Picture]:
    """The samples with their views, made by `num_workers` processes; a picture is decoded once for all of them."""
    asked: deque[tuple[Sample, Texts]] = deque()  # of the workers

    def requests() -> Iterator[tuple[str, bytes | None, str]]:
        for sample in samples:
            texts, error = read_texts(sample, config)
            asked.append((sample, texts))
            yield sample.key, sample.image, error

    made = DataLoader(_Viewed(config, size), sampler=requests(), batch_size=None, num_workers=config.num_workers,
                      collate_fn=_as_it_is, prefetch_factor=-(-GROUP // config.num_workers) if config.num_workers else None)
    for views, pixels, error in made:
        yield Picture(*asked.popleft(), views, None if pixels is None else torch.from_numpy(pixels), error)


def _as_it_is(made: tuple) -> tuple:
    """Arrays stay arrays: as tensors, a group's would lie in shared memory, of which containers have 64 MB."""
    return made


class _Viewed(Dataset):
    """Views of pictures, made in worker processes; asked for by key, encoded bytes, and why there can be none."""

    def __init__(self, config: ReinforceConfig, size: int):
        self.config, self.size = config, size

    def __getitem__(self, asked: tuple[str, bytes | None, str]) -> tuple[list[View], np.ndarray | None, str]:
        key, encoded, error = asked
        if error:
            return [], None, error
        try:
            image = decode_stored(encoded)
        except ValueError as undecodable:
            return [], None, str(undecodable)
        views = draw_views(self.config.seed, key, self.config.views, image.size, self.size, self.config.crop_area)
        if self.config.embeddings == "none":  # no teacher sees them
            return views, None, ""
        return views, torch.stack([replay(view, image, self.size) for view in views]).numpy(), ""


def read_texts(sample: Sample, config: ReinforceConfig) -> tuple[Texts, str]:
    """The sample's texts, and what is known to be wrong with it before its picture is decoded."""
    columns, error = {}, str(sample.meta.get("error", ""))
    try:
        found = caption_columns(sample.members.get("syn.json", b"{}"))
        columns = {name: tuple(map(well_formed, texts)) for name, texts in found.items()
                   if name.startswith("syn_text") and any(map(str.strip, texts))}
    except ValueError as problem:
        error = error or str(problem)
    chosen = tuple(name for name in columns if re.match(config.columns, name))
    captions = tuple(map(well_formed, sample.captions))
    synthetic = columns.values() if config.text_from_synthetic else ()
    text = next((text for texts in (*synthetic, captions) for text in texts if text.strip()), None)
    return Texts(text, captions, columns, chosen), error or ("" if chosen else f"no captions in columns like {config.columns!r}")


def embed_group(group: Sequence[Picture], teachers: Sequence[Teacher], known: dict[str, Tensor],
                batch_size: int) -> list[dict[str, Tensor]]:
    """Each picture's embeddings by name, rows (V or T, D) in float32; `known` has those of texts (D,), and gets the new ones."""
    good = [picture for picture in group if not picture.error]
    if not good:
        return [{} for _ in group]
    named = [picture.texts.named() for picture in good]
    new = list(dict.fromkeys(text for texts in named for some in texts.values() for text in some if text not in known))
    pixels = torch.cat([picture.pixels for picture in good])  # (N, 3, S, S)
    found = [teacher.embed(pixels, new, batch_size) for teacher in teachers]
    of_views, of_texts = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))  # (N, D), (T, D)
    known.update(zip(new, of_texts, strict=True))
    rows = iter(of_views.split([len(picture.views) for picture in good]))  # (V, D) each
    texts = ({name: torch.stack([known[text] for text in some]) if some else of_texts[:0] for name, some in texts.items()}
             for texts in named)
    return [{} if picture.error else {"image_emb": next(rows), **next(texts)} for picture in group]


def convert_samples(samples: Iterable[Sample], config: ReinforceConfig) -> Iterator[tuple[Record, str | None]]:
    """The record of each sample that is reinforced already, in either layout, with its views and embeddings in the newer one.

    A sample without them, or whose embeddings are not of its texts, is a record with an error.
    """
    for sample in samples:
        texts, error = read_texts(sample, config)
        views, embeddings = [], {}
        try:
            if not error:
                image_size(sample.image)  # that there is one
                views = read_views(sample.members.get("paug.json", b"{}"))
                embeddings = modern(unpack(sample.members), len(views), texts.named())
        except ValueError as problem:
            error = str(problem)
        yield reinforced(Picture(sample, texts, views, error=error), embeddings, config), texts.text


def reinforced(picture: Picture, embeddings: Mapping[str, Tensor], config: ReinforceConfig) -> Record:
    """The sample's record with `paug.json` and its embeddings in the place of those it may have had."""
    ours = ("syn.json", "paug.json", "npz", "pth.gz")
    members = {name: data for name, data in picture.sample.members.items() if name not in ours}
    if not picture.error:
        members["paug.json"] = write_views(picture.views)
        if embeddings:
            members[config.embeddings] = pack(embeddings, config.embeddings)
    return Record(replace(picture.sample, members=members), picture.texts.columns, picture.error)
