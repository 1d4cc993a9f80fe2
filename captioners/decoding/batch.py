"""Captions drawn, or taken greedily, in a batch that is kept full: those that end leave it, the next pictures' join.

Dimensions: N pictures, C captions of each, R rows (captions in flight), V vocabulary.
"""

import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from captioners.base import Request
from captioners.decoding.rows import Begin, Decoded, DecodedPicture, Rows, Rules, each_on_host
from captioners.decoding.sampling import choose, exponentials, process, race_side, sample_key

try:
    from captioners.decoding.choice_kernel import choose_by_kernel
except ImportError:  # Triton comes with torch's CUDA builds alone
    choose_by_kernel = None

COMPACT_BELOW = 0.8  # of the rows alive: copying the caches costs less than going on with finished captions


class Flight(NamedTuple):
    """The captions in flight, a row each; the fields are (R,), or as said."""

    picture: Tensor  # number of its picture, in input order
    caption: Tensor  # its place among the picture's captions
    draw: Tensor  # the number of its draws among those of the picture's key
    key: Tensor  # (R, 2), the Philox key of the picture's key
    tokens: Tensor  # (R, max_length), the last at the right; before the first, start tokens
    length: Tensor  # tokens, start and prompt included
    logprob: Tensor  # float64
    alive: Tensor  # bool: its end has not come
    noted: Tensor  # bool: its end was taken down

    def keep(self, rows: Tensor) -> "Flight":
        return Flight(*(field[rows] for field in self))

    def join(self, other: "Flight") -> "Flight":
        return Flight(*(torch.cat(fields) for fields in zip(self, other, strict=True)))


def advance(flight: Flight, logits: Tensor, rules: Rules) -> tuple[Flight, Tensor]:
    """The flight with the next tokens, chosen by logits (R, V), and these (R,); a finished row's is the end token."""
    if rules.masked is not None:
        logits = rules.masked(flight, logits)
    tokens, logprob = choose_next(flight, logits, rules)
    tokens = tokens.masked_fill(~flight.alive, rules.end_id)
    moved = torch.cat([flight.tokens[:, 1:], tokens[:, None]], dim=1)
    length = flight.length + flight.alive
    over = (tokens == rules.end_id) | (length == rules.max_length - 1)
    if rules.stops is not None:
        over |= rules.stops.ended(moved, length) & flight.alive
    return flight._replace(
        tokens=torch.where(flight.alive[:, None], moved, flight.tokens),
        length=length,
        logprob=torch.where(flight.alive, flight.logprob + logprob, flight.logprob),
        alive=flight.alive & ~over,
    ), tokens


def choose_next(flight: Flight, logits: Tensor, rules: Rules) -> tuple[Tensor, Tensor]:
    """The next tokens (R,) by logits (R, V), and their log-probabilities (R,): by one kernel where there is one."""
    sampling, vocabulary = rules.sampling, logits.shape[1]
    if choose_by_kernel and logits.is_cuda and sampling.strategy == "sample":
        logits = logits.contiguous()
        scores = process(
            logits, flight.tokens, sampling, lengths=flight.length, never=rules.never, end_id=rules.end_id
        )
        return choose_by_kernel(
            logits,
            scores,
            sampling,
            keys=flight.key,
            draws=flight.draw,
            lengths=flight.length,
            never=rules.never,
            end_id=rules.end_id,
        )
    side = race_side(vocabulary)

    def noise(some: Tensor, attempt: Tensor) -> Tensor:
        return exponentials(flight.key[some], flight.draw[some], flight.length[some], attempt, side)

    return choose(
        logits.float(),
        flight.tokens,
        sampling,
        lengths=flight.length,
        never=rules.never,
        end_id=rules.end_id,
        noise=noise,
    )


@dataclass
class _Waiting:
    """A picture whose captions, or an earlier picture's, are not all there."""

    key: str
    features: Tensor | None
    captions: dict[int, Decoded]  # by their place among the picture's


@dataclass
class _Batch:
    """Captions in flight, what the model knows of each, and the last token (R,) of each, which it is not fed yet."""

    flight: Flight
    rows: Rows
    tokens: Tensor


