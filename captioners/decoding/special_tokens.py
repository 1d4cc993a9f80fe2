"""Special tokens of a transformers tokenizer: those that end a caption, and those that no text may contain."""

import re
from collections.abc import Sequence
from typing import Any

Tokenizer = Any  # a PreTrainedTokenizerBase; transformers types its ids as "str or int or lists of them"


def end_ids(tokenizer: Tokenizer, configured: int | Sequence[int] | None) -> list[int]:
    """The tokens that end a caption, from a generation config's `eos_token_id`; the tokenizer's end token is first."""
    ids = [] if configured is None else [configured] if isinstance(configured, int) else list(configured)
    return sorted(ids, key=lambda token: token != tokenizer.eos_token_id)


class SpecialTokens:
    """The special tokens of a tokenizer, end tokens included.

    ids: all special tokens.
    not_ends: those that do not end a caption, the padding token and the start token first.
    """

    def __init__(self, tokenizer: Tokenizer, end_ids: Sequence[int]):
        added = {id: token.content for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.ids = {*tokenizer.all_special_ids, *end_ids, *added}
        candidates = (tokenizer.pad_token_id, tokenizer.bos_token_id, *sorted(self.ids))
        self.not_ends = [id for id in candidates if id is not None and id not in end_ids]
        names = sorted({*added.values(), *tokenizer.all_special_tokens}, key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, names)) or "(?!)")

    def blanked(self, text: str) -> str:
        """Replace the names of special tokens in a text that is not trusted by blanks."""
        return self._names.sub(" ", text)
