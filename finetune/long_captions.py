"""Captions of more tokens than the context: whole sentences that fit, whole words, or tokens, nearly as open_clip cuts them."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate

import regex

from diversity.words.sentences import joined, sentences
from diversity.words.tokens import units

CONTEXTS = (77, 128, 256)  # of the paper's captioners, the CLS token included
OFTEN = 0.2  # from this share of captions over the context on, it is said before the first step
HELD = 0.99  # a context fits a set of which it holds this share
BAR = 40  # characters of the histogram's longest bar


class CaptionFitter:
    """Token ids of captions, none longer than `limit`; `mode` says what becomes of those that are.

    sentence: a run of whole consecutive sentences, from a sentence that the draw chooses on, as many as fit; where not one
    fits, as `word`. word: the first words that fit, without an end token, because nothing ends there. token: the first tokens,
    and an end token, as open_clip has it. No mode cuts inside a character: of a word that is too long, whole characters
    stay, and tokens that would be a part of a character's go.
    """

    def __init__(self, encode: Callable[[str], list[int]], decode: Callable[[list[int]], str], limit: int, mode: str):
        self.encode, self.decode, self.limit, self.mode = encode, decode, limit, mode
        self._runs = lru_cache(2**14)(self._all_runs)

    def __call__(self, caption: str, draw: int) -> list[int]:
        """The caption's ids, from the start token on."""
        ids = self.encode(caption)
        if len(ids) <= self.limit:
            return ids
        if self.mode == "token":
            return [*self._first_tokens(ids), ids[-1]]
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
        ends = [
            0,
            *accumulate(len(self.encode(part)) - 2 for part in parts),
        ]  # tokens up to each sentence, start and end aside
        for first in range(len(parts)):
            while last < len(parts) and ends[last + 1] - ends[first] + 2 <= self.limit:
                last += 1
            if last > first:
                runs.append(parts[first:last])
            last = max(last, first + 1)
        return runs

    def _first_tokens(self, ids: list[int]) -> list[int]:
        """The first tokens that leave room for an end token, up to the last one that ends where a character does."""
        text = self.decode(ids)
        characters = {*accumulate(map(len, regex.findall(r"\X", text)))}
        for ends in (characters, range(1, len(text))):  # a character of many marks may itself be too long
            for count in range(self.limit - 1, 1, -1):
                part = self.decode(ids[:count])  # of a part of a character it is another text
                if len(part) in ends and text.startswith(part):
                    return ids[:count]
        return ids[:1]

    def _first_words(self, caption: str) -> list[int]:
        """The first words, of the first word the first characters, and of a character of many marks the first ones."""
        characters = regex.findall(r"\X", caption[: 8 * self.limit])
        return (
            self._longest(units(caption))
            or self._longest(characters)
            or self._longest(caption[: self.limit])
            or self.encode(caption)[:1]
        )

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
    lines.append(
        f"a context of {fitting[0]} would hold {HELD:.0%} of them"
        if fitting
        else f"no context up to {CONTEXTS[-1]} would hold {HELD:.0%} of them"
    )
    return "\n".join(lines)
