"""Shortens captions that are longer than the context: to whole sentences, whole words, or tokens."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate

import regex

from diversity.words.sentences import joined, sentences
from diversity.words.tokens import units

CONTEXTS = (77, 128, 256)  # context lengths of the paper's captioners, including the CLS token
OFTEN = 0.2  # there is a warning if a larger share of the captions is longer than the context
HELD = 0.99  # share of a set's captions that must fit into a context that the warning recommends
BAR = 40  # characters of the histogram's longest bar


class CaptionFitter:
    """Turns captions into at most `limit` token ids; `mode` decides how longer captions are shortened.

    sentence: to consecutive whole sentences, as many as fit; the draw chooses the first. If no sentence fits, as
    `word`.
    word: to the first words that fit, without an end token, because the text does not end there.
    token: to the first tokens and an end token, as open_clip does.
    No mode cuts inside a character. A word that is too long is cut between characters, and tokens that hold only a
    part of a character are removed.
    """

    def __init__(self, encode: Callable[[str], list[int]], decode: Callable[[list[int]], str], limit: int, mode: str):
        self.encode, self.decode, self.limit, self.mode = encode, decode, limit, mode
        self._runs = lru_cache(2**14)(self._all_runs)

    def __call__(self, caption: str, draw: int) -> list[int]:
        """Return the caption's token ids, beginning with the start token; `draw` chooses the first sentence."""
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
                run = run[:-1]  # a tokenizer may need more tokens for sentences together than for each alone
        return self._first_words(caption)

    def _all_runs(self, caption: str) -> list[list[str]]:
        """Return, for each sentence that fits, the longest run from it on that fits; tokenises each sentence once."""
        parts, runs, last = sentences(caption), [], 0
        token_counts = [len(self.encode(part)) - 2 for part in parts]  # without start and end token
        ends = [0, *accumulate(token_counts)]
        for first in range(len(parts)):
            while last < len(parts) and ends[last + 1] - ends[first] + 2 <= self.limit:
                last += 1
            if last > first:
                runs.append(parts[first:last])
            last = max(last, first + 1)
        return runs

    def _first_tokens(self, ids: list[int]) -> list[int]:
        """Return the first tokens that leave room for an end token and end where a character ends."""
        text = self.decode(ids)
        characters = {*accumulate(map(len, regex.findall(r"\X", text)))}
        for ends in (characters, range(1, len(text))):  # a single character with many marks may be too long
            for count in range(self.limit - 1, 1, -1):
                part = self.decode(ids[:count])  # an incomplete character decodes to other text
                if len(part) in ends and text.startswith(part):
                    return ids[:count]
        return ids[:1]

    def _first_words(self, caption: str) -> list[int]:
        """Return the first words that fit; if none fits, the first characters; if none fits, the first code points."""
        characters = regex.findall(r"\X", caption[: 8 * self.limit])
        return (
            self._longest(units(caption))
            or self._longest(characters)
            or self._longest(caption[: self.limit])
            or self.encode(caption)[:1]
        )

    def _longest(self, parts: Sequence[str]) -> list[int]:
        """Return the ids of as many leading parts as fit, without an end token; [] if not even the first part fits."""
        fitting, too_many = 0, len(parts)  # a number of parts that fits, and one that does not
        fitting_ids: list[int] = []
        while too_many - fitting > 1:
            middle = (fitting + too_many) // 2
            ids = self.encode("".join(parts[:middle]))[:-1]
            if len(ids) <= self.limit:
                fitting, fitting_ids = middle, ids
            else:
                too_many = middle
        return fitting_ids


def length_warning(lengths: Sequence[int], limit: int) -> str:
    """Return a warning if more than a fifth of the captions are longer than the limit, otherwise "".

    It has a histogram of the lengths, and the context that would fit. lengths: numbers of tokens.
    """
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
    if fitting:
        lines.append(f"a context of {fitting[0]} would hold {HELD:.0%} of them")
    else:
        lines.append(f"no context up to {CONTEXTS[-1]} would hold {HELD:.0%} of them")
    return "\n".join(lines)
