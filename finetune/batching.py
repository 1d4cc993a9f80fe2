"""Captioned pictures as batches: which picture and which of its captions come at each step is a function of the seed.

B: pictures in a batch, K: captions of each, L: tokens of the longest caption and one pad, S: picture side
"""

import dataclasses
import itertools
import os
import signal
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from typing import Any, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from captioners.base import TrainableCaptioner
from captioners.ranks import processes_here
from finetune.identity import Identity, InputHashes, doubles, picture_hash
from finetune.interrupts import SIGNALS
from finetune.long_captions import CaptionFitter
from finetune.places import Places, with_places
from imagetext.picture_files import read_picture, real_path
from imagetext.pixels import Pixels
from imagetext.sample import Record, Shard, decode_image
from imagetext.shown import Progress

CACHE_BYTES = 2**28  # of preprocessed pictures, in each process that decodes
WIDTHS = 8  # captions come to a GPU in multiples of so many tokens
CHECKED = 64  # pictures decoded side by side when they are first read
NO_CAPTION = "no caption"


class CaptionedPictures(Dataset):
    """Pictures that decode and have a caption; `rejects` lists the others as (key, reason), `failed_before` known failures.

    `identities` tells which picture is which, `read` has a hash of what was read of each input, by its path.
    Pictures that are files, or lie in tars on this machine, are read when they come, those of stores and tables are held in
    memory, encoded; preprocessed ones, too, where all of them fit in 256 MiB. `weights`: how often each comes in a pass. `image`
    gives what the model takes of picture number i: pixels (3, S, S) unless it is replaced.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
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
        everything = ((getattr(shard, "path", ""), *read) for shard in shards for read in with_places(shard))
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
        self.leave_out(doubles(self, self, chosen))
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
        """About how long the longest caption drawn is: what comes in one part of a batch is padded to one length."""
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

    def collate(self, items: Sequence[tuple[Any, list[list[int]], int, str]]) -> "Batch":
        return collate(items, self.captioner.pad_id)

    def caption_lengths(self, most: int = 10_000) -> list[int]:
        """Tokens of the captions, start and end included; of at most so many, evenly from the whole set."""
        captions = [caption for sample in self.samples for caption in sample.captions if caption.strip()]
        return [len(self.captioner.encode_text_ids(caption)) for caption in captions[:: -(-len(captions) // most)]]


def _light(sample: Record, places: Places | None) -> Record:
    """The sample without its picture's bytes, where these are a file of their own, or without its files, where a tar has them."""
    if places:
        return Record(sample.key, None, sample.captions, meta={**sample.meta, "places": places})
    is_file = os.path.isfile(sample.path) and os.path.getsize(sample.path) == len(sample.image)
    return (
        dataclasses.replace(sample, image=None, path=real_path(sample.path)) if is_file else sample
    )  # with no link left


