"""Beam search, and diverse beam search (Vijayakumar et al. 2018, arXiv 1610.02424), as transformers defines them.

Dimensions: N pictures, G groups of K beams each, R = N * G * K rows, V vocabulary.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from captioners.base import Request
from captioners.decoding.rows import Begin, Decoded, DecodedPicture, Rows, Rules, each_on_host
from captioners.decoding.sampling import ban, penalise_repetition

NEVER = float("-inf")


class Beams(NamedTuple):
    """Captions of N pictures, by group; all fields are (N, G, K) but `tokens` (N, G, K, max_length), filled from the left."""

    score: Tensor  # what beams rank by: log-probabilities after processors and penalties, finished ones by length
    logprob: Tensor  # of the model (see Caption)
    length: Tensor  # tokens, from start to end
    forced: Tensor  # bool: the limit ended it
    tokens: Tensor

    def best(self, count: int) -> "Beams":
        """The `count` best of each group, best first."""
        return self.take(self.score.topk(count, dim=-1).indices)

    def take(self, which: Tensor) -> "Beams":
        """Those of each group that `which` (N, G, any number) names."""
        wide = which[..., None].expand(*which.shape, self.tokens.shape[-1])
        return Beams(*(field.gather(-1, which) for field in self[:-1]), tokens=self.tokens.gather(-2, wide))

    def join(self, other: "Beams") -> "Beams":
        fields = (torch.cat(field, dim=-1) for field in zip(self[:-1], other[:-1], strict=True))
        return Beams(*fields, tokens=torch.cat([self.tokens, other.tokens], dim=-2))


class BeamSearch:
    """The `num_captions` most probable captions that beams find, of requests, in input order.

    A beam that ends among the K best continuations is finished, with its score divided by (tokens after the prompt) **
    length_penalty. A group stops when K are finished and its best continuation, scored at its length so far, is no better
    than the worst of them; of a single group, only continuations that go on count: transformers 4.49, the last to have groups,
    and 5 differ in this. A group's beams pay `diversity_penalty` for each beam of earlier groups, those that stopped
    left out, that chose the token.
    """

    def __init__(self, begin: Begin, requests: Iterable[Request], rules: Rules, *, batch_size: int):
        self.begin, self.requests, self.rules, self.batch_size = begin, iter(requests), rules, batch_size
        self.groups = rules.sampling.num_beam_groups
        self.beams = rules.sampling.num_beams // self.groups

    @torch.no_grad()
    def __iter__(self) -> Iterator[DecodedPicture]:
        while batch := list(islice(self.requests, self.batch_size)):
            features, rows = self.begin(batch)
            captions = self._search(len(batch), rows)
            keys = [request.key for request in batch]
            yield from map(DecodedPicture, keys, each_on_host(features, len(keys)), captions)

    def _search(self, pictures: int, rows: Rows) -> list[list[Decoded]]:
        prefix, max_length = self.rules.prefix, self.rules.max_length
        logits = rows.extend(prefix.expand(pictures, -1))[:, -1].float()  # (N, V)
        beams = self.groups * self.beams
        repeated = torch.arange(pictures, device=prefix.device).repeat_interleave(beams)
        rows.keep(repeated)
        logits = logits[repeated]  # (R, V)
        running = self._start(pictures)
        finished = running._replace(score=torch.full_like(running.score, NEVER))
        going = torch.ones_like(running.score[..., :1], dtype=torch.bool)  # (N, G, 1)
        for length in range(len(prefix), max_length - 1):
            running, finished, hope, came_from = self._step(logits, running, finished, going, length)
            rank = (length + 1 - len(prefix)) ** self.rules.sampling.length_penalty
            going = going & (hope / rank > finished.score.min(-1, keepdim=True).values)
            if length == max_length - 2 or not going.any():
                break
            rows.keep(came_from)
            logits = rows.extend(running.tokens[..., length].flatten()[:, None])[:, -1].float()
        finished = finished.join(self._cut(running, going)).best(self.beams)
        return self._collect(finished)

    def _start(self, pictures: int) -> Beams:
        """Beams that hold the prefix; all of a group are equal, so only the first counts."""
        rules = self.rules
        shape = pictures, self.groups, self.beams
        score = torch.zeros(shape, device=rules.prefix.device)
        score[..., 1:] = NEVER
        tokens = torch.full((*shape, rules.max_length), rules.end_id, device=score.device)
        tokens[..., : len(rules.prefix)] = rules.prefix
        length = torch.full(shape, len(rules.prefix), device=score.device)
        return Beams(score, torch.zeros_like(score), length, torch.zeros_like(score, dtype=torch.bool), tokens)

    def _step(
        self, logits: Tensor, running: Beams, finished: Beams, going: Tensor, length: int
    ) -> tuple[Beams, Beams, Tensor, Tensor]:
        """Beams and finished captions one token on, the best score yet to be had (N, G, 1), and the row (R,) each beam came from."""
        shape = running.score.shape
        logprobs = logits.log_softmax(-1)  # (R, V)
        scores = self._processed(logprobs, running.tokens[..., :length].flatten(0, 2)).view(*shape, -1)  # (N, G, K, V)
        logprobs = logprobs.view(scores.shape)
        # (N, 1, V): how many beams of earlier groups chose each token
        chosen = scores.new_zeros(shape[0], 1, scores.shape[-1])
        groups = []
        for group in range(self.groups):
            part = slice(group, group + 1)
            ours = Beams(*(field[:, part] for field in running))
            penalty = self.rules.sampling.diversity_penalty * chosen[:, :, None]
            ours, ended, hope, came_from = self._continue(
                scores[:, part] - penalty, logprobs[:, part], ours, going[:, part], length
            )
            chosen.scatter_add_(2, ours.tokens[..., length], going[:, part].expand_as(ours.score).to(scores.dtype))
            groups.append((ours, ended, hope, came_from))
        by_group = list(zip(*groups))
        running, ended = (
            Beams(*(torch.cat(fields, dim=1) for fields in zip(*parts, strict=True))) for parts in by_group[:2]
        )
        # (N, G, 1); (N, G, K), beams of the group
        hope, came_from = (torch.cat(parts, dim=1) for parts in by_group[2:])
        first = torch.arange(shape[0] * shape[1], device=logits.device).view(*shape[:2], 1) * self.beams
        return running, finished.join(ended).best(self.beams), hope, (first + came_from).flatten()

    def _processed(self, logprobs: Tensor, sequences: Tensor) -> Tensor:
        """Log-probabilities (R, V) after the processors, which transformers, too, lets work on these."""
        rules, sampling = self.rules, self.rules.sampling
        scores = logprobs.clone()
        if sampling.repetition_penalty != 1:
            scores = penalise_repetition(scores, sequences, sampling.repetition_penalty)
        lengths = torch.full_like(sequences[:, 0], sequences.shape[1])
        return ban(scores, NEVER, sequences, sampling, lengths=lengths, never=rules.never, end_id=rules.end_id)

    def _continue(
        self, scores: Tensor, logprobs: Tensor, beams: Beams, going: Tensor, length: int
    ) -> tuple[Beams, Beams, Tensor, Tensor]:
        """One group's K best that go on, its continuations as finished captions, the best score yet to be had, and where from.

        scores, logprobs (N, 1, K, V). Twice as many continuations as beams are looked at, so that K go on if all K end.
        """
        vocabulary = scores.shape[-1]
        scores = (scores + beams.score[..., None]).flatten(2)  # (N, 1, K * V)
        top = scores.topk(2 * self.beams, dim=-1)
        origin, token = top.indices // vocabulary, top.indices % vocabulary  # (N, 1, 2 K)
        following = beams.take(origin)
        following.tokens[..., length] = token
        logprob = following.logprob + logprobs.flatten(2).gather(-1, top.indices)
        following = following._replace(score=top.values, logprob=logprob, length=following.length + 1)
        ends = token == self.rules.end_id
        order = top.values.masked_fill(ends, NEVER).topk(self.beams, dim=-1)
        running = following.take(order.indices)._replace(score=order.values)
        rank = (length + 1 - len(self.rules.prefix)) ** self.rules.sampling.length_penalty
        counts = ends & going & (torch.arange(2 * self.beams, device=ends.device) < self.beams)
        ended = following._replace(score=(top.values / rank).masked_fill(~counts, NEVER))
        hope = (top if self.groups > 1 else order).values[..., :1]
        return running, ended, hope, origin.gather(-1, order.indices)

    def _cut(self, running: Beams, going: Tensor) -> Beams:
        """Running beams of groups that the limit stopped, as finished captions: an end token follows, not looked for."""
        rank = (self.rules.max_length - len(self.rules.prefix)) ** self.rules.sampling.length_penalty
        return running._replace(
            score=(running.score / rank).masked_fill(~going, NEVER),
            length=running.length + 1,
            forced=torch.ones_like(running.forced),
        )

    def _collect(self, finished: Beams) -> list[list[Decoded]]:
        """The best captions of each picture, whatever their group."""
        everything = Beams(*(field.flatten(1, 2)[:, None] for field in finished)).best(
            self.rules.sampling.num_captions
        )
        fields = (everything.tokens, everything.length, everything.logprob, everything.forced)
        pictures = zip(*(field[:, 0].tolist() for field in fields), strict=True)
        return [
            [
                Decoded(tokens[:length], logprob, forced)
                for tokens, length, logprob, forced in zip(*picture, strict=True)
            ]
            for picture in pictures
        ]
