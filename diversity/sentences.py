"""Where the sentences of a caption end."""

import re

# A full stop after these ends no sentence; after the second group it does where a capital follows.
_TITLES = frozenset("st mr mrs ms dr mt ft prof rev gen col lt sgt capt gov sen rep no nos vs approx fig vol ave blvd rd e.g i.e "
                    "u.s u.k u.s.a".split())
_LAST_WORDS = frozenset("etc jr sr inc ltd co corp a.m p.m b.c a.d".split())
_STOP = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s|$)")
_FINISHED = re.compile(_STOP.pattern + r"\Z")


def sentences(text: str) -> list[str]:
    """The sentences of a text, stripped; the last may lack its end. "St. Louis", "3.5" and "U.S. flag" end none."""
    found, start = [], 0
    for stop in _STOP.finditer(text):
        one_stop = stop[0].rstrip("\"'”’)]") == "."
        if one_stop and _abbreviates(text[start:stop.start()], text[stop.end():]):
            continue
        found.append(text[start:stop.end()].strip())
        start = stop.end()
    return [sentence for sentence in (*found, text[start:].strip()) if sentence]


def is_finished(sentence: str) -> bool:
    """Whether a sentence has its end."""
    return bool(_FINISHED.search(sentence))


def _abbreviates(before: str, after: str) -> bool:
    if not after.strip():
        return False  # most captions: the last full stop
    last = before.rsplit(maxsplit=1)[-1].strip("\"'“”‘’([") if before.strip() else ""
    word = last.lower()
    if word in _TITLES or (len(last) == 1 and last.isupper() and last not in ("A", "I")):
        return True
    return word in _LAST_WORDS and after.strip()[:1].islower()
