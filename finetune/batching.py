"""Captioned pictures as batches: which picture and which of its captions come at each step is a function of the seed.

B: pictures in a batch, K: captions of each, L: tokens of the longest caption and one pad, S: picture side
"""

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from captioners.ranks import processes_here
from finetune.interrupts import SIGNALS

WIDTHS = 8  # captions come to a GPU in multiples of so many tokens
CHECKED = 64  # pictures decoded side by side when they are first read
NO_CAPTION = "no caption"


class TrainingPictures(Dataset):
    """Pictures that a model is trained on, by (number, draw): the draw chooses what is shown of a picture."""

    weights: np.ndarray  # how often each comes in a pass

    def __len__(self) -> int:
        raise NotImplementedError

    def length(self, index: int, draw: int) -> int:
        """About how long the longest caption drawn is: what comes in one part of a batch is padded to one length."""
        raise NotImplementedError

    def collate(self, items: Sequence[Any]) -> "Batch":
        """A batch of what the set gives of some pictures."""
        raise NotImplementedError


class BatchOrder(Sampler):
    """Batches of (picture, draw): shuffled passes over the set without end, from batch `first` on; every world-th of a batch.

    What a batch holds is drawn by lot; it comes in the order of its captions' lengths, so that the parts of it which a device
    takes one by one are padded little. Batches of like lengths would be faster, but each step's loss is the mean over its own
    tokens: those of long captions would count less.
    """

    def __init__(
        self,
        pictures: TrainingPictures,
        batch_size: int,
        batches: int,
        seed: int,
        first: int = 0,
        *,
        rank: int = 0,
        world: int = 1,
    ):
        self.pictures, self.batch_size, self.batches = pictures, batch_size, batches
        self.seed, self.first, self.rank, self.world = seed, first, rank, world
        # A cache on the class would hold the pictures of an earlier training.
        self._pass = lru_cache(2)(self._drawn_pass)

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

    def parts(self, count: int, device: torch.device, pad_id: int | None = None) -> "list[Batch]":
        """As so many batches of equal size, on a device; captions padded with `pad_id` come to a GPU in few widths."""
        size = len(self.keys) // count
        parts = [
            Batch(*(_move(values, slice(start, start + size), device) for values in self))
            for start in range(0, len(self.keys), size)
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
            return tuple(_move(value, part, device) for value in values)
        case dict():
            return {name: _move(value, part, device) for name, value in values.items()}
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
