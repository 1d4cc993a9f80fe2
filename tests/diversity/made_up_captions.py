"""Made-up pictures with captions as people write them, each in other words, and captions of a machine that errs."""

import random

SUBJECTS = (
    "man guy person",
    "woman lady person",
    "dog puppy animal",
    "cat kitten animal",
    "boy child kid",
    "girl child kid",
    "horse pony animal",
    "bus coach vehicle",
    "train locomotive vehicle",
    "surfer man athlete",
    "skier woman athlete",
    "giraffe animal creature",
    "elephant animal creature",
    "pizza meal dish",
    "sandwich lunch dish",
    "bird seagull animal",
    "player batter athlete",
    "chef cook worker",
    "couple pair people",
    "bear animal creature",
)
DOES = (
    "sits rests",
    "stands waits",
    "runs rushes",
    "sleeps lies",
    "looks gazes",
    "moves travels",
    "plays jumps",
    "eats chews",
    "turns leans",
    "climbs walks",
)
WHERE = (
    "on the beach|by the sea|on sand",
    "in a kitchen|at the stove|by a counter",
    "on a street|in the city|by the road",
    "in a field|on the grass|in a meadow",
    "on a snowy hill|in the snow|on a slope",
    "at a table|in a restaurant|on a plate",
    "by a river|at the water|near a bridge",
    "in a living room|on a couch|near a window",
    "under a tree|in the woods|in a park",
    "at the station|on a platform|near the tracks",
    "behind a fence|at the zoo|in a pen",
    "on a court|in a stadium|near the net",
)
LIKE = (
    "red",
    "black and white",
    "large",
    "small",
    "young",
    "old",
    "brown",
    "blue",
    "striped",
    "happy",
    "wet",
    "green",
)
WITH = (
    "with a ball",
    "next to a bicycle",
    "under an umbrella",
    "with a phone",
    "beside some flowers",
    "near another one",
    "with a hat",
    "holding a bag",
    "while people watch",
    "as the sun sets",
    "in front of a sign",
    "next to a bench",
)


def made_up_pictures(count: int, seed: int = 0) -> list[dict]:
    """`count` pictures as `benchmarks.verdict` takes them: five human captions and one of a machine each."""
    draw = random.Random(seed)
    return [_picture(draw) for _ in range(count)]


def _picture(draw: random.Random) -> dict:
    truth = _content(draw)
    wrong = [part if draw.random() < 0.6 else other for part, other in zip(truth, _content(draw))]
    return {"references": [_caption(draw, truth) for _ in range(5)], "candidates": [_caption(draw, wrong)]}


def _content(draw: random.Random) -> list[str]:
    return [draw.choice(parts) for parts in (SUBJECTS, DOES, WHERE, LIKE, WITH)]


def _caption(draw: random.Random, content: list[str]) -> str:
    who, does, where, like, beside = content
    who, does, where = draw.choice(who.split()), draw.choice(does.split()), draw.choice(where.split("|"))
    like, beside = draw.choice((f"{like} ", "", f"{like} ")), draw.choice((f" {beside}", "", f" {beside}"))
    return draw.choice(
        (
            f"A {like}{who} that {does} {where}{beside}.",
            f"There is a {like}{who} which {does} {where}{beside}",
            f"A {like}{who} {does} {where}{beside}",
            f"One {like}{who}{beside} {does} {where}.",
        )
    )
