"""Captions of more tokens than the context: whole sentences that fit, whole words, or tokens as open_clip cuts them."""

from collections.abc import Callable, Sequence
from functools import lru_cache

from diversity.sentences import sentences

CONTEXTS = (77, 128, 256)  # of the paper's captioners, the CLS token included
OFTEN = 0.2                # from this share of captions over the context on, it is said before the first step
HELD = 0.99                # a context fits a set of which it holds this share
BAR = 40                   # characters of the histogram's longest bar


class CaptionFitter:
    """Token ids of captions, none longer than `limit`; `mode` says what becomes of those that are.

    sentence: a run of whole consecutive sentences, from a sentence that the draw chooses on, as many as fit; where not one
    fits, as `word`. word: the first words that fit, without an end token, because nothing ends there. token: the first tokens,
    and an end token, as open_clip has it.
    """

    def __init__(self, encode: Callable[[str], list[int]], limit: int, mode: str):
        self.encode, self.limit, self.mode = encode, limit, mode
        self._runs = lru_cache(2**16)(self._all_runs)

    def __call__(self, caption: str, draw: int) -> list[int]:
        """The caption's ids, from the start token on."""
        ids = self.encode(caption)
        if len(ids) <= self.limit:
            return ids
        if self.mode == "token":
            return [*ids[:self.limit - 1], ids[-1]]
        if self.mode == "sentence" and (runs := self._runs(caption)):
            return self.encode(runs[draw % len(runs)])
        return self._first_words(caption)

    def _all_runs(self, caption: str) -> list[str]:
        """From each sentence that fits on, as many as fit."""
        parts, runs = sentences(caption), []
        for first in range(len(parts)):
            fitting = [last for last in range(first + 1, len(parts) + 1) if self._fits(" ".join(parts[first:last]))]
            if fitting:
                runs.append(" ".join(parts[first:max(fitting)]))
        return runs

    def _fits(self, text: str) -> bool:
        return len(self.encode(text)) <= self.limit

    def _first_words(self, caption: str) -> list[int]:
        words = caption.split()
        low, high = 0, len(words)  # so many fit, so many do not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if len(self.encode(" ".join(words[:middle]))) - 1 <= self.limit else (low, middle)
        return self.encode(" ".join(words[:low]))[:-1] if low else self.encode(caption)[:self.limit]


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
