"""Facts that are true of a built-in picture, and facts that a caption states.

The precision of a caption is the share of its facts that are among the scene's `true_facts`. The recall of a picture's
captions is the share of the scene's `key_facts` that at least one of them states.
"""

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "black", "white")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")
BACKGROUNDS = ("grey", "sand", "sky", "mint")
NUMBERS = {"one": "1", "single": "1", "two": "2", "pair": "2", "three": "3", "four": "4"}
PLURALS = {shape: "crosses" if shape == "cross" else shape + "s" for shape in SHAPES}
NOUNS = {
    **{shape: shape for shape in SHAPES},
    **{plural: shape for shape, plural in PLURALS.items()},
    **dict.fromkeys(("shape", "shapes", "object", "objects", "thing", "things"), "object"),
}
RELATIONS = {
    "left of": ("left of", False),
    "right of": ("left of", True),  # both directions are the same fact: (name, whether the objects are swapped)
    "above": ("above", False),
    "below": ("above", True),
}
PLACES = {
    ("left", "top"): "upper left",
    ("centre", "top"): "top",
    ("right", "top"): "upper right",
    ("left", "middle"): "left",
    ("centre", "middle"): "centre",
    ("right", "middle"): "right",
    ("left", "bottom"): "lower left",
    ("centre", "bottom"): "bottom",
    ("right", "bottom"): "lower right",
}
MARGIN = 0.08  # how much further left or up an object must be, as a share of the picture's side
KINDS = ("colour", "shape", "count", "relation", "size", "texture", "background", "place")


class Fact(NamedTuple):
    """A statement about a picture, for example ("relation", "left of", "red circle", "blue square").

    `kind` is one of KINDS; `subject` and `other` are "colour shape", "shape", "colour object", "object" or "".
    """

    kind: str
    value: str
    subject: str = ""
    other: str = ""


# --- facts of a scene ----------------------------------------------------------------------------------------------


def is_scene(value: Any) -> bool:
    """Return whether a value describes a built-in picture; other sets have fields of the same names, too."""
    if not isinstance(value, Mapping) or value.get("background") not in BACKGROUNDS:
        return False
    objects = value.get("objects")
    return isinstance(objects, list) and all(map(_is_object, objects))


def _is_object(item: Any) -> bool:
    traits = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "texture": TEXTURES}
    return (
        isinstance(item, Mapping)
        and all(item.get(trait) in known for trait, known in traits.items())
        and all(isinstance(item.get(axis), int | float) and 0 <= item[axis] <= 1 for axis in ("x", "y"))
    )


def true_facts(scene: Mapping[str, Any]) -> frozenset[Fact]:
    """Return all facts about the scene that a caption can state and that are true."""
    objects = scene["objects"]
    facts = {Fact("background", scene["background"])}
    for item in objects:
        for name in _names(item):
            facts |= {
                Fact("size", item["size"], name),
                Fact("texture", item["texture"], name),
                Fact("place", place_of(item), name),
            }
        facts |= {
            Fact("shape", item["shape"]),
            Fact("colour", item["colour"], item["shape"]),
            Fact("colour", item["colour"], "object"),
        }
    counts = Counter(name for item in objects for name in _names(item))
    facts |= {Fact("count", str(count), name) for name, count in counts.items()}
    for item, other in itertools.permutations(objects, 2):
        for relation in _relations(item, other):
            facts |= {
                Fact("relation", relation, subject=name, other=other_name)
                for name in _names(item)
                for other_name in _names(other)
            }
    return frozenset(facts)


def key_facts(scene: Mapping[str, Any]) -> frozenset[Fact]:
    """Return the facts that recall counts: all shapes and colours, the number of objects, and a relation of two."""
    objects = scene["objects"]
    facts = {Fact("shape", item["shape"]) for item in objects}
    facts |= {Fact("colour", item["colour"], item["shape"]) for item in objects}
    kinds = groups(scene)
    name = full_name(objects[0]) if len(kinds) == 1 else "object"
    facts.add(Fact("count", str(len(objects)), name))
    if (pair := related_pair(kinds)) is not None:
        item, other = pair
        value, first, second = main_relation(item, other)
        facts.add(Fact("relation", value, subject=full_name(first), other=full_name(second)))
    return frozenset(facts)


def full_name(item: Mapping[str, Any]) -> str:
    return f"{item['colour']} {item['shape']}"


def _names(item: Mapping[str, Any]) -> tuple[str, ...]:
    return full_name(item), item["shape"], f"{item['colour']} object", "object"


