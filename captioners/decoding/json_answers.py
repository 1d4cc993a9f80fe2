"""Answers that are valid JSON by construction: at each step, only tokens that the schema allows may come next.

Dimensions: R rows (captions in flight), V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from captioners.decoding.batch import Flight
from captioners.safe_reading import attempt

try:
    from llguidance import LLMatcher
    from llguidance.hf import from_tokenizer
except ImportError:
    LLMatcher: Any = None

MOST_MATCHERS = 4096  # captions whose matcher is kept; the matchers of others are rebuilt from their tokens


def json_words(tokenizer: PreTrainedTokenizerBase, vocabulary: int, end_id: int) -> Any:
    """Convert a tokenizer's vocabulary for llguidance, which takes about a second.

    Raises ValueError if llguidance is not installed, or cannot read the tokenizer.
    """
    if LLMatcher is None:
        raise ValueError("needs llguidance, which makes a local model write valid JSON: pip install 'capsmith[json]'")
    return attempt(
        "its tokenizer cannot be read by llguidance", from_tokenizer, tokenizer, n_vocab=vocabulary, eos_token=end_id
    )


class JsonTokens:
    """Masks the tokens that must not come next in an answer; the mask depends only on the caption's tokens.

    schema: a JSON schema; "" allows any JSON object. words: the vocabulary, from `json_words`.
    Raises ValueError if the schema is not valid.
    """

    def __init__(self, schema: str, words: Any, end_id: int):
        # only one blank, after a comma or colon, is allowed: otherwise a model could write blanks for ever
        compact = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        schema = schema or '{"type": "object"}'
        grammar = attempt("json_schema", LLMatcher.grammar_from_json_schema, schema, defaults=compact)
        self.initial_matcher, self.end_id = LLMatcher(words, grammar, log_level=0), end_id
        if self.initial_matcher.is_error():
            raise ValueError(f"json_schema: {self.initial_matcher.get_error().strip()}")
        # by (picture, caption): the matcher, and the number of tokens that it has consumed
        self.matchers: dict[tuple[int, int], tuple[Any, int]] = {}

    def masked(self, flight: Flight, logits: Tensor) -> Tensor:
        """The logits (R, V), with -inf for tokens that must not come next."""
        allowed = torch.zeros(logits.shape, dtype=torch.bool)
        fields = (flight.picture, flight.caption, flight.tokens, flight.length, flight.alive)
        for row, (picture, caption, tokens, length, alive) in enumerate(zip(*(field.tolist() for field in fields))):
            if not alive:
                allowed[row, self.end_id] = True
                continue
            # a new matcher skips one token, the start token, which is not part of the answer
            matcher, consumed = self.matchers.pop((picture, caption), None) or (self.initial_matcher.deep_copy(), 1)
            matcher.consume_tokens(tokens[len(tokens) - length + consumed :])
            allowed[row] = torch.frombuffer(bytearray(matcher.compute_logit_bias()), dtype=torch.uint8).bool()
            self.matchers[picture, caption] = matcher, length
        while len(self.matchers) > MOST_MATCHERS:
            del self.matchers[next(iter(self.matchers))]
        logits = logits.masked_fill(~allowed.to(logits.device), float("-inf"))
        # if no token of the model is allowed, the answer ends
        logits[:, self.end_id].masked_fill_((logits == float("-inf")).all(-1), 0)
        return logits
