"""Captioned pictures for training and validation: all are checked once, then each is read again when it is needed.

K: captions of each picture, S: picture side in pixels
"""

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import numpy as np
from torch import Tensor

from captioners.base import TrainableCaptioner
from captioners.ranks import processes_here
from finetune.batching import CHECKED, Batch, TrainingPictures, collate
from finetune.identity import Identity, InputHashes, find_duplicates, picture_hash
from finetune.long_captions import CaptionFitter
from finetune.rejects import first_of, why_no_caption
from finetune.tar_files import TarFiles, with_tar_files
from imagetext.picture_files import read_picture, real_path
from imagetext.pixels import Pixels
from imagetext.sample import Record, Shard, decode_image
from imagetext.shown import Progress

CACHE_BYTES = 2**28  # memory for preprocessed pictures


class CaptionedPictures(TrainingPictures):
    """All pictures of some shards that decode and have a caption.

    Pictures that are files or lie in tars on this machine are read when they are needed. Those of remote stores and
    tables stay in memory, encoded. If all preprocessed pictures fit in 256 MiB, they stay in memory, too.

    rejects: (key, reason) of each picture that cannot be used.
    failed_before: (key, reason) of each row that the input itself marks as failed.
    identities: key and hash of each picture.
    input_hashes: for each input path, a hash of what was read from it.
    weights: how often each picture comes in a pass.
    flag: the one that names the input, for errors.
    image: a function that returns the model's input for a picture index: pixels (3, S, S), unless it is replaced.

    Raises ValueError if no picture can be used.
    """

    def __init__(
        self,
        shards: Sequence[Shard | Iterable[Record]],
        captioner: TrainableCaptioner,
        *,
        captions_per_image: int = 1,
        long_captions: str = "sentence",
        weight: float = 1.0,
        flag: str = "--input",
        quiet: bool = False,
    ):
        self.captioner, self.captions_per_image = captioner, captions_per_image
        self.fit = CaptionFitter(
            captioner.encode_text_ids, captioner.decode, captioner.context_length, mode=long_captions
        )
        self.in_flight = Pixels(processes_here())
        self.samples: list[Record] = []
        self.identities: list[Identity] = []
        self.rejects: list[tuple[str, str]] = []
        self.failed_before: list[tuple[str, str]] = []
        self.preprocessed: list[Tensor] | None = []  # None if they take too much memory
        hashes = InputHashes()
        progress = Progress(desc="reading pictures", unit="picture", mininterval=1, disable=quiet)
        for path, sample, tar_files, (error, picture, pixels) in self._checked(shards):
            if error:
                (self.failed_before if sample.failed_before else self.rejects).append((sample.key, error))
            else:
                self.samples.append(_without_image(sample, tar_files))
                self.identities.append(Identity(sample.key, picture))
                self._keep(pixels)
                if path:
                    hashes.add(path, sample, picture)
            progress.update()
        progress.close()
        self.input_hashes = hashes.hexdigests()
        if not self.samples:
            raise ValueError(f"{flag}: no usable captioned picture{first_of(self.rejects + self.failed_before)}")
        self.weights = np.full(len(self.samples), weight)
        self.image: Callable[[int], Any] = self._pixels

    def __len__(self) -> int:
        return len(self.samples)

    def _checked(
        self, shards: Sequence[Shard | Iterable[Record]]
    ) -> Iterator[tuple[str, Record, TarFiles | None, Any]]:
        """Yield each sample with its shard's path, its files in a tar, and the result of `_check`.

        While some samples are checked, the next ones are read.
        """
        entries = ((getattr(shard, "path", ""), *entry) for shard in shards for entry in with_tar_files(shard))
        earlier: Iterable = ()
        with ThreadPoolExecutor() as pool:  # decoding and hashing release Python's global lock
            while batch := list(itertools.islice(entries, CHECKED)):
                checks = pool.map(self._check, (sample for _, sample, _ in batch))
                yield from earlier
                earlier = ((*entry, check) for entry, check in zip(batch, checks, strict=True))
            yield from earlier

    def _check(self, sample: Record) -> tuple[str, bytes, Tensor | None]:
        """Return why a sample cannot be used, or "" if it can, its picture's hash, and its pixels if they are kept."""
        if not any(caption.strip() for caption in sample.captions):
            return sample.error or why_no_caption(sample), b"", None
        try:
            with self.in_flight.held(sample.image):
                picture = decode_image(sample.image)
                pixels = None if self.preprocessed is None else self.captioner.preprocess(picture)
        except ValueError as error:
            return sample.error or str(error), b"", None
        return "", picture_hash(sample.image), pixels

    def _keep(self, pixels: Tensor | None) -> None:
        """Keep the pixels of the next picture, or none at all if they take too much memory."""
        if self.preprocessed is not None and pixels is not None:
            self.preprocessed.append(pixels)
            if len(self.preprocessed) * pixels.nbytes > CACHE_BYTES:
                self.preprocessed = None

    def add(self, other: Self) -> None:
        """Add the pictures of another set, with their weights."""
        self.samples += other.samples
        self.identities += other.identities
        self.rejects += other.rejects
        self.failed_before += other.failed_before
        self.input_hashes |= other.input_hashes
        self.weights = np.concatenate([self.weights, other.weights])
        self.preprocessed = None  # both sets together may be too large to stay in memory

    def hold_out(self, count: int, seed: int) -> list[Record]:
        """Remove `count` pictures, chosen by the seed, and their duplicates from the set; return those chosen."""
        chosen = np.random.Generator(np.random.Philox(key=[seed, 2**63])).permutation(len(self))[:count].tolist()
        held_out = [self.with_image(index) for index in sorted(chosen)]
        self.leave_out(find_duplicates(self, self, chosen))
        return held_out

    def with_image(self, index: int) -> Record:
        """Return the sample with the bytes of its picture."""
        return dataclasses.replace(self.samples[index], image=self.encoded(index))

    def leave_out(self, excluded: Collection[int]) -> None:
        """Remove the pictures of these indices from the set; raises ValueError if none would remain."""
        remaining = [index for index in range(len(self)) if index not in excluded]
        if not remaining:
            raise ValueError("every picture of --input is held out, none is left to train on")
        self.samples, self.weights = [self.samples[index] for index in remaining], self.weights[remaining]
        self.identities = [self.identities[index] for index in remaining]
        self.preprocessed = self.preprocessed and [self.preprocessed[index] for index in remaining]

    def encoded(self, index: int) -> bytes:
        """Return the bytes of the picture; raises ValueError if its file no longer exists."""
        sample = self.samples[index]
        if sample.image is not None:
            return sample.image
        tar_files = sample.meta.get("tar_files")
        return tar_files.read("picture")["picture"] if tar_files else read_picture(sample.path)

    def _pixels(self, index: int) -> Tensor:
        if self.preprocessed:
            return self.preprocessed[index]
        encoded = self.encoded(index)
        with self.in_flight.held(encoded):
            return self.captioner.preprocess(decode_image(encoded))  # (3, S, S)

    def captions(self, index: int, draw: int) -> list[tuple[str, int]]:
        """Return K consecutive captions of a picture, each with the draw that decides how a long caption is cut.

        The draw chooses the first caption; after the last caption the first follows.
        """
        captions = [caption for caption in self.samples[index].captions if caption.strip()]
        draw, first = divmod(draw, len(captions))
        return [(captions[(first + i) % len(captions)], draw + i) for i in range(self.captions_per_image)]

    def length(self, index: int, draw: int) -> int:
        return max(len(caption) for caption, _ in self.captions(index, draw))

    def __getitem__(self, item: tuple[int, int]) -> tuple[Any, list[list[int]], int, str]:
        """Return pixels (3, S, S), K lists of token ids, the picture's index and its key, for (index, draw)."""
        index, draw = item
        token_ids = [self.fit(caption, cut) for caption, cut in self.captions(index, draw)]
        return self.image(index), token_ids, index, self.samples[index].key

    def collate(self, items: Sequence[tuple[Any, list[list[int]], int, str]]) -> Batch:
        return collate(items, self.captioner.pad_id)

    def caption_lengths(self, most: int = 10_000) -> list[int]:
        """Return the numbers of tokens of at most `most` captions, evenly spaced, with start and end tokens."""
        captions = [caption for sample in self.samples for caption in sample.captions if caption.strip()]
        step = math.ceil(len(captions) / most)
        return [len(self.captioner.encode_text_ids(caption)) for caption in captions[::step]]


def _without_image(sample: Record, tar_files: TarFiles | None) -> Record:
    """Return the sample without its picture's bytes if these can be read again from a tar or a file of their own."""
    if tar_files:
        return Record(sample.key, None, sample.captions, meta={**sample.meta, "tar_files": tar_files})
    if sample.image is not None and os.path.isfile(sample.path) and os.path.getsize(sample.path) == len(sample.image):
        return dataclasses.replace(sample, image=None, path=real_path(sample.path))  # links may change later
    return sample
