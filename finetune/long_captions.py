"""Captions of more tokens than the context: whole sentences that fit, whole words, or tokens as open_clip cuts them."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate

import regex

from diversity.sentences import joined, sentences
from diversity.tokens import units

CONTEXTS = (77, 128, 256)  # of the paper's captioners, the CLS token included
OFTEN = 0.2                # from this share of captions over the context on, it is said before the first step
HELD = 0.99                # a context fits a set of which it holds this share
BAR = 40                   # characters of the histogram's longest bar


class CaptionFitter:
    """Token ids of captions, none longer than `limit`; `mode` says what becomes of those that are.

    sentence: a run of whole consecutive sentences, from a sentence that the draw chooses on, as many as fit; where not one
    fits, as `word`. word: the first words that fit, without an end token, because nothing ends there. token: the first tokens,
    and an end token, as open_clip has it, a part of a character's among them. Of a word that is too long, whole characters stay.
    """

    def __init__(self, encode: Callable[[str], list[int]], limit: int, mode: str):
        self.encode, self.limit, self.mode = encode, limit, mode
        self._runs = lru_cache(2**14)(self._all_runs)

    def __call__(self, caption: str, draw: int) -> list[int]:
        """The caption's ids, from the start token on."""
        ids = self.encode(caption)
        if len(ids) <= self.limit:
            return ids
        if self.mode == "token":
            return [*ids[:self.limit - 1], ids[-1]]
        if self.mode == "sentence" and (runs := self._runs(caption)):
            run = runs[draw % len(runs)]
            while run:
                if len(ids := self.encode(joined(run))) <= self.limit:
                    return ids
                run = run[:-1]  # a tokenizer may need more tokens for sentences together than one by one
        return self._first_words(caption)

    def _all_runs(self, caption: str) -> list[list[str]]:
        """From each sentence that fits on, as many as fit; each sentence is tokenised once."""
        parts, runs, last = sentences(caption), [], 0
        ends = [0, *accumulate(len(self.encode(part)) - 2 for part in parts)]  # tokens up to each sentence, start and end aside
        for first in range(len(parts)):
            while last < len(parts) and ends[last + 1] - ends[first] + 2 <= self.limit:
                last += 1
            if last > first:
                runs.append(parts[first:last])
            last = max(last, first + 1)
        return runs

    def _first_words(self, caption: str) -> list[int]:
        """The first words, of the first word the first characters, and of a character that is too long its first tokens."""
        return (self._longest(units(caption)) or self._longest(regex.findall(r"\X", caption[:8 * self.limit]))
                or self.encode(caption)[:self.limit])

    def _longest(self, parts: Sequence[str]) -> list[int]:
        """The ids of as many first parts as fit, without the end token; none where the first does not."""
        fitting, found, over = 0, [], len(parts)  # so many fit, their ids, so many do not
        while over - fitting > 1:
            middle = (fitting + over) // 2
            ids = self.encode("".join(parts[:middle]))[:-1]
            if len(ids) <= self.limit:
                fitting, found = middle, ids
            else:
                over = middle
        return found


def length_warning(lengths: Sequence[int], limit: int) -> str:
    """What to tell of captions of so many tokens, if more than a fifth are over the limit: how many, how long, what would fit."""
    over = sum(length > limit for length in lengths) / len(lengths)
    if over <= OFTEN:
        return ""
    edges = [0, *(context - 1 for context in CONTEXTS), max(lengths)]
    edges = sorted({edge for edge in edges if edge <= max(lengths)} | {limit})
    lines = [f"{over:.0%} of the captions have more than the context's {limit} tokens:"]
    for low, high in zip(edges, edges[1:]):
        share = sum(low < length <= high for length in lengths) / len(lengths)
        lines.append(f"  {low + 1:4} to {high:4} tokens {share:4.0%} {'█' * round(BAR * share)}")
    fitting = [context for context in CONTEXTS if sum(length < context for length in lengths) >= HELD * len(lengths)]
    lines.append(f"a context of {fitting[0]} would hold {HELD:.0%} of them" if fitting
                 else f"no context up to {CONTEXTS[-1]} would hold {HELD:.0%} of them")
    return "\n".join(lines)
