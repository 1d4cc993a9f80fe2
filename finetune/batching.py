"""Batches of captioned pictures. The seed alone decides which picture and which caption come at each step.

B: pictures in a batch, K: captions of each picture, L: tokens of the longest caption plus one pad, S: picture side
"""

import math
import signal
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from captioners.machine import free_cores
from captioners.ranks import processes_here
from finetune.identity import Identity
from finetune.interrupts import SIGNALS
from imagetext.pools import FORK

WIDTHS = 8  # on a GPU, captions are padded to a multiple of this number of tokens
CHECKED = 64  # number of pictures that are checked together when they are first read


class TrainingPictures(Dataset):
    """A training set indexed by (picture, draw); the draw selects the captions, or the view and texts."""

    weights: np.ndarray  # how often each picture comes in a pass
    identities: Sequence[Identity]

    def __len__(self) -> int:
        raise NotImplementedError

    def length(self, index: int, draw: int) -> int:
        """Return about how long the longest selected caption is; captions of like length are padded together."""
        raise NotImplementedError

    def collate(self, items: Sequence[Any]) -> "Batch":
        """Make a batch of items of this set."""
        raise NotImplementedError


class BatchOrder(Sampler):
    """Yields batches of (picture, draw) from batch `first` on, in endless shuffled passes over the set.

    Each process gets every `world`-th item of a batch, beginning with item `rank`. The items of a batch are drawn at
    random and then sorted by caption length, so that the parts that a device processes one after another need little
    padding. Whole batches of like lengths would be faster. But the loss of a step is the mean over its own tokens, so
    the tokens of long captions would then count less.
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
        # The cache belongs to the object: a cache on the class would keep the pictures of an earlier training in
        # memory.
        self._pass = lru_cache(2)(self._shuffled_pass)

    def __len__(self) -> int:
        return self.batches - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in range(self.first, self.batches):
            positions = range(batch * self.batch_size, (batch + 1) * self.batch_size)
            items = [self._item(position) for position in positions]
            yield sorted(items, key=lambda item: self.pictures.length(*item))[self.rank :: self.world]

    def _item(self, position: int) -> tuple[int, int]:
        """Return the picture and the draw at a position in the endless sequence of passes."""
        pass_number, position = divmod(position, len(self._pass(0)[0]))
        order, draws = self._pass(pass_number)
        return int(order[position]), int(draws[position])

    def _shuffled_pass(self, pass_number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the pictures of a pass in order, each as often as its weight says, and a draw for each.

        If weights have a fraction, that share of their pictures, chosen at random, comes once more.
        """
        random = np.random.Generator(np.random.Philox(key=[self.seed, pass_number]))
        weights = self.pictures.weights
        counts = np.floor(weights).astype(int)
        for weight in np.unique(weights):
            same_weight = random.permutation(np.flatnonzero(weights == weight))
            counts[same_weight[: round(weight % 1 * len(same_weight))]] += 1
        order = random.permutation(np.repeat(np.arange(len(counts)), counts))
        return order, random.integers(2**31, size=len(order))


class Batch(NamedTuple):
    """A batch of pictures with captions.

    images: pixels (B, 3, S, S) or what `_stack` makes of them. tokens: token ids (B, K, L). pictures: indices (B,).
    embeddings: further inputs of the losses, by name: the teachers' embeddings of pictures (B, D) and texts (B, K, D),
    and `has_negative` (B,).
    """

    images: Any
    tokens: Tensor
    pictures: Tensor
    keys: list[str]
    embeddings: Mapping[str, Tensor] = {}

    def parts(self, count: int, device: torch.device, pad_id: int | None = None) -> "list[Batch]":
        """Split the batch into `count` batches of equal size on a device; on a GPU, captions get few different widths.

        pad_id: the token that captions are padded with, None if the captions keep their width.
        """
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
    """Pad or cut token ids (B, K, L) to the smallest multiple of WIDTHS that holds the longest caption and a pad.

    This happens in main memory, because reading tokens from a GPU waits for it. Few widths are used because each new
    shape costs a GPU memory and kernel plans.
    """
    longest = int((tokens != pad_id).flatten(0, 1).any(0).nonzero().max()) + 1
    width = math.ceil((longest + 1) / WIDTHS) * WIDTHS
    return F.pad(tokens, (0, width - tokens.shape[-1]), value=pad_id)


