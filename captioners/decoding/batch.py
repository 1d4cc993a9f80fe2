"""Sampling and greedy search in a batch that is kept full: captions that end leave it, and the next pictures join.

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
from captioners.machine import triton_lacks

if triton_lacks():
    choose_by_kernel = None
else:
    from captioners.decoding.choice_kernel import choose_by_kernel

# If less than this share of rows is alive, copying the caches costs less than decoding finished captions further.
COMPACT_BELOW = 0.8


class Flight(NamedTuple):
    """The captions in flight, one per row. Fields have the shape (R,) unless noted otherwise."""

    picture: Tensor  # number of the caption's picture, in input order
    caption: Tensor  # index of the caption among those of its picture
    draw: Tensor  # caption index for random draws, which may start above 0
    key: Tensor  # (R, 2), the Philox key made from the picture's key
    tokens: Tensor  # (R, max_length), aligned at the right; filled up with start tokens at the left
    length: Tensor  # number of tokens, start and prefix included
    logprob: Tensor  # float64
    alive: Tensor  # bool: the caption has not ended
    recorded: Tensor  # bool: the caption has ended, and its result is recorded

    def keep(self, rows: Tensor) -> "Flight":
        return Flight(*(field[rows] for field in self))

    def join(self, other: "Flight") -> "Flight":
        return Flight(*(torch.cat(fields) for fields in zip(self, other, strict=True)))


def advance(flight: Flight, logits: Tensor, rules: Rules) -> tuple[Flight, Tensor]:
    """Choose the next tokens from logits (R, V); return the flight with them, and the tokens (R,).

    The token of a finished row is the end token.
    """
    if rules.masked is not None:
        logits = rules.masked(flight, logits)
    tokens, logprob = choose_next(flight, logits, rules)
    tokens = tokens.masked_fill(~flight.alive, rules.end_id)
    sequences = torch.cat([flight.tokens[:, 1:], tokens[:, None]], dim=1)
    length = flight.length + flight.alive
    ended = (tokens == rules.end_id) | (length == rules.max_length - 1)
    if rules.stops is not None:
        ended |= rules.stops.ended(sequences, length) & flight.alive
    return flight._replace(
        tokens=torch.where(flight.alive[:, None], sequences, flight.tokens),
        length=length,
        logprob=torch.where(flight.alive, flight.logprob + logprob, flight.logprob),
        alive=flight.alive & ~ended,
    ), tokens


def choose_next(flight: Flight, logits: Tensor, rules: Rules) -> tuple[Tensor, Tensor]:
    """Choose the next tokens (R,) from logits (R, V); return them and their log-probabilities (R,).

    On a GPU with Triton, one kernel does all of it.
    """
    sampling, vocabulary = rules.sampling, logits.shape[1]
    if choose_by_kernel and logits.is_cuda and sampling.strategy == "sample":
        logits = logits.contiguous()
        scores = process(
            logits, flight.tokens, sampling, lengths=flight.length, banned=rules.banned, end_id=rules.end_id
        )
        return choose_by_kernel(
            logits,
            scores,
            sampling,
            keys=flight.key,
            draws=flight.draw,
            lengths=flight.length,
            banned=rules.banned,
            end_id=rules.end_id,
        )
    side = race_side(vocabulary)

    def noise(rows: Tensor, attempt: Tensor) -> Tensor:
        return exponentials(flight.key[rows], flight.draw[rows], flight.length[rows], attempt=attempt, side=side)

    return choose(
        logits.float(),
        flight.tokens,
        sampling,
        lengths=flight.length,
        banned=rules.banned,
        end_id=rules.end_id,
        noise=noise,
    )


@dataclass
class _Waiting:
    """A picture that waits until all its captions, and those of earlier pictures, have ended."""

    key: str
    features: Tensor | None
    captions: dict[int, Decoded]  # finished captions, by their index


@dataclass
class _Batch:
    """The captions in flight, the model's state of each, and the last token (R,) of each, which is not fed yet."""

    flight: Flight
    rows: Rows
    tokens: Tensor


