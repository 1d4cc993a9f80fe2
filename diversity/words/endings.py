"""Find captions that are too short, that end where no sentence can end, or that misplace an article."""

import re
from collections.abc import Sequence

MIN_WORDS = 3
LONG_ENOUGH = 12  # letters of one or two words that are enough in languages other than English

# For each language, words that cannot end a sentence, and then other common words. A caption is in the languages in
# which most of its words are common. People end sentences with "on", "her" and "that", "mit" and "an" ("sieht sich
# etwas an"), "avec" and "est", so these are not among the words that cannot. Where no word tells the language, only
# words count that can end a sentence in no language.
LANGUAGES = {
    name: tuple(frozenset(part.split()) for part in parts)
    for name, parts in {
        "en": (
            "a an the and or but of with at from to into onto than his its their my your our is are was",
            "in on for by her that which who while near next up down out top front some very has man woman men women "
            "people two person boy girl child dog cat standing sitting wearing holding white black red blue green "
            "photo picture image",
        ),
        "de": (
            "eine einem einen einer eines der die das dem den des und oder am im beim vom zum zur von neben in "
            "während",
            "ein mit auf an aus vor zu ist sich sind zwei mann frau männer frauen menschen leute kind kinder junge "
            "mädchen hund steht stehen sitzt sitzen schauen sieht über bei durch nach hat",
        ),
        "fr": (
            "un une de des du le la les et ou à au aux en dans sur d'un d'une qui que pour par tandis sa ses",
            "est sont a ont avec se trois enfants personnes homme femme hommes femmes deux devant chien son dont "
            "fille garçon",
        ),
        "es": (
            "un una el la los las de del al con en y que su sus por para",
            "es está están hombre mujer dos sobre se perro lo",
        ),
        "it": (
            "un una uno il lo la gli le di del della dei con e che in nel nella sul sulla da al alla per",
            "è sono uomo donna due si cane",
        ),
        "pt": (
            "um uma o os a as de do da dos das com e em no na que ao para",
            "é está são homem mulher dois duas cão sobre",
        ),
        "cs": (
            "na v ve a s z ze do u k po za přes i zatímco který která které",
            "se si je jsou má mají muž muži žena ženy lidé lidí dítě děti dva dvě tři kteří stojí sedí hraje",
        ),
        "nl": ("een de van en naar", "het op met in is aan die man vrouw twee mensen hond bij zit staat"),
        "ru": (
            "и в во на с со у к от из за под над для или",
            "стоит сидит он она это мужчина женщина люди человек собака",
        ),
        "hi": ("एक और का", "है हैं में के की ने पर से को रहा रही रहे"),
        "zh": ("", "的 一 个 上 着 是 有 人 在 和"),
        "ja": ("を", "が は の に て い る た と で す"),
    }.items()
}
_COMMON_IN = {
    word: [name for name, parts in LANGUAGES.items() if word in parts[0] | parts[1]]
    for word in frozenset().union(*(part for parts in LANGUAGES.values() for part in parts))
}
_ENGLISH = ("en",)


def languages_of(caption_words: Sequence[str]) -> list[str]:
    """Return the languages in which most of the words are common; [] where no word is common in any."""
    counts: dict[str, int] = {}
    for word in caption_words:
        for name in _COMMON_IN.get(word) or (_ENGLISH if word.endswith("ing") else ()):
            counts[name] = counts.get(name, 0) + 1
    largest = max(counts.values(), default=0)
    return [name for name, count in counts.items() if count == largest]


def is_short(caption_words: Sequence[str]) -> bool:
    """Return whether there are too few words; in languages other than English one or two long words are enough."""
    letters = sum(len(word) for word in set(caption_words) if not word.isdecimal())
    return len(caption_words) < MIN_WORDS and ("en" in languages_of(caption_words) or letters < LONG_ENOUGH)