class BatchOrder(Sampler):
    """Batches of (picture, draw): shuffled passes over the set without end, from batch `first` on; every world-th of a batch.

    What a batch holds is drawn by lot; it comes in the order of its captions' lengths, so that the parts of it which a device
    takes one by one are padded little. Batches of like lengths would be faster, but each step's loss is the mean over its own
    tokens: those of long captions would count less.
    """

    def __init__(
        self,
        pictures: CaptionedPictures,
        batch_size: int,
        batches: int,
        seed: int,
        first: int = 0,
        *,
        rank: int = 0,
        world: int = 1,
    ):
        self.pictures, self.batch_size, self.batches, self.seed, self.first = (
            pictures,
            batch_size,
            batches,
            seed,
            first,
        )
        self.rank, self.world = rank, world
        self._pass = lru_cache(2)(
            self._drawn_pass
        )  # a cache on the class would hold the pictures of an earlier training

    def __len__(self) -> int:
        return self.batches - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in range(self.first, self.batches):
            drawn = [self._drawn(place) for place in range(batch * self.batch_size, (batch + 1) * self.batch_size)]
            yield sorted(drawn, key=lambda item: self.pictures.length(*item))[self.rank :: self.world]

    def _drawn(self, place: int) -> tuple[int, int]:
        number, place = divmod(place, len(self._pass(0)[0]))
        order, draws = self._pass(number)
        return int(order[place]), int(draws[place])

    def _drawn_pass(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Pictures in order, each as often as its weight says, with a draw each; of a weight's fraction, pictures by lot."""
        random = np.random.Generator(np.random.Philox(key=[self.seed, number]))
        weights = self.pictures.weights
        counts = np.floor(weights).astype(int)
        for weight in np.unique(weights):
            with_it = random.permutation(np.flatnonzero(weights == weight))
            counts[with_it[: round(weight % 1 * len(with_it))]] += 1
        order = random.permutation(np.repeat(np.arange(len(counts)), counts))
        return order, random.integers(2**31, size=len(order))


class Batch(NamedTuple):
    """Pictures (B, 3, S, S), or what stands for them (see `_together`), token ids (B, K, L), pictures' numbers (B,), and keys.

    embeddings: what else a loss takes, by name: what teachers say of pictures (B, D) and texts (B, K, D), and `has_negative` (B,).
    """

    images: Any
    tokens: Tensor
    pictures: Tensor
    keys: list[str]
    embeddings: Mapping[str, Tensor] = {}

    def parts(self, count: int, device: torch.device, pad_id: int | None = None) -> list[Self]:
        """As so many batches of equal size, on a device; captions padded with `pad_id` come to a GPU in few widths."""
        size = len(self.keys) // count
        parts = [
            Batch(*(_move(values, slice(at, at + size), device) for values in self))
            for at in range(0, len(self.keys), size)
        ]
        if pad_id is None or device.type == "cpu":
            return parts
        return [
            part._replace(tokens=few_widths(tokens, pad_id).to(device, non_blocking=True))
            for part, tokens in zip(parts, self.tokens.split(size), strict=True)
        ]


def few_widths(tokens: Tensor, pad_id: int) -> Tensor:
    """Token ids (B, K, L) padded, or cut, to the least multiple of WIDTHS that holds the longest caption and a pad.

    This is done in the main memory: a look at tokens on a GPU waits for it, and each new shape costs it memory and plans.
    """
    longest = int((tokens != pad_id).flatten(0, 1).any(0).nonzero().max()) + 1
    return F.pad(tokens, (0, -(-(longest + 1) // WIDTHS) * WIDTHS - tokens.shape[-1]), value=pad_id)


def _move(values: Any, part: slice, device: torch.device) -> Any:
    match values:
        case Tensor():
            return values[part].to(device, non_blocking=True)
        case [Tensor(), *_]:
            return tuple(_move(one, part, device) for one in values)
        case dict():
            return {name: _move(one, part, device) for name, one in values.items()}
    return values[part]


def collate(items: Sequence[tuple[Any, list[list[int]], int, str]], pad_id: int) -> Batch:
    """A batch; token ids are padded to the longest and one more (see `forward_trimmed`)."""
    images, ids, pictures, keys = zip(*items)
    longest = max(len(caption) for captions in ids for caption in captions)
    tokens = torch.full((len(ids), len(ids[0]), longest + 1), pad_id)
    for rows, captions in zip(tokens, ids, strict=True):
        for row, caption in zip(rows, captions, strict=True):
            row[: len(caption)] = torch.tensor(caption)
    return Batch(_together(images), tokens, torch.tensor(pictures), list(keys))


def _together(images: Sequence[Any]) -> Any:
    """Pictures of one shape, or what stands for them, stacked; of several, flat and padded (B, longest), with their shapes."""
    if not isinstance(images[0], Tensor) or len({image.shape for image in images}) == 1:
        return default_collate(list(images))
    shapes = torch.tensor([image.shape for image in images])
    return [pad_sequence([image.flatten() for image in images], batch_first=True), shapes]


def decoders(asked: int | None, on_gpu: bool) -> int:
    """The processes that decode pictures for this one: as asked for, else its share of the cores for a GPU, and one for a CPU.

    A picture takes a core 5 to 7 ms, and a GPU trains on hundreds a second.
    """
    share = len(os.sched_getaffinity(0)) // processes_here()
    return asked if asked is not None else max(1, share - 1) if on_gpu else 1


def batches(order: BatchOrder, num_workers: int, *, pin_memory: bool = False) -> DataLoader:
    """A loader of the batches in this order; pinned memory is copied to a GPU while it computes.

    What ends the run is told to all its processes: those that decode go on until it has written its checkpoint.
    """
    torch.multiprocessing.set_sharing_strategy("file_system")  # or each tensor that waits holds an open file
    return DataLoader(
        order.pictures,
        batch_sampler=order,
        num_workers=num_workers,
        pin_memory=pin_memory,
        collate_fn=order.pictures.collate,
        worker_init_fn=_go_on,
    )


def _go_on(_: int) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
