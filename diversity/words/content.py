"""Find the words of captions that say something about a picture."""

from collections.abc import Sequence

from diversity.words.tokens import words

# Words that say nothing about a picture; numbers and positions ("two", "behind") are not among these.
_FUNCTION_WORDS = frozenset(
    """
a an the this that these those some any each every other another such it its it's he she they them his him her
their theirs we our us you your i my me who whom whose which what there here of in on at to from into onto with
without by for as and or but nor so if while when where than then is are was were be been being am has have had
having do does did doing can could will would may might must shall should not no very too also just only all both
more most few many much several
""".split()
)


def content_words(captions: Sequence[str]) -> frozenset[str]:
    """Return the different words of some captions, without English function words."""
    return frozenset(words("\n".join(captions))) - _FUNCTION_WORDS