def _move(values: Any, part: slice, device: torch.device) -> Any:
    """Return the part of each tensor or list in `values`, tensors on the device."""
    match values:
        case Tensor():
            return values[part].to(device, non_blocking=True)
        case [Tensor(), *_]:
            return tuple(_move(value, part, device) for value in values)
        case dict():
            return {name: _move(value, part, device) for name, value in values.items()}
    return values[part]


def collate(items: Sequence[tuple[Any, list[list[int]], int, str]], pad_id: int) -> Batch:
    """Make a batch; token ids are padded to the longest caption plus one pad, which `forward_trimmed` needs."""
    images, ids, pictures, keys = zip(*items)
    longest = max(len(caption) for captions in ids for caption in captions)
    tokens = torch.full((len(ids), len(ids[0]), longest + 1), pad_id)
    for rows, captions in zip(tokens, ids, strict=True):
        for row, caption in zip(rows, captions, strict=True):
            row[: len(caption)] = torch.tensor(caption)
    return Batch(images=_stack(images), tokens=tokens, pictures=torch.tensor(pictures), keys=list(keys))


def _stack(images: Sequence[Any]) -> Any:
    """Stack pictures of one shape, or features; pictures of several shapes become (B, longest), flat, and shapes."""
    if not isinstance(images[0], Tensor) or len({image.shape for image in images}) == 1:
        return default_collate(list(images))
    shapes = torch.tensor([image.shape for image in images])
    return [pad_sequence([image.flatten() for image in images], batch_first=True), shapes]


def decoders(num_workers: int | None, on_gpu: bool) -> int:
    """Return the number of processes that decode pictures for this one: `num_workers` unless it is None.

    By default, a process with a GPU gets its share of the CPU cores less one, and a process without a GPU gets 1.
    Decoding a picture takes 5 to 7 ms of a core, and a GPU trains on hundreds of pictures a second.
    """
    if num_workers is not None:
        return num_workers
    if not on_gpu:
        return 1
    share = free_cores() // processes_here()
    return max(1, share - 1)


def batches(order: BatchOrder, num_workers: int, *, pin_memory: bool = False) -> Generator[Batch, None, None]:
    """Yield the batches in this order; pinned memory can be copied to a GPU while it computes.

    A signal that stops the run reaches all of its processes. Those that decode ignore it, so that the run can finish
    its step and write a checkpoint. They end when the generator is closed.
    """
    torch.multiprocessing.set_sharing_strategy("file_system")  # otherwise each waiting tensor keeps a file open
    loader = DataLoader(
        _Readable(order.pictures),
        batch_sampler=order,
        num_workers=num_workers,
        multiprocessing_context=FORK if num_workers else None,
        pin_memory=pin_memory,
        collate_fn=order.pictures.collate,
        worker_init_fn=_ignore_signals,
    )
    iterator = iter(loader)
    try:
        yield from iterator
    finally:
        # An error keeps the iterator alive until Python exits, which would send SIGTERM to the processes, and wait.
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            iterator._shutdown_workers()


class UnreadablePicture(ValueError):
    """A picture that could be used when the run began can no longer be read.

    If this happens in a process that decodes, torch makes the error anew in this process, from the text of its
    traceback. The message is at the end of that text.
    """

    def __init__(self, message: str):
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].rstrip())


class _Readable(Dataset):
    """A training set whose errors name the picture."""

    def __init__(self, pictures: TrainingPictures):
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, item: tuple[int, int]) -> Any:
        try:
            return self.pictures[item]
        except (OSError, ValueError) as error:
            key = self.pictures.identities[item[0]].key
            raise UnreadablePicture(
                f"{key}: could be read when the run began, and cannot be read now: {error}"
            ) from error


def _ignore_signals(_: int) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
