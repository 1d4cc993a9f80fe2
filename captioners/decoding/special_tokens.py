"""The special tokens of a transformers tokenizer: those that end a caption, and those that no caption or instruction may hold."""

import re
from collections.abc import Sequence
from typing import Any

Tokenizer = Any  # a PreTrainedTokenizerBase, of whose ids transformers' types say "str or int or lists of them"


def end_ids(tokenizer: Tokenizer, configured: int | Sequence[int] | None) -> list[int]:
    """The tokens that end a caption, as a generation config has them, in a list that starts with the tokenizer's own."""
    ids = [] if configured is None else [configured] if isinstance(configured, int) else list(configured)
    return sorted(ids, key=lambda token: token != tokenizer.eos_token_id)


class SpecialTokens:
    """The special tokens of a tokenizer, end tokens included.

    `ids`: all of them. `not_ends`: those that end no caption, the padding token and the start token first.
    """

    def __init__(self, tokenizer: Tokenizer, end_ids: Sequence[int]):
        added = {id: token.content for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.ids = {*tokenizer.all_special_ids, *end_ids, *added}
        candidates = (tokenizer.pad_token_id, tokenizer.bos_token_id, *sorted(self.ids))
        self.not_ends = [id for id in candidates if id is not None and id not in end_ids]
        names = sorted({*added.values(), *tokenizer.all_special_tokens}, key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, names)) or "(?!)")

    def blanked(self, text: str) -> str:
        """The text with a blank for each special token that it names: strangers may have written it."""
        return self._names.sub(" ", text)
