"""Hard negatives by rules alone: captions that say of a picture what is not so, by one small change of a true caption."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain, zip_longest
from typing import TYPE_CHECKING

from captioners.base import Caption, Captioned, Request, SamplingConfig
from captioners.rules.changes import KINDS, Change, changes

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL import Image
    from torch import Tensor

NEGATIVES = "rules:negatives"
VERSION = 1  # of the rules: another one changes the captions
NOTHING = f"no word that a rule can change: {', '.join(KINDS)}"


class NegativeRules:
    """A captioner whose request's instruction is a true caption in English, and whose answers are hard negatives of it.

    Each has a kind, one of `changes.KINDS`. Kinds take turns, so that the first captions of a request are of different ones. Where
    there are fewer changes than captions are asked for, they come again.
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
        raise ValueError(f"{NEGATIVES} looks at no pictures")

    def check(self, sampling: SamplingConfig, *, similarity: bool = False) -> None:
        """Raises ValueError for what rules cannot do."""
        problems = []
        if sampling.strategy != "sample":
            problems.append(f"strategy {sampling.strategy}: rules draw samples only")
        if similarity:
            problems.append("similarity: rules see no picture")
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
        """Hard negatives of the instructions; an error where no rule finds anything to change."""
        self.check(sampling, similarity=similarity)
        return (self._negatives(request, sampling, column, first_index) for request in requests)

    def bytes_per_picture(self, sampling: SamplingConfig) -> int:
        return 1 << 16

    def _negatives(self, request: Request, sampling: SamplingConfig, column: str, first_index: int) -> Captioned:
        caption = " ".join((request.instruction or "").split())
        possible = _in_turn(changes(caption), draws(sampling.seed, request.key, column))
        if not possible:
            return Captioned(request.key, (), error=NOTHING)
        chosen = (possible[(first_index + number) % len(possible)] for number in range(sampling.num_captions))
        return Captioned(
            request.key, tuple(Caption(change.apply(caption), None, False, kind=change.kind) for change in chosen)
        )


def draws(seed: int, key: str, column: str) -> Iterator[int]:
    """Words of the Philox stream of a sample in a column, one after the other."""
    import torch  # late: rules need no model

    from captioners.decoding.sampling import philox, sample_key

    words = torch.tensor(sample_key(seed, key, column))
    block = 0
    while True:
        counter = torch.tensor([[number, 0, 0, 0] for number in range(block, block + 64)])
        yield from (philox(counter, words.expand(64, 2)).flatten() >> 1 & (1 << 62) - 1).tolist()
        block += 64


def _in_turn(possible: Iterable[Change], words: Iterator[int]) -> list[Change]:
    """The changes in an order that is drawn: kinds take turns, and of each kind any may be the first."""
    kinds: dict[str, list[Change]] = {}
    for change in possible:
        kinds.setdefault(change.kind, []).append(change)
    shuffled = _shuffled([_shuffled(of_kind, words) for of_kind in kinds.values()], words)
    return [change for change in chain.from_iterable(zip_longest(*shuffled)) if change is not None]


def _shuffled(items: list, words: Iterator[int]) -> list:
    return [item for _, _, item in sorted((next(words), index, item) for index, item in enumerate(items))]
