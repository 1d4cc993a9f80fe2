"""Captioned pictures that a captioner is trained on, or held against: read once, and again when they come.

K: captions of each, S: picture side
"""

import dataclasses
import itertools
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Self

import numpy as np
from torch import Tensor

from captioners.base import TrainableCaptioner
from captioners.ranks import processes_here
from finetune.batching import CHECKED, NO_CAPTION, Batch, TrainingPictures, collate
from finetune.identity import Identity, InputHashes, find_duplicates, picture_hash
from finetune.long_captions import CaptionFitter
from finetune.tar_files import TarFiles, with_tar_files
from imagetext.picture_files import read_picture, real_path
from imagetext.pixels import Pixels
from imagetext.sample import Record, Shard, decode_image
from imagetext.shown import Progress

CACHE_BYTES = 2**28  # of preprocessed pictures, in each process that decodes


class CaptionedPictures(TrainingPictures):
    """Pictures that decode and have a caption; `rejects` lists the others as (key, reason), `failed_before` known failures.

    `identities` tells which picture is which, `read` has a hash of what was read of each input, by its path.
    Pictures that are files, or lie in tars on this machine, are read when they come, those of stores and tables are held in
    memory, encoded; preprocessed ones, too, where all of them fit in 256 MiB. `weights`: how often each comes in a pass. `image`
    gives what the model takes of picture number i: pixels (3, S, S) unless it is replaced.
    """

    def __init__(
        self,
        shards: Sequence[Shard | Iterable[Record]],
        captioner: TrainableCaptioner,
        *,
        captions_per_image: int = 1,
        long_captions: str = "sentence",
        weight: float = 1.0,
        quiet: bool = False,
    ):
        self.captioner, self.captions_per_image = captioner, captions_per_image
        self.fit = CaptionFitter(captioner.encode_text_ids, captioner.decode, captioner.context_length, long_captions)
        self.in_flight = Pixels(processes_here())
        self.samples: list[Record] = []
        self.identities: list[Identity] = []
        self.rejects: list[tuple[str, str]] = []
        self.failed_before: list[tuple[str, str]] = []  # in the run that wrote the input
        hashes = InputHashes()
        everything = ((getattr(shard, "path", ""), *read) for shard in shards for read in with_tar_files(shard))
        progress = Progress(desc="reading pictures", unit="picture", mininterval=1, disable=quiet)
        with ThreadPoolExecutor() as pool:  # pictures decode, and are hashed, without Python's lock
            while read := list(itertools.islice(everything, CHECKED)):
                looked_at = pool.map(self._look, (sample for _, sample, _ in read))
                for (path, sample, places), (error, picture) in zip(read, looked_at, strict=True):
                    if error:
                        (self.failed_before if sample.failed_before else self.rejects).append((sample.key, error))
                    else:
                        self.samples.append(_light(sample, places))
                        self.identities.append(Identity(sample.key, picture))
                        if path:
                            hashes.add(path, sample, picture)
                progress.update(len(read))
        progress.close()
        self.read = hashes.hexdigests()
        if not self.samples:
            rejects = self.rejects + self.failed_before
            raise ValueError(f"no usable captioned picture; the first of {len(rejects)} rejected: {rejects[:3]}")
        self.weights = np.full(len(self.samples), weight)
        self.image: Callable[[int], Any] = self._pixels
        if len(self.samples) * self._pixels(0).nbytes <= CACHE_BYTES:
            self.image = cache(self._pixels)

    def __len__(self) -> int:
        return len(self.samples)

    def _look(self, sample: Record) -> tuple[str, bytes]:
        """Why a sample cannot be trained on, "" where it can, and its picture's hash."""
        if not any(caption.strip() for caption in sample.captions):
            return sample.error or NO_CAPTION, b""
        try:
            with self.in_flight.held(sample.image):
                decode_image(sample.image)
        except ValueError as error:
            return sample.error or str(error), b""
        return "", picture_hash(sample.image)

    def mixed_with(self, other: Self) -> None:
        """Adds the pictures of another set, with their weights."""
        self.samples, self.identities = self.samples + other.samples, self.identities + other.identities
        self.rejects, self.read = self.rejects + other.rejects, self.read | other.read
        self.failed_before = self.failed_before + other.failed_before
        self.weights = np.concatenate([self.weights, other.weights])
        self.image = self._pixels  # together they may be too many to hold

    def hold_out(self, count: int, seed: int) -> list[Record]:
        """Takes so many pictures, chosen by the seed, out of the set, and whatever else shows one of them."""
        chosen = np.random.Generator(np.random.Philox(key=[seed, 2**63])).permutation(len(self))[:count].tolist()
        held = [self.whole(index) for index in sorted(chosen)]
        self.leave_out(find_duplicates(self, self, chosen))
        return held

    def whole(self, index: int) -> Record:
        """The sample with its picture's bytes."""
        return dataclasses.replace(self.samples[index], image=self.encoded(index))

    def leave_out(self, numbers: Collection[int]) -> None:
        """Takes the pictures of these numbers out of the set; ValueError where none would stay."""
        kept = [index for index in range(len(self)) if index not in numbers]
        if not kept:
            raise ValueError("every picture of --input is held out, none is left to train on")
        self.samples, self.weights = [self.samples[index] for index in kept], self.weights[kept]
        self.identities = [self.identities[index] for index in kept]
        if hasattr(self.image, "cache_clear"):
            self.image.cache_clear()

    def encoded(self, index: int) -> bytes:
        """The picture's bytes; raises ValueError where its file is there no more."""
        sample = self.samples[index]
        if sample.image is not None:
            return sample.image
        places = sample.meta.get("places")
        return places.read("picture")["picture"] if places else read_picture(sample.path)

    def _pixels(self, index: int) -> Tensor:
        encoded = self.encoded(index)
        with self.in_flight.held(encoded):
            return self.captioner.preprocess(decode_image(encoded))  # (3, S, S)

    def captions(self, index: int, draw: int) -> list[tuple[str, int]]:
        """The K captions drawn of a picture, each with the draw that cuts it: consecutive ones, the draw chooses the first."""
        captions = [caption for caption in self.samples[index].captions if caption.strip()]
        draw, first = divmod(draw, len(captions))
        return [(captions[(first + i) % len(captions)], draw + i) for i in range(self.captions_per_image)]

    def length(self, index: int, draw: int) -> int:
        return max(len(caption) for caption, _ in self.captions(index, draw))

    def __getitem__(self, drawn: tuple[int, int]) -> tuple[Any, list[list[int]], int, str]:
        """Picture and captions drawn, as pixels (3, S, S), K lists of token ids, the picture's number and its key."""
        index, draw = drawn
        return (
            self.image(index),
            [self.fit(*caption) for caption in self.captions(index, draw)],
            index,
            self.samples[index].key,
        )

    def collate(self, items: Sequence[tuple[Any, list[list[int]], int, str]]) -> Batch:
        return collate(items, self.captioner.pad_id)

    def caption_lengths(self, most: int = 10_000) -> list[int]:
        """Tokens of the captions, start and end included; of at most so many, evenly from the whole set."""
        captions = [caption for sample in self.samples for caption in sample.captions if caption.strip()]
        return [len(self.captioner.encode_text_ids(caption)) for caption in captions[:: -(-len(captions) // most)]]


def _light(sample: Record, places: TarFiles | None) -> Record:
    """The sample without its picture's bytes, where these are a file of their own, or without its files, where a tar has them."""
    if places:
        return Record(sample.key, None, sample.captions, meta={**sample.meta, "places": places})
    if sample.image is not None and os.path.isfile(sample.path) and os.path.getsize(sample.path) == len(sample.image):
        return dataclasses.replace(sample, image=None, path=real_path(sample.path))  # with no link left
    return sample
