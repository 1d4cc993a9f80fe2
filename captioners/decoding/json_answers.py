"""JSON by construction: which tokens may come next in an answer of a schema.

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

MOST_HELD = 4096  # captions whose place in the grammar is kept; that of others is found again from their tokens


def json_words(tokenizer: PreTrainedTokenizerBase, vocabulary: int, end_id: int) -> Any:
    """The vocabulary as llguidance has it, which takes a second; ValueError where it is missing, or cannot read the tokenizer."""
    if LLMatcher is None:
        raise ValueError(
            "needs llguidance, by which a local model can write nothing else: pip install 'capsmith[json]'"
        )
    return attempt("its tokenizer cannot be read by llguidance", from_tokenizer, tokenizer, vocabulary, end_id)


class JsonTokens:
    """The tokens that may follow in JSON of a schema, of any object where it is "": a function of a caption's own tokens.

    words: the vocabulary, by `json_words`. Raises ValueError where the schema is none.
    """

    def __init__(self, schema: str, words: Any, end_id: int):
        # no blanks but one after a comma or colon: a model could go on with blanks for ever
        compact = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        schema = schema or '{"type": "object"}'
        grammar = attempt("json_schema", LLMatcher.grammar_from_json_schema, schema, defaults=compact)
        self.begun, self.end_id = LLMatcher(words, grammar, log_level=0), end_id
        if self.begun.is_error():
            raise ValueError(f"json_schema: {self.begun.get_error().strip()}")
        # by picture and caption: its matcher, and how many tokens that has seen
        self.held: dict[tuple[int, int], tuple[Any, int]] = {}

    def masked(self, flight: Flight, logits: Tensor) -> Tensor:
        """The logits (R, V), without those of tokens that cannot come next."""
        allowed = torch.zeros(logits.shape, dtype=torch.bool)
        fields = (flight.picture, flight.caption, flight.tokens, flight.length, flight.alive)
        for row, (picture, caption, tokens, length, alive) in enumerate(zip(*(field.tolist() for field in fields))):
            if not alive:
                allowed[row, self.end_id] = True
                continue
            # the start token is none of the answer's
            matcher, seen = self.held.pop((picture, caption), None) or (self.begun.deep_copy(), 1)
            matcher.consume_tokens(tokens[len(tokens) - length + seen :])
            allowed[row] = torch.frombuffer(bytearray(matcher.compute_logit_bias()), dtype=torch.uint8).bool()
            self.held[picture, caption] = matcher, length
        while len(self.held) > MOST_HELD:
            del self.held[next(iter(self.held))]
        logits = logits.masked_fill(~allowed.to(logits.device), float("-inf"))
        # where no token of the model's can follow, the answer ends
        logits[:, self.end_id].masked_fill_((logits == float("-inf")).all(-1), 0)
        return logits
