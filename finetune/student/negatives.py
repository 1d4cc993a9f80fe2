"""The hard negatives of a record: captions that are false of its picture, in columns of their own."""

import re

from imagetext.sample import Record


def hard_negatives(record: Record, pattern: str | None, *texts: str) -> list[list[str]]:
    """The negatives in each column whose name begins as the pattern says; columns without any are left out.

    A text that is blank, or a caption of the record too, is none; `texts` are captions that the record does not tell of.
    """
    columns = {name: of for name, of in record.columns.items() if is_negative(name, pattern)}
    captions = [of for name, of in record.syn_text.items() if name not in columns]
    true = {_plain(text) for of in (texts, record.captions, *captions) for text in of} | {""} if columns else set()
    left = ([text for text in of if _plain(text) not in true] for of in columns.values())
    return [of for of in left if of]


def is_negative(column: str, pattern: str | None) -> bool:
    """Whether a column of this name holds negatives."""
    return pattern is not None and bool(re.match(pattern, column))


def _plain(text: str) -> str:
    """The text by which two are told apart: without capitals, and with single blanks."""
    return " ".join(text.casefold().split())
