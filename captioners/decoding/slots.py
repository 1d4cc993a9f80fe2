"""Captions drawn on a GPU in slots that never move: a slot is a picture's captions, and is begun anew in place once all have ended.

So one CUDA graph of a step serves a whole run, caches are never copied, and shapes never change. The host launches steps, and while
the device works it hands over the captions that have ended and makes the next pictures ready. On a CPU `captioners.decoding.batch` is faster,
for there a row that has ended costs as much as one that goes on.

Dimensions: N slots, C captions of each, R = N * C rows, M pictures that begin together, V vocabulary.
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
from captioners.decoding.rows import Decoded, DecodedPicture, Rules
from captioners.decoding.sampling import sample_key

LOOK_EVERY = 4  # steps between looks at which captions have ended
TOGETHER = 8  # pictures begin in eighths of the slots: enough for the image tower to be fast, few enough for slots not to wait


class SlotRows(Protocol):
    """A model's rows: N slots of C rows each, which stay where they are."""

    def begin(self, slots: Tensor, pictures: Tensor) -> Tensor:
        """Begins slots (M,) anew with pictures (M, 3, H, W): their normalised features (M, E)."""
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Feeds a token to each row, tokens (R,), and returns the logits (R, V) of what follows; always the same work."""
        ...


class Slots:
    """The state of N slots of captions on a device, how some begin, and `step`, by which every caption gets its next token.

    On a GPU either is one graph, captured once, and nothing is waited for.
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
            alive=number < 0,
            noted=number < 0,
        )
        self.tokens = rules.prefix[0].repeat(len(number))  # (R,), the last of each row, which it is not fed yet
        self.features = torch.empty(slots, 0)  # (N, E), once the first pictures have begun
        self.together = -(-slots // TOGETHER)  # pictures that begin at a time
        self.step, self._begin_all = Graphed(self._step, self.device), Graphed(self._begin, self.device)

    def begin(
        self,
        slots: Sequence[int],
        first_number: int,
        keys: Sequence[str],
        pictures: Tensor,
        first_index: int,
        column: str = "",
    ) -> None:
        """Begins slots anew with pictures (M, 3, H, W) of these keys, numbered on.

        Caption i draws as number first_index + i of its key's draws in the column.
        """
        rows = [
            [slot, number, first_index, *sample_key(self.rules.sampling.seed, key, column)]
            for number, (slot, key) in enumerate(zip(slots, keys, strict=True), first_number)
        ]
        places = torch.tensor(rows)  # (M, 5)
        if self.device.type == "cuda" and (missing := self.together - len(pictures)) > 0:
            # always as many: the last one again, into its own place
            places = torch.cat([places, places[-1:].expand(missing, -1)])
            pictures = torch.cat([pictures, pictures[-1:].expand(missing, -1, -1, -1)])
        self._begin_all(pictures, send(places, self.device))

    def _begin(self, pictures: Tensor, places: Tensor) -> None:
        slots, flight, start = places[:, 0], self.flight, self.rules.prefix[0]
        features = self.rows.begin(slots, pictures)
        if self.features.shape[1] == 0:
            self.features = features.new_zeros(self.count, features.shape[1], dtype=torch.float32)
        self.features.index_copy_(0, slots, features.float())
        rows = (slots[:, None] * self.captions + torch.arange(self.captions, device=self.device)).flatten()
        of_rows = places.repeat_interleave(self.captions, 0)
        flight.picture.index_copy_(0, rows, of_rows[:, 1])
        # C after C, as of the first slots
        flight.draw.index_copy_(0, rows, of_rows[:, 2] + flight.caption[: len(rows)])
        flight.key.index_copy_(0, rows, of_rows[:, 3:])
        flight.tokens.index_copy_(0, rows, start.expand(len(rows), self.rules.max_length))
        flight.length.index_fill_(0, rows, 1)
        flight.logprob.index_fill_(0, rows, 0)
        flight.alive.index_fill_(0, rows, True)
        self.tokens.index_copy_(0, rows, start.expand(len(rows)))

    def _step(self) -> None:
        before, rules = self.flight, self.rules
        after, tokens = advance(before, self.rows.step(self.tokens), rules)
        if len(rules.prefix) > 1:  # of a prompt the next token is known
            known = before.length < len(rules.prefix)
            tokens = torch.where(known, rules.prefix[before.length.clamp(max=len(rules.prefix) - 1)], tokens)
            after = after._replace(
                tokens=torch.where(
                    known[:, None], torch.cat([before.tokens[:, 1:], tokens[:, None]], dim=1), after.tokens
                ),
                logprob=torch.where(known, before.logprob, after.logprob),
                alive=torch.where(known, before.alive, after.alive),
            )
        for mine, new in zip(
            (before.tokens, before.length, before.logprob, before.alive, self.tokens),
            (after.tokens, after.length, after.logprob, after.alive, tokens),
            strict=True,
        ):
            mine.copy_(new)

    def alive(self) -> "Fetched":
        """Whether each slot (N,) has a caption that goes on."""
        return Fetched(self.flight.alive.view(self.count, -1).any(1))

    def found(self, slots: Sequence[int]) -> "Fetched":
        """The captions in these slots (M,): tokens (M, C, max_length), lengths, log-probabilities (M, C), features (M, E)."""
        where = send(torch.tensor(slots), self.device)
        fields = (self.flight.tokens, self.flight.length, self.flight.logprob)
        return Fetched(*(field.unflatten(0, (self.count, -1))[where] for field in fields), self.features[where])


class Graphed:
    """A function of tensors that changes others in place: on a GPU run plainly at first, which also sets up what a capture may not,
    and from then on launched as one CUDA graph, without a wait."""

    def __init__(self, function: Callable[..., None], device: torch.device):
        self.function, self.device = function, device
        self.graph: torch.cuda.CUDAGraph | None = None
        self.given: tuple[Tensor, ...] = ()  # the graph's own

    def __call__(self, *given: Tensor) -> None:
        if self.device.type != "cuda":
            return self.function(*given)
        with torch.cuda.device(self.device):  # a graph is captured on a stream of the current device
            if self.graph is None or any(
                mine.shape != new.shape or mine.dtype != new.dtype for mine, new in zip(self.given, given)
            ):
                self._capture(given)
                return
            for mine, new in zip(self.given, given, strict=True):
                mine.copy_(new)
            self.graph.replay()

    def _capture(self, given: tuple[Tensor, ...]) -> None:
        self.given = tuple(tensor.clone() for tensor in given)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.function(*self.given)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # other threads may pin memory
            self.function(*self.given)


class Fetched:
    """Tensors on their way to the host."""

    def __init__(self, *tensors: Tensor):
        self.event = None
        self.tensors = tensors
        if tensors[0].is_cuda:
            self.tensors = [
                torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
                for tensor in tensors
            ]
            self.event = torch.cuda.Event()
            self.event.record(torch.cuda.current_stream(tensors[0].device))

    def here(self) -> bool:
        """Whether nobody would wait for them."""
        return self.event is None or self.event.query()

    def get(self) -> Sequence[Tensor]:
        """The tensors, once they are here."""
        if self.event is not None:
            self.event.synchronize()
        return self.tensors


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host's on the device; a GPU takes it without anybody waiting."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def stack(pictures: Sequence[Tensor], device: torch.device) -> Tensor:
    """Pictures (3, H, W) as one tensor (M, 3, H, W) on the device, as `send`."""
    together = torch.empty(
        (len(pictures), *pictures[0].shape), dtype=pictures[0].dtype, pin_memory=device.type == "cuda"
    )
    torch.stack(list(pictures), out=together)
    return together.to(device, non_blocking=True)


class _Batch(NamedTuple):
    """Pictures that are ready to begin together."""

    keys: Sequence[str]
    pictures: Tensor


class SlotDrawing:
    """Draws captions as `Drawing` does, in at most `batch_size` slots; iterating gives the pictures in input order.

    take: gives so many slots, new or used before; give_back takes them.
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
        self.batches: deque[_Batch] = deque()  # ready to begin
        self.partial: list[Request] = []  # of the next
        self.flying: dict[int, tuple[int, str]] = {}  # slot to the number and key of its picture
        self.done: dict[int, DecodedPicture] = {}  # by number, which wait for earlier ones
        self.ready: deque[DecodedPicture] = deque()
        self.begun = self.given = 0

    @torch.no_grad()
    def __iter__(self) -> Iterator[DecodedPicture]:
        """Raises FloatingPointError where the model's logits are not finite."""
        first = list(islice(self.requests, self.batch_size))
        if not first:
            return
        self.requests = chain(first, self.requests)
        # few sizes, so that few graphs are captured
        slots = self.take(min(self.batch_size, 1 << (len(first) - 1).bit_length()))
        free, ended = list(range(slots.count)), None
        while True:
            self._refill(slots, free)
            if not self.flying:
                break
            for _ in range(LOOK_EVERY):
                slots.step()
            alive = slots.alive()
            self._collect(ended)
            while not alive.here() or len(self.ready) > 4 * slots.count:  # the device works: time for all else
                if not self._make_ready(slots):
                    if not self.ready:
                        break
                    yield self.ready.popleft()
            ended = self._ended(slots, alive.get()[0], free)
        self._collect(ended)
        self.give_back(slots)
        yield from self.ready

    def _refill(self, slots: Slots, free: list[int]) -> None:
        """Begins pictures in the free slots, a batch at a time, and waits until a batch is ready for them."""
        while len(free) >= slots.together or not self.flying:
            while not self.batches and self._make_ready(slots):
                pass
            if not self.batches:
                return
            keys, pictures = self.batches.popleft()
            where = [free.pop() for _ in keys]
            slots.begin(where, self.begun, keys, pictures, self.first_index, self.column)
            self.flying |= {slot: (self.begun + i, key) for i, (slot, key) in enumerate(zip(where, keys, strict=True))}
            self.begun += len(keys)

    def _make_ready(self, slots: Slots) -> bool:
        """Takes the next picture; False where enough are ready, or there is none."""
        if sum(len(batch.keys) for batch in self.batches) >= slots.count:
            return False
        request = next(self.requests, None)
        if request is not None:
            self.partial.append(request)
        if len(self.partial) == slots.together or self.partial and request is None:
            keys = [request.key for request in self.partial]
            self.batches.append(_Batch(keys, stack([*map(picture_of, self.partial)], slots.device)))
            self.partial = []
            return True
        return request is not None

    def _ended(self, slots: Slots, alive: Tensor, free: list[int]) -> tuple[list[tuple[int, str]], Fetched] | None:
        """Frees the slots of which no caption goes on: their pictures, and what was said of them, on its way."""
        ended = [slot for slot, goes_on in enumerate(alive.tolist()) if not goes_on and slot in self.flying]
        if not ended:
            return None
        free += ended
        return [self.flying.pop(slot) for slot in ended], slots.found(ended)

    def _collect(self, ended: tuple[list[tuple[int, str]], Fetched] | None) -> None:
        """Takes down what was said of pictures, and makes those ready that no earlier one keeps waiting."""
        if ended is None:
            return
        pictures, fetched = ended
        tokens, lengths, logprobs, features = fetched.get()
        if logprobs.isnan().any():
            raise FloatingPointError("the model's logits are not finite")
        fields = tokens.numpy(), lengths.tolist(), logprobs.tolist(), features.clone()
        for (number, key), said, length, logprob, feature in zip(pictures, *fields, strict=True):
            captions = [self._decoded(*caption) for caption in zip(said, length, logprob, strict=True)]
            self.done[number] = DecodedPicture(key, feature, captions)
        while self.given in self.done:
            self.ready.append(self.done.pop(self.given))
            self.given += 1

    def _decoded(self, tokens: np.ndarray, length: int, logprob: float) -> Decoded:
        said: list[int] = tokens[len(tokens) - length :].tolist()
        truncated = said[-1] != self.rules.end_id
        return Decoded([*said, self.rules.end_id] if truncated else said, logprob, truncated)
