"""Sampling and greedy search on a GPU in slots at fixed memory addresses.

A slot contains the captions of one picture. Once they have all ended, another picture starts in the slot, in place.
Therefore one CUDA graph of a step serves a whole run, caches are never copied, and shapes never change. The host
launches steps; while the device computes, it yields captions that have ended and prepares the next pictures.
On a CPU, `captioners.decoding.batch` is faster, because there a row that has ended costs as much as one that has not.

Dimensions: N slots, C captions of each, R = N * C rows, M pictures that start together, V vocabulary, E embedding.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from captioners.base import Request, picture_of
from captioners.decoding.batch import Flight, advance
from captioners.decoding.device import Fetched, Graphed, send, stack
from captioners.decoding.rows import Decoded, DecodedPicture, Rules
from captioners.decoding.sampling import sample_key

LOOK_EVERY = 4  # steps between checks for ended captions
# Pictures start in groups of an eighth of the slots: many enough for a fast image tower, few enough that free slots do
# not wait long.
GROUPS = 8


class SlotRows(Protocol):
    """A model's rows: N slots of C rows each, at fixed memory addresses."""

    def begin(self, slots: Tensor, pictures: Tensor) -> Tensor:
        """Restart slots (M,) with pictures (M, 3, H, W); return their normalised features (M, E)."""
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Feed tokens (R,), one to each row; return the logits (R, V) of the next. Always does the same operations."""
        ...


class Slots:
    """The state of N slots on a device. `begin` starts pictures in some slots; `step` adds a token to every caption.

    On a GPU each of the two is one CUDA graph, captured once, and does not wait for the device.
    """

    def __init__(self, rows: SlotRows, rules: Rules, slots: int):
        self.rows, self.rules, self.count = rows, rules, slots
        self.device, self.captions = rules.prefix.device, rules.sampling.num_captions
        number = torch.arange(slots * self.captions, device=self.device)  # (R,)
        self.flight = Flight(
            picture=number // self.captions,
            caption=number % self.captions,
            draw=number % self.captions,
            key=torch.zeros(len(number), 2, dtype=torch.long, device=self.device),
            tokens=rules.prefix[0].repeat(len(number), rules.max_length),
            length=torch.ones_like(number),
            logprob=torch.zeros_like(number, dtype=torch.float64),
            alive=torch.zeros_like(number, dtype=torch.bool),
            recorded=torch.zeros_like(number, dtype=torch.bool),
        )
        self.tokens = rules.prefix[0].repeat(len(number))  # the last token of each row (R,), which is not fed yet
        self.features = torch.empty(slots, 0)  # (N, E) as soon as the first pictures have started
        self.group_size = -(-slots // GROUPS)  # number of pictures that start together
        self._step_graph, self._begin_graph = Graphed(self.device), Graphed(self.device)

    def begin(
        self,
        slots: Sequence[int],
        *,
        first_number: int,
        keys: Sequence[str],
        pictures: Tensor,
        first_index: int,
        column: str = "",
    ) -> None:
        """Restart slots with pictures (M, 3, H, W) of these keys, which get the numbers from `first_number` on.

        first_index, column: they determine the random draws (see `captioners.base.Captioner.caption`).
        """
        rows = [
            [slot, number, first_index, *sample_key(self.rules.sampling.seed, key, column)]
            for number, (slot, key) in enumerate(zip(slots, keys, strict=True), first_number)
        ]
        table = torch.tensor(rows)  # (M, 5)
        if self.device.type == "cuda" and (missing := self.group_size - len(pictures)) > 0:
            # a CUDA graph needs a fixed number of pictures: the last one is repeated, into the same slot
            table = torch.cat([table, table[-1:].expand(missing, -1)])
            pictures = torch.cat([pictures, pictures[-1:].expand(missing, -1, -1, -1)])
        self._begin_graph(self._begin, pictures, send(table, self.device))

    def _begin(self, pictures: Tensor, table: Tensor) -> None:
        """Restart slots with pictures (M, 3, H, W).

        table: per picture its slot, its number, the index of its first draw, and both words of its Philox key (M, 5).
        """
        slots, flight, start = table[:, 0], self.flight, self.rules.prefix[0]
        features = self.rows.begin(slots, pictures)
        if self.features.shape[1] == 0:
            self.features = features.new_zeros(self.count, features.shape[1], dtype=torch.float32)
        self.features.index_copy_(0, slots, features.float())
        rows = (slots[:, None] * self.captions + torch.arange(self.captions, device=self.device)).flatten()
        row_table = table.repeat_interleave(self.captions, 0)  # (M * C, 5)
        flight.picture.index_copy_(0, rows, row_table[:, 1])
        # the caption indices 0 to C - 1 repeat, so those of the first slots are those of any slots
        flight.draw.index_copy_(0, rows, row_table[:, 2] + flight.caption[: len(rows)])
        flight.key.index_copy_(0, rows, row_table[:, 3:])
        flight.tokens.index_copy_(0, rows, start.expand(len(rows), self.rules.max_length))
        flight.length.index_fill_(0, rows, 1)
        flight.logprob.index_fill_(0, rows, 0)
        flight.alive.index_fill_(0, rows, True)
        self.tokens.index_copy_(0, rows, start.expand(len(rows)))

    def step(self) -> None:
        """Add a token to every caption."""
        self._step_graph(self._step)

    def _step(self) -> None:
        """Add a token to every caption, in place."""
        before, rules = self.flight, self.rules
        after, tokens = advance(before, self.rows.step(self.tokens), rules)
        if len(rules.prefix) > 1:  # within the prefix the next token is given, not chosen
            in_prefix = before.length < len(rules.prefix)
            tokens = torch.where(in_prefix, rules.prefix[before.length.clamp(max=len(rules.prefix) - 1)], tokens)
            sequences = torch.cat([before.tokens[:, 1:], tokens[:, None]], dim=1)
            after = after._replace(
                tokens=torch.where(in_prefix[:, None], sequences, after.tokens),
                logprob=torch.where(in_prefix, before.logprob, after.logprob),
                alive=torch.where(in_prefix, before.alive, after.alive),
            )
        for field, value in zip(
            (before.tokens, before.length, before.logprob, before.alive, self.tokens),
            (after.tokens, after.length, after.logprob, after.alive, tokens),
            strict=True,
        ):
            field.copy_(value)

    def alive(self) -> Fetched:
        """Whether each slot (N,) has a caption that has not ended."""
        return Fetched(self.flight.alive.view(self.count, -1).any(1))

    def results(self, slots: Sequence[int]) -> Fetched:
        """The captions in slots: tokens (M, C, max_length), lengths, log-probabilities (M, C), features (M, E)."""
        indices = send(torch.tensor(slots), self.device)
        fields = (self.flight.tokens, self.flight.length, self.flight.logprob)
        return Fetched(*(field.unflatten(0, (self.count, -1))[indices] for field in fields), self.features[indices])


class _Group(NamedTuple):
    """Pictures that are ready to start together."""

    keys: Sequence[str]
    pictures: Tensor  # (M, 3, H, W)


class SlotDrawing:
    """Chooses the same captions as `Drawing`, in at most `batch_size` slots; iterating yields pictures in input order.

    take: a function that returns the given number of slots, which may be used ones.
    give_back: a function that takes the slots back.
    """

    def __init__(
        self,
        take: Callable[[int], Slots],
        give_back: Callable[[Slots], None],
        requests: Iterable[Request],
        rules: Rules,
        *,
        batch_size: int,
        column: str = "",
        first_index: int = 0,
    ):
        self.take, self.give_back, self.rules = take, give_back, rules
        self.requests, self.batch_size, self.column, self.first_index = iter(requests), batch_size, column, first_index
        self.groups: deque[_Group] = deque()  # ready to start
        self.next_group: list[Request] = []  # requests of the next group, while it is incomplete
        self.in_flight: dict[int, tuple[int, str]] = {}  # slot -> number and key of its picture
        self.done: dict[int, DecodedPicture] = {}  # results by number, which wait for those of earlier pictures
        self.ready: deque[DecodedPicture] = deque()  # results to be yielded next
        self.num_started = 0
        self.num_ready = 0  # results that were ever put into `ready`

    @torch.no_grad()
    def __iter__(self) -> Iterator[DecodedPicture]:
        """Raises FloatingPointError if the model's logits are not finite."""
        first = list(islice(self.requests, self.batch_size))
        if not first:
            return
        self.requests = chain(first, self.requests)
        # a power of two or batch_size, so that few graphs are captured
        slots = self.take(min(self.batch_size, 1 << (len(first) - 1).bit_length()))
        free, ended = list(range(slots.count)), None
        while True:
            self._refill(slots, free)
            if not self.in_flight:
                break
            for _ in range(LOOK_EVERY):
                slots.step()
            alive = slots.alive()
            self._collect(ended)
            # while the device computes, prepare pictures and yield results
            while not alive.is_ready() or len(self.ready) > 4 * slots.count:
                if not self._prepare_picture(slots):
                    if not self.ready:
                        break
                    yield self.ready.popleft()
            ended = self._free_ended(slots, alive.get()[0], free)
        self._collect(ended)
        self.give_back(slots)
        yield from self.ready

    def _refill(self, slots: Slots, free: list[int]) -> None:
        """Start groups of pictures in the free slots; if no group is ready, prepare one first."""
        while len(free) >= slots.group_size or not self.in_flight:
            while not self.groups and self._prepare_picture(slots):
                pass
            if not self.groups:
                return
            keys, pictures = self.groups.popleft()
            used = [free.pop() for _ in keys]
            slots.begin(
                used,
                first_number=self.num_started,
                keys=keys,
                pictures=pictures,
                first_index=self.first_index,
                column=self.column,
            )
            for number, (slot, key) in enumerate(zip(used, keys, strict=True), self.num_started):
                self.in_flight[slot] = (number, key)
            self.num_started += len(keys)

    def _prepare_picture(self, slots: Slots) -> bool:
        """Read the next request into the next group; False if enough groups are ready, or no request is left."""
        if sum(len(group.keys) for group in self.groups) >= slots.count:
            return False
        request = next(self.requests, None)
        if request is not None:
            self.next_group.append(request)
        is_complete = len(self.next_group) == slots.group_size
        is_last = bool(self.next_group) and request is None
        if is_complete or is_last:
            keys = [request.key for request in self.next_group]
            self.groups.append(_Group(keys, stack([*map(picture_of, self.next_group)], slots.device)))
            self.next_group = []
            return True
        return request is not None

    def _free_ended(
        self, slots: Slots, alive: Tensor, free: list[int]
    ) -> tuple[list[tuple[int, str]], Fetched] | None:
        """Free the slots whose captions have all ended.

        Returns the numbers and keys of their pictures, and the captions, on their way to the host; None without any.
        """
        ended = [slot for slot, is_alive in enumerate(alive.tolist()) if not is_alive and slot in self.in_flight]
        if not ended:
            return None
        free += ended
        return [self.in_flight.pop(slot) for slot in ended], slots.results(ended)

    def _collect(self, ended: tuple[list[tuple[int, str]], Fetched] | None) -> None:
        """Store the captions of ended pictures, and move results to `ready` in input order."""
        if ended is None:
            return
        pictures, fetched = ended
        tokens, lengths, logprobs, features = fetched.get()
        if logprobs.isnan().any():
            raise FloatingPointError("the model's logits are not finite")
        fields = tokens.numpy(), lengths.tolist(), logprobs.tolist(), features.clone()
        for (number, key), *captions, feature in zip(pictures, *fields, strict=True):
            decoded = [self._decoded(*caption) for caption in zip(*captions, strict=True)]
            self.done[number] = DecodedPicture(key, feature, decoded)
        while self.num_ready in self.done:
            self.ready.append(self.done.pop(self.num_ready))
            self.num_ready += 1

    def _decoded(self, padded: np.ndarray, length: int, logprob: float) -> Decoded:
        """A caption from its tokens, aligned at the right (max_length,)."""
        tokens: list[int] = padded[len(padded) - length :].tolist()
        truncated = tokens[-1] != self.rules.end_id
        return Decoded([*tokens, self.rules.end_id] if truncated else tokens, logprob, truncated)