def _relations(item: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The relations that hold by at least MARGIN."""
    relations = []
    if other["x"] - item["x"] > MARGIN:
        relations.append("left of")
    if other["y"] - item["y"] > MARGIN:
        relations.append("above")
    return relations


def main_relation(item: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, Mapping, Mapping]:
    """The relation of two objects along the axis on which they are further apart, and the objects in its order."""
    across, down = other["x"] - item["x"], other["y"] - item["y"]
    if abs(across) >= abs(down):
        return ("left of", item, other) if across > 0 else ("left of", other, item)
    return ("above", item, other) if down > 0 else ("above", other, item)


def place_of(item: Mapping[str, Any]) -> str:
    column = ("left", "centre", "right")[min(2, int(item["x"] * 3))]
    row = ("top", "middle", "bottom")[min(2, int(item["y"] * 3))]
    return PLACES[column, row]


def groups(scene: Mapping[str, Any]) -> list[list[Mapping[str, Any]]]:
    """The objects, grouped by colour and shape, in the order in which people name them: from the upper left."""
    kinds: dict[str, list] = {}
    for item in sorted(scene["objects"], key=lambda item: item["x"] + item["y"]):
        kinds.setdefault(full_name(item), []).append(item)
    return list(kinds.values())


def related_pair(kinds: list[list[Mapping[str, Any]]]) -> tuple[Mapping, Mapping] | None:
    """The first two objects that are the only ones of their colour and shape; None if there are fewer than two."""
    unique = [group[0] for group in kinds if len(group) == 1]
    return (unique[0], unique[1]) if len(unique) > 1 else None


# --- facts of a caption --------------------------------------------------------------------------------------------

_WORD = re.compile(r"[a-z]+|[,.;:]")
_PLACE = re.compile(r"\bat the (upper left|upper right|lower left|lower right|top|bottom|left|right|centre)\b(?! of)")
_BACKGROUND = re.compile(rf"\b(?:on|over|against) (?:a |an |the )?(?:plain )?({'|'.join(BACKGROUNDS)})\b")


def facts_of(caption: str) -> frozenset[Fact]:
    """Return the facts that a caption states, true or false. Words outside the vocabulary state nothing."""
    text = " ".join(_WORD.findall(caption.lower()))
    facts = {Fact("background", name) for name in _BACKGROUND.findall(text)}
    text = _BACKGROUND.sub(" ; ", text)
    for sentence in text.split(" . "):
        phrases = _noun_phrases(sentence)
        for phrase in phrases:
            facts |= _phrase_facts(phrase)
        for phrase, other in itertools.pairwise(phrases):
            between = sentence[phrase.end : other.start]
            for words, (relation, swapped) in RELATIONS.items():
                if re.search(rf"\b{words}\b", between):
                    names = (other.name, phrase.name) if swapped else (phrase.name, other.name)
                    facts.add(Fact("relation", relation, *names))
        for phrase, following in zip(phrases, [*phrases[1:], None]):
            after = sentence[phrase.end : following.start if following else None]
            facts |= {Fact("place", place, phrase.name) for place in _PLACE.findall(after)}
            if match := re.match(r" (?:is|are) ((?:[a-z]+ (?:and )?){0,3}[a-z]+)", after):  # "the red circle is large"
                facts |= _adjective_facts(match[1].split(), phrase.name)
    return frozenset(facts)


class _NounPhrase(NamedTuple):
    modifiers: tuple[str, ...]
    noun: str
    start: int
    end: int

    @property
    def name(self) -> str:
        colour = next((word for word in self.modifiers if word in COLOURS), "")
        return f"{colour} {self.noun}".strip()


_MODIFIERS = {*COLOURS, *SIZES, *TEXTURES, *NUMBERS, "of", "and"}


def _noun_phrases(sentence: str) -> list[_NounPhrase]:
    phrases, modifiers, start = [], [], 0
    for match in re.finditer(r"\S+", sentence):
        word = match[0]
        if word in NOUNS:
            begin = start if modifiers else match.start()
            phrases.append(_NounPhrase(tuple(modifiers), NOUNS[word], start=begin, end=match.end()))
            modifiers = []
        elif word in _MODIFIERS and (modifiers or word not in ("of", "and")):
            start = start if modifiers else match.start()
            modifiers.append(word)
        else:
            modifiers = []
    return phrases


def _phrase_facts(phrase: _NounPhrase) -> set[Fact]:
    facts = {Fact("shape", phrase.noun)} if phrase.noun != "object" else set()
    for word in phrase.modifiers:
        if word in NUMBERS:
            facts.add(Fact("count", NUMBERS[word], phrase.name))
        elif word in COLOURS:
            facts.add(Fact("colour", word, phrase.noun))
    return facts | _adjective_facts(phrase.modifiers, phrase.name)


def _adjective_facts(words: Sequence[str], name: str) -> set[Fact]:
    sizes = {Fact("size", word, name) for word in words if word in SIZES}
    return sizes | {Fact("texture", word, name) for word in words if word in TEXTURES}
