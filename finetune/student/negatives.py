"""The hard negatives of a record: captions that are false of its picture, in separate columns."""

import re

from imagetext.sample import Record


def hard_negatives(record: Record, pattern: str | None, *texts: str) -> list[list[str]]:
    """Return the negatives of each column whose name the pattern matches from its start, without empty columns.

    A text that is blank or also a caption of the record is not a negative. `texts` are further captions of the record.
    """
    columns = {name: negatives for name, negatives in record.columns.items() if is_negative(name, pattern)}
    if not columns:
        return []
    synthetic = [captions for name, captions in record.syn_text.items() if name not in columns]
    true_texts = {_normalised(text) for captions in (texts, record.captions, *synthetic) for text in captions} | {""}
    false_texts = [[text for text in column if _normalised(text) not in true_texts] for column in columns.values()]
    return [column for column in false_texts if column]


def is_negative(column: str, pattern: str | None) -> bool:
    """Return whether a column of this name holds negatives."""
    return pattern is not None and bool(re.match(pattern, column))


def _normalised(text: str) -> str:
    """Return the text in lower case and with single blanks, to compare it with others."""
    return " ".join(text.casefold().split())
