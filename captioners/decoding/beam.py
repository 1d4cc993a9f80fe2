"""Beam search and diverse beam search (Vijayakumar et al. 2018, arXiv 1610.02424), as transformers defines them.

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

NEVER = float("-inf")  # score of a token or beam that must not be chosen


class Beams(NamedTuple):
    """Captions of N pictures, by group; fields have the shape (N, G, K) unless noted otherwise."""

    score: Tensor  # sum of log-probabilities after processors and penalties; of finished beams, length-normalised
    logprob: Tensor  # of the model (see Caption)
    length: Tensor  # number of tokens, from start to end
    forced: Tensor  # bool: the length limit ended the caption
    tokens: Tensor  # (N, G, K, max_length), aligned at the left

    def best(self, count: int) -> "Beams":
        """The `count` beams of each group with the highest scores, best first."""
        return self.take(self.score.topk(count, dim=-1).indices)

    def take(self, indices: Tensor) -> "Beams":
        """The beams of each group with these indices (N, G, any number)."""
        of_tokens = indices[..., None].expand(*indices.shape, self.tokens.shape[-1])
        return Beams(*(field.gather(-1, indices) for field in self[:-1]), tokens=self.tokens.gather(-2, of_tokens))

    def join(self, other: "Beams") -> "Beams":
        """The beams of both, group by group."""
        fields = (torch.cat(field, dim=-1) for field in zip(self[:-1], other[:-1], strict=True))
        return Beams(*fields, tokens=torch.cat([self.tokens, other.tokens], dim=-2))


class BeamSearch:
    """Searches for the `num_captions` most probable captions of requests; iterating yields pictures in input order.

    A beam whose end token is among the K best continuations is finished. Its score is divided by (tokens after the
    prefix) ** length_penalty. A group stops when K beams are finished and its best continuation, normalised by its
    present length, scores no higher than the worst finished beam. With a single group, only continuations that do not
    end count as best; transformers 4.49, the last release with groups, and transformers 5 differ in this.
    A token costs a group's beams `diversity_penalty` for each beam of earlier groups that chose it. Groups that have
    stopped do not count.
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
        """The best captions of each of the pictures, whose rows have just begun."""
        prefix, max_length = self.rules.prefix, self.rules.max_length
        logits = rows.extend(prefix.expand(pictures, -1))[:, -1].float()  # (N, V)
        beams = self.groups * self.beams
        row_pictures = torch.arange(pictures, device=prefix.device).repeat_interleave(beams)  # (R,)
        rows.keep(row_pictures)
        logits = logits[row_pictures]  # (R, V)
        running = self._start(pictures)
        finished = running._replace(score=torch.full_like(running.score, NEVER))
        going = torch.ones_like(running.score[..., :1], dtype=torch.bool)  # whether a group has not stopped (N, G, 1)
        for length in range(len(prefix), max_length - 1):
            running, finished, best_score, source_rows = self._step(
                logits, running, finished, going=going, length=length
            )
            normaliser = (length + 1 - len(prefix)) ** self.rules.sampling.length_penalty
            going = going & (best_score / normaliser > finished.score.min(-1, keepdim=True).values)
            if length == max_length - 2 or not going.any():
                break
            rows.keep(source_rows)
            logits = rows.extend(running.tokens[..., length].flatten()[:, None])[:, -1].float()
        finished = finished.join(self._finish_at_limit(running, going)).best(self.beams)
        return self._collect(finished)

    def _start(self, pictures: int) -> Beams:
        """Beams that consist of the prefix. Those of a group are equal, so only the first one may be continued."""
        rules = self.rules
        shape = pictures, self.groups, self.beams
        score = torch.zeros(shape, device=rules.prefix.device)
        score[..., 1:] = NEVER
        tokens = torch.full((*shape, rules.max_length), rules.end_id, device=score.device)
        tokens[..., : len(rules.prefix)] = rules.prefix
        length = torch.full(shape, len(rules.prefix), device=score.device)
        return Beams(
            score,
            logprob=torch.zeros_like(score),
            length=length,
            forced=torch.zeros_like(score, dtype=torch.bool),
            tokens=tokens,
        )

    def _step(
        self, logits: Tensor, running: Beams, finished: Beams, going: Tensor, length: int
    ) -> tuple[Beams, Beams, Tensor, Tensor]:
        """Continue all beams by one token.

        Returns the running beams, the finished beams, the best score (N, G, 1) of a continuation, and the row (R,)
        that each running beam continues.
        """
        shape = running.score.shape
        logprobs = logits.log_softmax(-1)  # (R, V)
        scores = self._processed(logprobs, running.tokens[..., :length].flatten(0, 2)).view(*shape, -1)  # (N, G, K, V)
        logprobs = logprobs.view(scores.shape)
        # how many beams of earlier groups chose each token (N, 1, V)
        times_chosen = scores.new_zeros(shape[0], 1, scores.shape[-1])
        groups = []
        for group in range(self.groups):
            part = slice(group, group + 1)
            beams = Beams(*(field[:, part] for field in running))
            penalty = self.rules.sampling.diversity_penalty * times_chosen[:, :, None]
            beams, ended, best_score, source_beams = self._continue(
                scores[:, part] - penalty, logprobs[:, part], beams, going=going[:, part], length=length
            )
            counted = going[:, part].expand_as(beams.score).to(scores.dtype)
            times_chosen.scatter_add_(2, beams.tokens[..., length], counted)
            groups.append((beams, ended, best_score, source_beams))
        running_parts, ended_parts, score_parts, source_parts = zip(*groups)
        running, ended = (
            Beams(*(torch.cat(fields, dim=1) for fields in zip(*parts, strict=True)))
            for parts in (running_parts, ended_parts)
        )
        best_score = torch.cat(score_parts, dim=1)  # (N, G, 1)
        source_beams = torch.cat(source_parts, dim=1)  # (N, G, K), within the group
        first_rows = torch.arange(shape[0] * shape[1], device=logits.device).view(*shape[:2], 1) * self.beams
        return running, finished.join(ended).best(self.beams), best_score, (first_rows + source_beams).flatten()

    def _processed(self, logprobs: Tensor, sequences: Tensor) -> Tensor:
        """Log-probabilities (R, V) after the processors; transformers also applies them to log-probabilities."""
        rules, sampling = self.rules, self.rules.sampling
        scores = logprobs.clone()
        if sampling.repetition_penalty != 1:
            scores = penalise_repetition(scores, sequences, sampling.repetition_penalty)
        lengths = torch.full_like(sequences[:, 0], sequences.shape[1])
        return ban(
            scores, NEVER, sequences, sampling=sampling, lengths=lengths, banned=rules.banned, end_id=rules.end_id
        )

    def _continue(
        self, scores: Tensor, logprobs: Tensor, beams: Beams, going: Tensor, length: int
    ) -> tuple[Beams, Beams, Tensor, Tensor]:
        """Continue the beams of one group by one token.

        scores, logprobs: (N, 1, K, V).
        Returns the K best running beams, the finished beams (with a score of -inf if they do not count), the best
        score (N, 1, 1) of a continuation, and the beam (N, 1, K) that each running beam continues.
        The 2 K best continuations are considered, so that K running beams remain even if K of them end.
        """
        vocabulary = scores.shape[-1]
        scores = (scores + beams.score[..., None]).flatten(2)  # (N, 1, K * V)
        top = scores.topk(2 * self.beams, dim=-1)
        origin, token = top.indices // vocabulary, top.indices % vocabulary  # (N, 1, 2 K)
        candidates = beams.take(origin)
        candidates.tokens[..., length] = token
        logprob = candidates.logprob + logprobs.flatten(2).gather(-1, top.indices)
        candidates = candidates._replace(score=top.values, logprob=logprob, length=candidates.length + 1)
        ends = token == self.rules.end_id
        continuing = top.values.masked_fill(ends, NEVER).topk(self.beams, dim=-1)
        running = candidates.take(continuing.indices)._replace(score=continuing.values)
        normaliser = (length + 1 - len(self.rules.prefix)) ** self.rules.sampling.length_penalty
        counts = ends & going & (torch.arange(2 * self.beams, device=ends.device) < self.beams)
        ended = candidates._replace(score=(top.values / normaliser).masked_fill(~counts, NEVER))
        best_score = (top if self.groups > 1 else continuing).values[..., :1]
        return running, ended, best_score, origin.gather(-1, continuing.indices)

    def _finish_at_limit(self, running: Beams, going: Tensor) -> Beams:
        """The running beams that the length limit stopped, as finished beams whose end token was not chosen."""
        normaliser = (self.rules.max_length - len(self.rules.prefix)) ** self.rules.sampling.length_penalty
        return running._replace(
            score=(running.score / normaliser).masked_fill(~going, NEVER),
            length=running.length + 1,
            forced=torch.ones_like(running.forced),
        )

    def _collect(self, finished: Beams) -> list[list[Decoded]]:
        """The best captions of each picture, of all its groups."""
        in_one_group = Beams(*(field.flatten(1, 2)[:, None] for field in finished))
        best = in_one_group.best(self.rules.sampling.num_captions)
        fields = (best.tokens, best.length, best.logprob, best.forced)
        pictures = []
        for picture in zip(*(field[:, 0].tolist() for field in fields), strict=True):
            captions = zip(*picture, strict=True)
            pictures.append(
                [Decoded(tokens[:length], logprob, forced) for tokens, length, logprob, forced in captions]
            )
        return pictures
