"""Captions for a built-in picture: short ones like those of COCO, a long one like those of DOCCI, and alt text."""

import itertools
import random
from collections.abc import Callable, Mapping
from typing import Any

from imagetext.scenes.facts import (
    BACKGROUNDS,
    COLOURS,
    PLURALS,
    SHAPES,
    full_name,
    groups,
    main_relation,
    place_of,
    related_pair,
)

COUNT_WORDS = ("", "one", "two", "three", "four")
Scene = Mapping[str, Any]
Group = list[Mapping[str, Any]]  # objects of one colour and shape


def short_captions(scene: Scene, rng: random.Random) -> tuple[str, ...]:
    """Return five short captions in different words. Each is true, and none names everything."""
    makers = list(_ONE_KIND if len(groups(scene)) == 1 else _SEVERAL_KINDS)
    rng.shuffle(makers)
    captions: dict[str, None] = {}  # a dict instead of a set, to keep their order
    for maker in itertools.cycle(makers):
        if len(captions) == 5:
            break
        captions[maker(scene, rng)] = None
    return tuple(captions)


def long_caption(scene: Scene, rng: random.Random) -> str:
    """Return a caption of several sentences that names everything."""
    kinds = groups(scene)
    sentences = [f"{_medium(rng)} {_listed([_describe(group, rng, 0) for group in kinds])}{_on(scene, rng)}"]
    if len(kinds) > 1:
        sentences.append(f"there are {_total(scene, rng)} in all")
    for group in kinds:
        if len(group) > 1:
            sentences.append(_state(group, rng))
        else:
            item = group[0]
            sentences.append(f"the {full_name(item)} is {item['size']} and {item['texture']}, at the {place_of(item)}")
    if pair := related_pair(kinds):
        value, first, other = main_relation(*pair)
        sentences.append(
            f"the {full_name(first)} is {'to the ' if value == 'left of' else ''}{value} the {full_name(other)}"
        )
    return " ".join(sentence[0].upper() + sentence[1:] + "." for sentence in sentences)


# --- phrases -------------------------------------------------------------------------------------------------------


def _describe(group: Group, rng: random.Random, detail: float = 0.3, article: str = "a") -> str:
    """A noun phrase such as "a large striped red circle" or "two blue stars".

    detail: the probability of each adjective.
    """
    words = [adjective for adjective in _adjectives(group) if rng.random() < detail]
    words += [group[0]["colour"], group[0]["shape"]]
    if len(group) > 1:
        words[-1] = PLURALS[words[-1]]
        return " ".join((["the"] if article == "the" else []) + [COUNT_WORDS[len(group)], *words])
    if article == "a" and words[0][0] in "aeiou":
        article = "an"
    return " ".join([article, *words])


def _adjectives(group: Group) -> list[str]:
    """The size and texture that all objects of a group share. "plain" is not named."""
    shared = [{item[key] for item in group} for key in ("size", "texture")]
    return [values.pop() for values in shared if len(values) == 1 and values != {"plain"}]


