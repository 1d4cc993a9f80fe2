"""Where sentences end, in the scripts that captions are written in."""

import re
from collections.abc import Sequence

# A full stop after these ends no sentence; after the second group it does where a capital follows.
_TITLES = frozenset(
    "st mr mrs ms dr mt ft prof rev gen col lt sgt capt gov sen rep no nos vs approx fig vol ave blvd rd "
    "e.g i.e u.s u.k u.s.a nr bzw ca z.b d.h mme č např tzv".split()
)
_LAST_WORDS = frozenset("etc jr sr inc ltd co corp a.m p.m b.c a.d usw".split())
_LONGEST = max(map(len, _TITLES | _LAST_WORDS))
_CLOSING = "\"'”’»)]」』）】"
# Chinese, Japanese, Hindi, Urdu, Arabic, Armenian, Ethiopic, Khmer and Burmese marks end a sentence whatever follows, Latin ones
# where white space follows, or a letter of a script without blanks. Each run of marks is looked at once.
_FULL_WIDTH = "。！？｡"  # which hold the blank that follows
_ALWAYS = _FULL_WIDTH + "।॥۔؟։።፧។៕။"
_CLOSED = rf"[{re.escape(_CLOSING)}]*+"
_STOP = re.compile(
    rf"(?<![.!?…{_ALWAYS}])(?:[.!?…]*+[{_ALWAYS}][.!?…{_ALWAYS}]*+{_CLOSED}"
    rf"|[.!?…]++{_CLOSED}(?=\s|$|(?<![.])[\u3040-\u30ff\u4e00-\u9fff]))"
)
_MARK = re.compile(f"[.!?…{_ALWAYS}]")
_NEXT = re.compile(r"\s*+(\S)")


def sentences(text: str) -> list[str]:
    """The sentences of a text, stripped; the last may lack its end. "St. Louis", "3.5" and "U.S. flag" end none."""
    if not _MARK.search(text, 0, len(text) - 1):
        return [text.strip()] if text.strip() else []  # many captions: a mark at the end or none
    parts, start = [], 0
    for stop in _STOP.finditer(text):
        if stop[0].rstrip(_CLOSING) == "." and _abbreviates(text, start, stop):
            continue
        parts.append(text[start : stop.end()].strip())
        start = stop.end()
    return [sentence for sentence in (*parts, text[start:].strip()) if sentence]


def joined(parts: Sequence[str]) -> str:
    """Sentences as one text, with blanks between them but after full-width marks."""
    return "".join(part if part.rstrip(_CLOSING)[-1:] in _FULL_WIDTH else f"{part} " for part in parts).rstrip()


def is_finished(sentence: str) -> bool:
    """Whether a sentence has its end."""
    return sentence.rstrip(_CLOSING).endswith((*".!?…", *_ALWAYS))


def _abbreviates(text: str, start: int, stop: re.Match[str]) -> bool:
    """Whether the full stop belongs to the word before it, of the sentence from `start` on."""
    following = _NEXT.match(text, stop.end())
    if following is None:
        return False  # most captions: the last full stop
    before = text[max(start, stop.start() - _LONGEST - 4) : stop.start()]  # the word, and marks before it
    last = before.rsplit(maxsplit=1)[-1].strip("\"'“‘„«’([") if before.strip() else ""
    word = last.lower()
    if word in _TITLES or (len(last) == 1 and last.isupper() and last not in ("A", "I")):
        return True
    return word in _LAST_WORDS and following[1].islower()