HANGING_MARKS = (*",;:-–—(&/", *"、，：；（「『،؛")
HANGING = frozenset().union(*(ends for ends, _ in LANGUAGES.values()))
# Words that can end a sentence in some other language; "at" is a horse in Turkish.
# Single letters name things in all of them, as in "1/200 s" and "vitamin K".
_ELSEWHERE = frozenset("a an and at but den die e em his in k la les my or o s su than v y z".split())
LYING = frozenset("sitting standing lying laying leaning".split())
_OPEN_END = re.compile(rf"\b(?:(?:{'|'.join(LYING)}) on|in)\Z")  # cannot end an English caption without a full stop
# Words that can end an English sentence with a word of _STRANDING.
_STRANDED = frozenset("of with at from to into is are".split())
_STRANDING = frozenset("that which who whom what where to being he she they i you we".split())
# Clauses after which a preposition, or in a question "is", may end an English text without a mark, too. The first has
# a subject of its own; the second also stands without "that", as in "the bench he sits on".
_PRONOUN = "(?:he|she|they|i|you|we)"
_WITH_SUBJECT = re.compile(
    r"\b(?:that|which|whom?|(what|where))"
    rf" (?:an?|the|his|her|its|their|my|your|our|two|people|it|{_PRONOUN}) "
)
_WITHOUT_THAT = re.compile(
    r"\b(?!(?:as|while|and|or|but|when|because|so|if|before|after|until|since|then|here|there|says?|images?|pictures?"
    rf"|photos?)\b)[a-z]+ (?:{_PRONOUN}|everyone|everybody|nobody)"
    r"(?: (?!(?:an?|the|his|her|its|their|my|your|our|this|some|two|and)\b)[\w']+){1,4}\Z"
)
_AS_IT_IS = re.compile(rf"\b(?:what(?:ever)?|where(?:ver)?|who(?:ever)?|how(?: \w+)?|way) (?:it|{_PRONOUN}) \w+\Z")
_LEFT_BEHIND = frozenset("of with at from to into in on".split())
# People may end a sentence of so many words with a comma instead of a full stop: one in a thousand German captions of
# Multi30k.
A_SENTENCE = 6


def ends_hanging(caption: str, caption_words: Sequence[str]) -> bool:
    """Return whether the last mark or the last word of a caption cannot end a sentence in its language."""
    text = caption.rstrip()
    if text.endswith(HANGING_MARKS):
        return not is_sentence_before_comma(text, len(caption_words))
    last, before = caption_words[-1], caption_words[:-1]
    if last not in HANGING and last != "on":
        return False
    languages = languages_of(before)
    if _may_end_english(text.lower(), before, last):
        return False
    if "en" in languages and _OPEN_END.search(text.lower()):
        return True
    if last not in HANGING:
        return False
    if not any(last in LANGUAGES[name][0] for name in languages) and (languages or last in _ELSEWHERE):
        return False
    if _ends_with_name(text, last):
        return False
    is_stranded = not _STRANDING.isdisjoint(before) or before[-2:-1] == ["to"]  # "the man I came with", "to live for"
    return not ("en" in languages and last in _STRANDED and text[-1] in ".!?" and is_stranded)


def is_sentence_before_comma(text: str, length: int) -> bool:
    """Return whether a text of so many words ends with a comma instead of a full stop, as people's sentences may."""
    return text.endswith(",") and text[0].isupper() and length >= A_SENTENCE


def _may_end_english(text: str, before: Sequence[str], last: str) -> bool:
    """Return whether a text in lower case may end in an English preposition or in "is", without a mark."""
    clause = _WITH_SUBJECT.search(" ".join(before))
    if last in ("is", "are", "was"):
        return clause is not None and clause[1] is not None or _AS_IT_IS.search(text) is not None
    return last in _LEFT_BEHIND and (clause or _WITHOUT_THAT.search(text)) is not None


def _ends_with_name(text: str, last: str) -> bool:
    """Return whether the last word is a name, as in "gate A", "an OR" or "the band The The", or ends a quotation."""
    if len(text) < 2 * len(last) or text[-1] in '"”»' and not text[-2].isspace():
        return True
    text = text.rstrip(" .!?\"'”’)")
    before, name = text[: -len(last)], text[-len(last) :]
    if name.isupper():
        return not text.isupper()
    # In titles, all words of more than three letters have a capital, and a sentence begins after a mark.
    is_title = not any(word.islower() and len(word) > 3 for word in before.split())
    return name[0].isupper() and not is_title and before.rstrip()[-1:].isalnum()


# For English. A capital "A" is excluded, because it may be a name, as in "A and B".
_BROKEN = re.compile(
    r"\b(?:an?|[Tt]he)\s++(?:(?:and|or)\s++(\w++)|(?:of|with|is|are|was|from)\b(?!-)"
    r"|(?:at|on|in)\s++(?:an?|the|his|her|its|their|top|front)\b)"
)


def broken(caption: str, caption_words: Sequence[str]) -> int:
    """Count the words where an article is before a word that cannot follow it.

    There are none in "vitamin a and vitamin c" and in "the on button".
    """
    faults = sum(len(fault[0].split()) for fault in _BROKEN.finditer(caption) if not _is_name(caption, fault))
    return faults if faults and "en" in languages_of(caption_words) else 0


def _is_name(caption: str, fault: re.Match[str]) -> bool:
    """Return whether what looks like an article is a name, as in "vitamin a and vitamin c" or "the a and b keys"."""
    other = fault[1]
    if not other:
        return False
    before = caption[max(fault.start() - len(other) - 1, 0) : fault.start()].split()
    return other in before or len(other) == 1 and other not in "aAI"