def _listed(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def _all(scene: Scene, rng: random.Random, detail: float = 0.3) -> str:
    return _listed([_describe(group, rng, detail) for group in groups(scene)])


def _on(scene: Scene, rng: random.Random) -> str:
    return f" {rng.choice(('on', 'against'))} a {rng.choice(('', '', 'plain '))}{scene['background']} background"


def _medium(rng: random.Random) -> str:
    return rng.choice(("a picture of", "an image of", "a drawing of"))


def _counted(scene: Scene, rng: random.Random) -> str:
    """The only group of a scene with its count: "one red circle", "a pair of blue stars"."""
    group = scene["objects"]
    if len(group) == 1:
        return _describe(group, rng, article=rng.choice(("one", "a single")))
    phrase = _describe(group, rng)
    return "a pair of " + phrase.removeprefix("two ") if len(group) == 2 and rng.random() < 0.3 else phrase


def _total(scene: Scene, rng: random.Random) -> str:
    return f"{COUNT_WORDS[len(scene['objects'])]} {rng.choice(('shapes', 'objects'))}"


def _state(group: Group, rng: random.Random) -> str:
    """A sentence such as "the red circle is large and striped"."""
    subject = _describe(group, rng, detail=0, article="the")
    adjectives = _adjectives(group) or [group[0]["colour"]]
    return f"{subject} {'are' if len(group) > 1 else 'is'} {' and '.join(adjectives)}"


def _related(scene: Scene, rng: random.Random, upper_left_first: float = 0.75) -> str:
    """A relation of the first two objects, in one order or the other; a list if no two can be told apart."""
    pair = related_pair(groups(scene))
    if pair is None:
        return _all(scene, rng)
    value, item, other = main_relation(*pair)
    words = {"left of": ("to the left of", "to the right of"), "above": ("above", "below")}[value]
    first, second, word = (item, other, words[0]) if rng.random() < upper_left_first else (other, item, words[1])
    return f"{_describe([first], rng)} {word} {_describe([second], rng)}"


Maker = Callable[[Scene, random.Random], str]
_ONE_KIND: tuple[Maker, ...] = (
    lambda scene, rng: _all(scene, rng, 0.6) + _on(scene, rng),
    lambda scene, rng: f"we see {_counted(scene, rng)} in the picture",
    lambda scene, rng: f"{_medium(rng)} {_all(scene, rng, 0.5)}",
    lambda scene, rng: _counted(scene, rng) + _on(scene, rng),
    lambda scene, rng: _state(scene["objects"], rng),
    lambda scene, rng: _counted(scene, rng) + rng.choice((" and nothing else", " alone")),
)
_SEVERAL_KINDS: tuple[Maker, ...] = (
    lambda scene, rng: _related(scene, rng),
    lambda scene, rng: f"{_medium(rng)} {_related(scene, rng)}",
    lambda scene, rng: _related(scene, rng) + _on(scene, rng),
    lambda scene, rng: f"{_total(scene, rng)}: {_all(scene, rng)}",
    lambda scene, rng: f"there are {_total(scene, rng)}, {_all(scene, rng)}{_on(scene, rng)}",
    lambda scene, rng: _all(scene, rng, 0.5) + rng.choice((" next to each other", " in one picture", "")),
)

# --- alt text ------------------------------------------------------------------------------------------------------

_FOREIGN = {  # the same words in German, Spanish and French, as in shops of other countries
    "circle": ("kreis", "círculo", "cercle"),
    "square": ("quadrat", "cuadrado", "carré"),
    "star": ("stern", "estrella", "étoile"),
    "triangle": ("dreieck", "triángulo", "triangle"),
    "heart": ("herz", "corazón", "cœur"),
    "cross": ("kreuz", "cruz", "croix"),
    "red": ("rot", "rojo", "rouge"),
    "orange": ("orange", "naranja", "orange"),
    "yellow": ("gelb", "amarillo", "jaune"),
    "green": ("grün", "verde", "vert"),
    "blue": ("blau", "azul", "bleu"),
    "purple": ("lila", "morado", "violet"),
    "black": ("schwarz", "negro", "noir"),
    "white": ("weiß", "blanco", "blanc"),
}
_BEFORE = (*("",) * 14, "buy ", "free ", "new ", "cute ", "stock photo: ", "how to draw a ")
_AFTER = (
    *("",) * 14,
    " clipart",
    " - free vector",
    " icon",
    " | ShapeShop",
    " wallpaper",
    " for sale",
    ", 5 pcs",
    " (2021)",
)
_SPAM = (
    "click here for more",
    "free shipping worldwide",
    "image may contain: indoor",
    "share on pinterest",
    "best price online",
    "no photo available",
    "thumbnail",
    "logo",
    "banner_728x90",
    "photo by admin",
    "sale! 50% off",
    "untitled",
    "spacer",
)


def alt_text(scene: Scene, rng: random.Random) -> str:
    """Return alt text like that of the web: 86 % is true, but rarely complete; the rest is wrong or says nothing."""
    chance = rng.random()
    if chance < 0.40:
        return _product(rng.choice(scene["objects"]), rng)
    if chance < 0.62:
        return " ".join(full_name(item) for item in scene["objects"]) + rng.choice(_AFTER)
    if chance < 0.74:
        return _related(scene, rng, upper_left_first=0.5) + rng.choice(_AFTER)
    if chance < 0.80:
        return _tags(rng.choice(scene["objects"]), scene, rng)
    if chance < 0.86:
        return _abroad(rng.choice(scene["objects"]), rng)
    if chance < 0.92:
        return _product(
            {"colour": rng.choice(COLOURS), "shape": rng.choice(SHAPES), "size": "small", "texture": "plain"}, rng
        )
    return rng.choice(_SPAM) if chance < 0.96 else _file_name(rng.choice(scene["objects"]), rng)


def _product(item: Mapping[str, Any], rng: random.Random) -> str:
    words = _adjectives([item]) if rng.random() < 0.25 else []
    return rng.choice(_BEFORE) + " ".join([*words, full_name(item)]) + rng.choice(_AFTER)


def _tags(item: Mapping[str, Any], scene: Scene, rng: random.Random) -> str:
    tags = [
        item["shape"],
        item["colour"],
        *_adjectives([item]),
        rng.choice(BACKGROUNDS + (scene["background"],)),
        "art",
        "shape",
    ]
    rng.shuffle(tags)
    return ", ".join(tags[: rng.randint(3, 5)])


def _abroad(item: Mapping[str, Any], rng: random.Random) -> str:
    language = rng.randrange(3)
    colour, shape = _FOREIGN[item["colour"]][language], _FOREIGN[item["shape"]][language]
    return (f"{colour} {shape}" if language == 0 else f"{shape} {colour}") + rng.choice(
        ("", " kaufen", " gratis", " 2 €", " pdf")
    )


def _file_name(item: Mapping[str, Any], rng: random.Random) -> str:
    return rng.choice(
        (
            f"IMG_{rng.randint(1000, 9999)}.JPG",
            f"DSC{rng.randint(10000, 99999)}.jpg",
            f"{item['colour']}-{item['shape']}_{rng.randint(1, 99):02}.png",
            f"image{rng.randint(1, 20)}.gif",
        )
    )
