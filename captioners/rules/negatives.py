"""Hard negatives by rules: captions that one small change of a true caption makes false."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, zip_longest
from typing import TYPE_CHECKING

from captioners.base import Caption, Captioned, Request, SamplingConfig
from captioners.rules.changes import KINDS, Change, changes

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

NEGATIVES = "rules:negatives"
VERSION = 1  # of the rules; it must change whenever captions change
NOTHING = f"the caption has no word that a rule can change ({', '.join(KINDS)})"


class NegativeRules:
    """A captioner without a model: a request's instruction is a true English caption, its results are hard negatives.

    Each has a kind, one of `changes.KINDS`. The first captions of a request have different kinds, because kinds
    alternate. If there are fewer possible changes than captions, the changes repeat.
    """

    name = "rules"
    weights_sha256 = hashlib.sha256(f"{NEGATIVES} {VERSION}".encode()).hexdigest()
    description = f"hard negatives by rules, version {VERSION}: {', '.join(KINDS)}"
    batch_size = 256
    looks_at_pictures = False
    needs_picture = False
    takes_instruction = True
    needs_instruction = True

    @property
    def preprocess(self) -> "Callable[[Image.Image], Tensor]":
        """Raises ValueError always."""
        raise ValueError(f"{NEGATIVES} does not look at pictures")

    def check(self, sampling: SamplingConfig, *, similarity: bool = False) -> None:
        """Raise ValueError if the sampling needs a model."""
        problems = []
        if sampling.strategy != "sample":
            problems.append(f"strategy {sampling.strategy}: rules support only strategy sample")
        if similarity:
            problems.append("similarity: rules do not see the picture")
        if problems:
            raise ValueError(f"{NEGATIVES}: {'; '.join(problems)}")

    def caption(
        self,
        requests: Iterable[Request],
        sampling: SamplingConfig,
        *,
        column: str = "",
        first_index: int = 0,
        similarity: bool = False,
        batch_size: int | None = None,
    ) -> Iterator[Captioned]:
        """Yield hard negatives of the instructions; a result is an error if no rule can change its caption."""
        self.check(sampling, similarity=similarity)
        return (self._negatives(request, sampling, column, first_index=first_index) for request in requests)

    def bytes_per_picture(self, sampling: SamplingConfig) -> int:
        """A generous estimate of the memory of a request, in bytes."""
        return 1 << 16

    def _negatives(self, request: Request, sampling: SamplingConfig, column: str, *, first_index: int) -> Captioned:
        """The hard negatives of a request's instruction."""
        caption = " ".join((request.instruction or "").split())
        possible = _alternate_kinds(changes(caption), draws(sampling.seed, request.key, column))
        if not possible:
            return Captioned(request.key, (), error=NOTHING)
        captions = []
        for number in range(first_index, first_index + sampling.num_captions):
            change = possible[number % len(possible)]
            captions.append(Caption(change.apply(caption), None, truncated=False, kind=change.kind))
        return Captioned(request.key, tuple(captions))


def draws(seed: int, key: str, column: str) -> Iterator[int]:
    """The random words of the Philox stream of a sample in a column."""
    import torch  # late: rules need no model

    from captioners.decoding.sampling import philox, sample_key

    words = torch.tensor(sample_key(seed, key, column))
    block = 0
    while True:
        counter = torch.tensor([[number, 0, 0, 0] for number in range(block, block + 64)])
        yield from (philox(counter, words.expand(64, 2)).flatten() >> 1 & (1 << 62) - 1).tolist()
        block += 64


def _alternate_kinds(possible: Iterable[Change], words: Iterator[int]) -> list[Change]:
    """The changes in random order, with kinds that alternate. words: random numbers."""
    kinds: dict[str, list[Change]] = {}
    for change in possible:
        kinds.setdefault(change.kind, []).append(change)
    shuffled = _shuffled([_shuffled(changes_of_kind, words) for changes_of_kind in kinds.values()], words)
    return [change for change in chain.from_iterable(zip_longest(*shuffled)) if change is not None]


def _shuffled(items: list, words: Iterator[int]) -> list:
    """The items in an order that random numbers determine."""
    return [item for _, _, item in sorted((next(words), index, item) for index, item in enumerate(items))]