class Drawing:
    """Samples captions of requests, or searches greedily; iterating yields the pictures in input order.

    Once enough captions have ended to compact the batch, the next pictures are encoded and join it.
    batch_size: maximum number of requests whose captions are in flight.
    column, first_index: they determine the random draws (see `captioners.base.Captioner.caption`).
    check_every: steps between checks for ended captions; a GPU does not wait for the host between them.
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
        self.num_yielded = 0  # pictures yielded so far, which is the number of the first one that waits

    @torch.no_grad()
    def __iter__(self) -> Iterator[DecodedPicture]:
        """Raises FloatingPointError if the model's logits are not finite."""
        batch, captions = self._refill(None), range(self.rules.sampling.num_captions)
        for step in itertools.count(1):
            if batch is None:
                return
            logits = batch.rows.extend(batch.tokens[:, None])[:, -1]
            batch.flight, batch.tokens = advance(batch.flight, logits, self.rules)
            if step % self.check_every == 0:
                self._record_ended(batch)
                while self.waiting and len(self.waiting[0].captions) == len(captions):
                    self.num_yielded += 1
                    first = self.waiting.popleft()
                    yield DecodedPicture(first.key, first.features, [first.captions[i] for i in captions])
                batch = self._refill(self._compact(batch))

    def _refill(self, batch: _Batch | None) -> _Batch | None:
        """Add as many of the next pictures as the batch has space for, and choose their first tokens."""
        captions = self.rules.sampling.num_captions
        rows_in_use = 0 if batch is None else len(batch.tokens)
        pictures_in_use = -(-rows_in_use // captions)
        requests = list(itertools.islice(self.requests, self.batch_size - pictures_in_use))
        if not requests:
            return batch
        keys = [request.key for request in requests]
        features, rows = self.begin(requests)
        # (N, V): all captions of a picture start with the same prefix
        logits = rows.extend(self.rules.prefix.expand(len(requests), -1))[:, -1]
        pictures = torch.arange(len(requests), device=logits.device).repeat_interleave(captions)  # (R,)
        rows.keep(pictures)
        flight = self._begin_flight(keys, pictures)
        self.waiting += [
            _Waiting(key, feature, {}) for key, feature in zip(keys, each_on_host(features, len(keys)), strict=True)
        ]
        flight, tokens = advance(flight, logits[pictures], self.rules)
        if batch is None:
            return _Batch(flight, rows, tokens)
        batch.rows.join(rows)
        return _Batch(batch.flight.join(flight), batch.rows, torch.cat([batch.tokens, tokens]))

    def _begin_flight(self, keys: Sequence[str], pictures: Tensor) -> Flight:
        """The flight of new captions, which consist of the prefix.

        keys: of the new pictures. pictures: the index in `keys` of each row's picture (R,).
        """
        rules, device = self.rules, pictures.device
        philox_keys = torch.tensor([sample_key(rules.sampling.seed, key, self.column) for key in keys], device=device)
        tokens = rules.prefix[0].repeat(len(pictures), rules.max_length)
        tokens[:, rules.max_length - len(rules.prefix) :] = rules.prefix
        return Flight(
            picture=self.num_yielded + len(self.waiting) + pictures,
            caption=torch.arange(rules.sampling.num_captions, device=device).repeat(len(keys)),
            draw=self.first_index + torch.arange(rules.sampling.num_captions, device=device).repeat(len(keys)),
            key=philox_keys[pictures],
            tokens=tokens,
            length=torch.full_like(pictures, len(rules.prefix)),
            logprob=torch.zeros_like(pictures, dtype=torch.float64),
            alive=torch.ones_like(pictures, dtype=torch.bool),
            recorded=torch.zeros_like(pictures, dtype=torch.bool),
        )

    def _record_ended(self, batch: _Batch) -> None:
        """Record the captions that have ended; append the end token to those that the limit or a stop ended."""
        flight, end_id, stops = batch.flight, self.rules.end_id, self.rules.stops
        ended = ~flight.alive & ~flight.recorded
        done = flight.keep(ended.nonzero()[:, 0])
        batch.flight = flight._replace(recorded=flight.recorded | ended)
        fields = (done.picture, done.caption, done.tokens, done.length, done.logprob)
        for picture, caption, tokens, length, logprob in zip(*(field.tolist() for field in fields), strict=True):
            if math.isnan(logprob):
                raise FloatingPointError("the model's logits are not finite")
            tokens = tokens[len(tokens) - length :]
            truncated = tokens[-1] != end_id and (stops is None or not stops.within(tokens))
            if tokens[-1] != end_id:
                tokens.append(end_id)
            self.waiting[picture - self.num_yielded].captions[caption] = Decoded(tokens, logprob, truncated)

    def _compact(self, batch: _Batch) -> _Batch | None:
        """Remove finished rows from the batch if that pays; None if no row is left."""
        alive = batch.flight.alive.nonzero()[:, 0]
        if len(alive) >= COMPACT_BELOW * len(batch.tokens):
            return batch
        if len(alive) == 0:
            return None
        batch.rows.keep(alive)
        return _Batch(batch.flight.keep(alive), batch.rows, batch.tokens[alive])
