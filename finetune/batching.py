"""Captioned pictures as batches: which picture and which of its captions come at each step is a function of the seed.

B: pictures in a batch, L: tokens of its longest caption and one pad, S: picture side
"""

from collections.abc import Iterator, Sequence
from functools import cache, lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from captioners.coca import CoCaCaptioner
from finetune.long_captions import CaptionFitter
from imagetext.sample import Sample, decode_image
from imagetext.sources import Shard

CACHE_BYTES = 2**30  # of preprocessed pictures


class CaptionedPictures(Dataset):
    """Pictures that decode and have a caption; `rejects` lists the others as (key, reason).

    The encoded pictures are held in memory; the preprocessed ones too, where all of them fit in 1 GiB.
    """

    def __init__(self, shards: Sequence[Shard], captioner: CoCaCaptioner, long_captions: str = "sentence"):
        self.captioner = captioner
        self.fit = CaptionFitter(captioner.encode_text_ids, captioner.context_length, long_captions)
        self.samples: list[Sample] = []
        self.rejects: list[tuple[str, str]] = []
        for sample in tqdm((sample for shard in shards for sample in shard), desc="reading pictures", unit="picture", mininterval=1):
            try:
                if not any(caption.strip() for caption in sample.captions):
                    raise ValueError("no caption")
                pixels = captioner.preprocess(decode_image(sample.image))
            except ValueError as error:
                self.rejects.append((sample.key, sample.meta.get("error") or str(error)))
            else:
                self.samples.append(sample)
        if not self.samples:
            raise ValueError(f"no usable captioned picture; the first of {len(self.rejects)} rejected: {self.rejects[:3]}")
        self.pixels = cache(self._pixels) if len(self.samples) * pixels.nbytes <= CACHE_BYTES else self._pixels

    def __len__(self) -> int:
        return len(self.samples)

    def _pixels(self, index: int) -> Tensor:
        return self.captioner.preprocess(decode_image(self.samples[index].image))  # (3, S, S)

    def __getitem__(self, drawn: tuple[int, int]) -> tuple[Tensor, list[int], str]:
        """Picture and caption drawn, as pixels (3, S, S), token ids with start and end, and the sample's key."""
        index, draw = drawn
        sample = self.samples[index]
        captions = [caption for caption in sample.captions if caption.strip()]
        draw, which = divmod(draw, len(captions))
        return self.pixels(index), self.fit(captions[which], draw), sample.key

    def caption_lengths(self, most: int = 10_000) -> list[int]:
        """Tokens of the captions, start and end included; of at most so many, evenly from the whole set."""
        captions = [caption for sample in self.samples for caption in sample.captions if caption.strip()]
        return [len(self.captioner.encode_text_ids(caption)) for caption in captions[::-(-len(captions) // most)]]


class BatchOrder(Sampler):
    """Batches of (picture, draw): shuffled passes over the set without end, from batch `first` on.

    A batch may lie across two passes, so that each has `batch_size` pictures and each picture comes once a pass.
    """

    def __init__(self, pictures: int, batch_size: int, batches: int, seed: int, first: int = 0):
        self.pictures, self.batch_size, self.batches, self.seed, self.first = pictures, batch_size, batches, seed, first

    def __len__(self) -> int:
        return self.batches - self.first

    @lru_cache(2)
    def _order(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.Generator(np.random.Philox(key=[self.seed, number]))
        return random.permutation(self.pictures), random.integers(2**31, size=self.pictures)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in range(self.first, self.batches):
            places = range(batch * self.batch_size, (batch + 1) * self.batch_size)
            drawn = []
            for passes, place in (divmod(place, self.pictures) for place in places):
                order, draws = self._order(passes)
                drawn.append((int(order[place]), int(draws[place])))
            yield drawn


def collate(items: Sequence[tuple[Tensor, list[int], str]], pad_id: int) -> tuple[Tensor, Tensor, list[str]]:
    """Pictures (B, 3, S, S), token ids (B, L) padded to the longest and one more (see `forward_trimmed`), and keys."""
    pixels, ids, keys = zip(*items)
    tokens = torch.full((len(ids), max(map(len, ids)) + 1), pad_id)
    for row, caption in zip(tokens, ids):
        row[:len(caption)] = torch.tensor(caption)
    return torch.stack(pixels), tokens, list(keys)


def batches(pictures: CaptionedPictures, batch_size: int, total: int, seed: int, first: int, num_workers: int) -> DataLoader:
    """A loader of batches `first` to `total`: pictures (B, 3, S, S), tokens (B, L), keys."""
    order = BatchOrder(len(pictures), batch_size, total, seed, first)
    pad_id = pictures.captioner.pad_id
    return DataLoader(pictures, batch_sampler=order, num_workers=num_workers, pin_memory=torch.cuda.is_available(),
                      collate_fn=lambda items: collate(items, pad_id))
