"""Split texts into sentences, in the scripts in which captions are written."""

import re
from collections.abc import Sequence

# A full stop after these words does not end a sentence; after the second group it does if a capital letter follows.
_TITLES = frozenset(
    "st mr mrs ms dr mt ft prof rev gen col lt sgt capt gov sen rep no nos vs approx fig vol ave blvd rd "
    "e.g i.e u.s u.k u.s.a nr bzw ca z.b d.h mme č např tzv".split()
)
_LAST_WORDS = frozenset("etc jr sr inc ltd co corp a.m p.m b.c a.d usw".split())
_LONGEST = max(map(len, _TITLES | _LAST_WORDS))
_CLOSING_QUOTES = "\"'”’»"
_CLOSING = _CLOSING_QUOTES + ")]」』）】"
# Chinese, Japanese, Hindi, Urdu, Arabic, Armenian, Ethiopic, Khmer and Burmese marks end a sentence whatever follows.
# Latin marks end it if white space follows, or a letter of a script without blanks. Each run of marks is examined
# once.
_FULL_WIDTH = "。！？｡"  # no blank follows these marks
_ALWAYS = _FULL_WIDTH + "।॥۔؟։።፧។៕။"
_CLOSED = rf"[{re.escape(_CLOSING)}]*+"
_STOP = re.compile(
    rf"(?<![.!?…{_ALWAYS}])(?:[.!?…]*+[{_ALWAYS}][.!?…{_ALWAYS}]*+{_CLOSED}"
    rf"|[.!?…]++{_CLOSED}(?=\s|$|(?<![.])[\u3040-\u30ff\u4e00-\u9fff]))"
)
_MARK = re.compile(f"[.!?…{_ALWAYS}]")
_NEXT = re.compile(r"\s*+(\S)")


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, stripped; the last one may be unfinished.

    The full stops in "St. Louis", "3.5" and "U.S. flag" end no sentence, and neither does a mark in a quotation after
    which the sentence goes on.
    """
    if not _MARK.search(text, 0, len(text) - 1):  # a short cut for captions without a mark before their end
        return [text.strip()] if text.strip() else []
    parts, start = [], 0
    for stop in _STOP.finditer(text):
        if stop[0].rstrip(_CLOSING) == "." and _abbreviates(text, start, stop) or _is_quoted(text, stop):
            continue
        parts.append(text[start : stop.end()].strip())
        start = stop.end()
    return [sentence for sentence in (*parts, text[start:].strip()) if sentence]


def joined(parts: Sequence[str]) -> str:
    """Join sentences to one text, with blanks between them, except after full-width marks."""
    return "".join(part if part.rstrip(_CLOSING)[-1:] in _FULL_WIDTH else f"{part} " for part in parts).rstrip()


def is_finished(sentence: str) -> bool:
    """Return whether a sentence ends with a mark."""
    return sentence.rstrip(_CLOSING).endswith((*".!?…", *_ALWAYS))


def _is_quoted(text: str, stop: re.Match[str]) -> bool:
    """Return whether the mark ends a quotation within a sentence: 'A sign reads "Stop!" in red.'"""
    if stop[0][-1] not in _CLOSING_QUOTES:
        return False
    following = _NEXT.match(text, stop.end())
    return following is not None and following[1].islower()


def _abbreviates(text: str, start: int, stop: re.Match[str]) -> bool:
    """Return whether the full stop belongs to an abbreviation; the sentence begins at `start`."""
    following = _NEXT.match(text, stop.end())
    if following is None:
        return False  # the last full stop of the text
    before = text[max(start, stop.start() - _LONGEST - 4) : stop.start()]  # the word before, with marks before it
    last = before.rsplit(maxsplit=1)[-1].strip("\"'“‘„«’([") if before.strip() else ""
    word = last.lower()
    if word in _TITLES or (len(last) == 1 and last.isupper() and last not in ("A", "I")):
        return True
    return word in _LAST_WORDS and following[1].islower()
