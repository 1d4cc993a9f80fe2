"""English words for colours and numbers, in the forms that occur in captions."""

import re
from collections.abc import Iterable

_SHADES = {
    "red": "crimson scarlet maroon burgundy reddish ruby",
    "orange": "orangish",
    "yellow": "yellowish",
    "green": "greenish emerald",
    "blue": "navy azure bluish cobalt indigo",
    "purple": "violet lavender magenta purplish mauve lilac",
    "pink": "pinkish fuchsia",
    "brown": "brownish",
    "black": "",
    "white": "whitish",
    "grey": "gray greyish grayish",
    "beige": "",
    "turquoise": "teal cyan aqua",
    "golden": "gold",
    "silver": "silvery",
}
# Every shade, and the colour that it counts as.
COLOURS = {word: colour for colour, shades in _SHADES.items() for word in (colour, *shades.split())}
# Words for a picture in black, white and grey only.
NO_COLOURS = frozenset("monochrome monochromatic bw b&w greyscale grayscale".split())

UNITS = {
    word: number
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen".split()
    )
}
TENS = {
    word: 10 * number for number, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)
}
TIMES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 1_000_000}
# Words that imply a number without being a numeral: "a couple", "the second".
AS_MUCH = {
    word: number
    for number, words in {
        2: "pair pairs couple couples both twin twins duo double second two-tone",
        3: "trio triple triplets third",
        4: "quartet fourth",
        5: "fifth",
        12: "dozen dozens",
    }.items()
    for word in words.split()
}
_NUMBER = re.compile(r"\d+(?:,\d{3})*+(?:\.\d+)?|[a-z&]+")


def numbers_in(text: str) -> list[str]:
    """The numbers in a lower-case text, written in digits: 2 for "two", 21 for "twenty-one", 1200 for "1,200"."""
    numbers: list[str] = []
    value: int | None = None  # of a number in words that the next word may continue, as in "twenty one"
    for word in (*_NUMBER.findall(text), ""):
        if value is not None and word in TIMES:
            value *= TIMES[word]
            continue
        if value is not None and value % 10 == 0 and 20 <= value < 100 and 0 < UNITS.get(word, 0) < 10:
            value += UNITS[word]
            continue
        if value is not None:
            numbers.append(str(value))
        value = UNITS.get(word, TENS.get(word))
        if word[:1].isdigit():
            numbers.append(word.replace(",", "").lstrip("0") or "0")
    return numbers


def colours_in(words: Iterable[str]) -> set[str]:
    """The colours that lower-case words name; all shades of a colour count as that colour."""
    return {COLOURS[word] for word in words if word in COLOURS}