class Drawing:
    """Draws captions of requests, with at most `batch_size` requests' worth of captions in flight.

    Caption i of a picture is number first_index + i of its key's draws in the column, whatever else is in the batch. Once enough captions
    have ended to compact the batch, the next pictures are encoded and join it. Iterating gives the pictures in input order.
    check_every: steps between looks at which captions have ended; a GPU need not wait for the host in between.
    """

    def __init__(
        self,
        begin: Begin,
        requests: Iterable[Request],
        rules: Rules,
        *,
        batch_size: int,
        column: str = "",
        first_index: int = 0,
        check_every: int = 1,
    ):
        self.begin, self.rules, self.batch_size, self.check_every = begin, rules, batch_size, check_every
        self.column, self.first_index = column, first_index
        self.requests = iter(requests)
        self.waiting: deque[_Waiting] = deque()
        self.given = 0  # pictures given out, so the number of the first that waits

    @torch.no_grad()
    def __iter__(self) -> Iterator[DecodedPicture]:
        """Raises FloatingPointError where the model's logits are not finite."""
        batch, captions = self._refill(None), range(self.rules.sampling.num_captions)
        for step in itertools.count(1):
            if batch is None:
                return
            logits = batch.rows.extend(batch.tokens[:, None])[:, -1]
            batch.flight, batch.tokens = advance(batch.flight, logits, self.rules)
            if step % self.check_every == 0:
                self._note(batch)
                while self.waiting and len(self.waiting[0].captions) == len(captions):
                    self.given += 1
                    first = self.waiting.popleft()
                    yield DecodedPicture(first.key, first.features, [first.captions[i] for i in captions])
                batch = self._refill(self._compact(batch))

    def _refill(self, batch: _Batch | None) -> _Batch | None:
        """The batch with as many of the next pictures as there is room for, whose first tokens are chosen."""
        captions = self.rules.sampling.num_captions
        taken = 0 if batch is None else len(batch.tokens)
        new = list(itertools.islice(self.requests, self.batch_size - -(-taken // captions)))
        if not new:
            return batch
        keys = [request.key for request in new]
        features, rows = self.begin(new)
        logits = rows.extend(self.rules.prefix.expand(len(new), -1))[:, -1]  # (N, V): a picture's captions start alike
        repeated = torch.arange(len(new), device=logits.device).repeat_interleave(captions)
        rows.keep(repeated)
        begun = self._begin_flight(keys, repeated)
        self.waiting += [
            _Waiting(key, feature, {}) for key, feature in zip(keys, each_on_host(features, len(keys)), strict=True)
        ]
        begun, first = advance(begun, logits[repeated], self.rules)
        if batch is None:
            return _Batch(begun, rows, first)
        batch.rows.join(rows)
        return _Batch(batch.flight.join(begun), batch.rows, torch.cat([batch.tokens, first]))

    def _begin_flight(self, keys: Sequence[str], repeated: Tensor) -> Flight:
        """Rows (R,) of the pictures with these keys, `repeated` saying which; they hold the prefix."""
        rules, device = self.rules, repeated.device
        philox_keys = torch.tensor([sample_key(rules.sampling.seed, key, self.column) for key in keys], device=device)
        tokens = rules.prefix[0].repeat(len(repeated), rules.max_length)
        tokens[:, rules.max_length - len(rules.prefix) :] = rules.prefix
        return Flight(
            picture=self.given + len(self.waiting) + repeated,
            caption=torch.arange(rules.sampling.num_captions, device=device).repeat(len(keys)),
            draw=self.first_index + torch.arange(rules.sampling.num_captions, device=device).repeat(len(keys)),
            key=philox_keys[repeated],
            tokens=tokens,
            length=torch.full_like(repeated, len(rules.prefix)),
            logprob=torch.zeros_like(repeated, dtype=torch.float64),
            alive=repeated >= 0,
            noted=repeated < 0,
        )

    def _note(self, batch: _Batch) -> None:
        """Takes down captions that have ended; to those that the limit, or a stop, ended, the end token is added."""
        flight, end_id, stops = batch.flight, self.rules.end_id, self.rules.stops
        ended = ~flight.alive & ~flight.noted
        done = flight.keep(ended.nonzero()[:, 0])
        batch.flight = flight._replace(noted=flight.noted | ended)
        fields = (done.picture, done.caption, done.tokens, done.length, done.logprob)
        for picture, caption, tokens, length, logprob in zip(*(field.tolist() for field in fields), strict=True):
            if math.isnan(logprob):
                raise FloatingPointError("the model's logits are not finite")
            tokens = tokens[len(tokens) - length :]
            truncated = tokens[-1] != end_id and (stops is None or not stops.within(tokens))
            if tokens[-1] != end_id:
                tokens.append(end_id)
            self.waiting[picture - self.given].captions[caption] = Decoded(tokens, logprob, truncated)

    def _compact(self, batch: _Batch) -> _Batch | None:
        """The batch without its finished rows, where that pays; None where no row is left."""
        alive = batch.flight.alive.nonzero()[:, 0]
        if len(alive) >= COMPACT_BELOW * len(batch.tokens):
            return batch
        if len(alive) == 0:
            return None
        batch.rows.keep(alive)
        return _Batch(batch.flight.keep(alive), batch.rows, batch.tokens[alive])
