"""The built-in picture set: scenes of one to four shapes, drawn from a description, so that all true facts are known.

    scenes:SPLIT[,n=1000][,level=1..4][,size=96][,seed=0][,captions=short|long|alt]

A scene of level L has one to L objects. `captions` selects the captions of a sample: five short ones like those of
COCO (default), a long one like those of DOCCI, or alt text like that of the web. All three are in `Record.meta`. The
split depends on what is drawn (shapes, colours, sizes, textures, background), but not on the places, so no scene is in
two splits. Captions for a scene are made in `imagetext/scenes/words.py`, and the facts in captions are found in
`imagetext/scenes/facts.py`.
"""

import hashlib
import io
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from imagetext.readers.table_pieces import ROWS_PER_SHARD
from imagetext.sample import Record, Shard
from imagetext.scenes import facts, words

SPLITS = {"train": (0, 90), "val": (90, 95), "test": (95, 100)}  # per cent of all descriptions
RGB = {
    "red": (214, 40, 40),
    "orange": (245, 140, 22),
    "yellow": (250, 217, 40),
    "green": (44, 150, 72),
    "blue": (38, 92, 205),
    "purple": (130, 58, 170),
    "black": (34, 34, 38),
    "white": (250, 250, 248),
}
BACKGROUND_RGB = {"grey": (150, 154, 160), "sand": (216, 190, 150), "sky": (150, 196, 226), "mint": (160, 206, 178)}
RADIUS = {"small": (0.16, 0.175), "large": (0.215, 0.235)}  # as a share of the picture's side
LINE, LINE_RGB = 0.14, (30, 30, 36)  # width of the outline as a share of the radius, and its colour
SUPERSAMPLING = 4
PLACINGS = 60  # tries to place the objects of a scene before another scene is drawn


@dataclass(frozen=True)
class SceneSpec:
    """The parsed part of a SPEC after `scenes:`. Parsing raises ValueError, which names every field that is wrong."""

    split: str
    n: int = 1000
    level: int = 2
    size: int = 96
    seed: int = 0
    captions: str = "short"

    @classmethod
    def parse(cls, spec: str) -> "SceneSpec":
        split, *options = spec.removeprefix("scenes:").split(",")
        problems = [] if split in SPLITS else [f"split {split!r} is not one of {', '.join(SPLITS)}"]
        values: dict[str, Any] = {}
        for option in options:
            name, _, value = option.partition("=")
            if name == "captions" and value in ("short", "long", "alt"):
                values[name] = value
            elif name in ("n", "level", "size", "seed") and value.isdecimal():
                values[name] = int(value)
            else:
                problems.append(
                    f"{option!r} is not n=, level=, size= or seed= with a number, or captions=short|long|alt"
                )
        if not 1 <= values.get("level", 2) <= 4:
            problems.append(f"level {values['level']} is not 1 to 4")
        if not 16 <= values.get("size", 96) <= 4096:
            problems.append(f"size {values['size']} is not 16 to 4096 pixels")
        if problems:
            raise ValueError(f"{spec!r}: " + "; ".join(problems))
        return cls(split, **values)


def draw_scene(spec: SceneSpec, index: int) -> dict[str, Any]:
    """Draw the description of scene `index`: a dict of `background` and `objects`, always the same for a spec.

    An object has `shape`, `colour`, `size`, `texture`, and a place: its centre `x`, `y` and its `radius` as shares of
    the picture's side. The dict has only JSON's types.
    """
    rng = random.Random(f"scene/{spec.seed}/{spec.split}/{spec.level}/{index}")
    first, last = SPLITS[spec.split]
    while True:
        scene = _describe(rng, spec.level)
        if first <= _split_bucket(scene) < last and _place(rng, scene["objects"]):
            return scene


def _describe(rng: random.Random, level: int) -> dict[str, Any]:
    objects = [
        {
            "shape": rng.choice(facts.SHAPES),
            "colour": rng.choice(facts.COLOURS),
            "size": rng.choice(facts.SIZES),
            "texture": rng.choice(("plain", "plain", "plain", "striped", "dotted")),
        }
        for _ in range(rng.randint(1, level))
    ]
    if len(objects) > 1 and rng.random() < 0.2:  # two equal objects, so that captions count
        objects[1] = dict(objects[0])
    return {"background": rng.choice(facts.BACKGROUNDS), "objects": objects}


def _split_bucket(scene: Mapping[str, Any]) -> int:
    things = sorted("/".join(item[key] for key in ("shape", "colour", "size", "texture")) for item in scene["objects"])
    return int.from_bytes(hashlib.sha256("|".join([scene["background"], *things]).encode()).digest()[:4], "big") % 100


def _place(rng: random.Random, objects: list[dict[str, Any]]) -> bool:
    """Give each object a place that does not overlap others and is clearly beside or above each.

    False if none is found in PLACINGS tries.
    """
    scale = {1: 1.15, 2: 1.0, 3: 0.85, 4: 0.75}[len(objects)]
    for _ in range(PLACINGS):
        for item in objects:
            radius = rng.uniform(*RADIUS[item["size"]]) * scale
            low, high = radius + 0.02, 0.98 - radius
            item.update(
                x=round(rng.uniform(low, high), 3), y=round(rng.uniform(low, high), 3), radius=round(radius, 3)
            )
        if all(_apart(item, other) for index, item in enumerate(objects) for other in objects[:index]):
            return True
    return False


def _apart(item: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    across, down = abs(item["x"] - other["x"]), abs(item["y"] - other["y"])
    is_clear = max(across, down) > 1.4 * min(across, down)  # nobody would doubt which is left of or above the other
    return is_clear and math.hypot(across, down) > item["radius"] + other["radius"] + 0.03


# --- drawing -------------------------------------------------------------------------------------------------------


def draw_picture(scene: Mapping[str, Any], size: int = 96, seed: str = "") -> Image.Image:
    """Draw a scene as an RGB picture whose sides have `size` pixels.

    It has a shaded background, soft shadows, smooth outlined shapes, and noise.
    """
    rng = random.Random(f"picture/{seed}")
    picture = _background(scene["background"], size, rng)
    for item in scene["objects"]:
        _draw_object(picture, item, size, rng=rng)
    noise = np.random.Generator(np.random.Philox(rng.getrandbits(64))).normal(0, rng.uniform(1, 5), (size, size, 3))
    return Image.fromarray(np.clip(np.asarray(picture, np.float32) + noise, 0, 255).astype(np.uint8))


def _background(name: str, size: int, rng: random.Random) -> Image.Image:
    """A background lit from one side: the brightness changes linearly in a random direction."""
    angle, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0.05, 0.16)
    ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    light = 1 + strength * (math.cos(angle) * ramp[None, :] + math.sin(angle) * ramp[:, None])
    rgb = np.array(BACKGROUND_RGB[name], np.float32) + rng.uniform(-8, 8)
    return Image.fromarray(np.clip(light[..., None] * rgb, 0, 255).astype(np.uint8))


def _draw_object(picture: Image.Image, item: Mapping[str, Any], size: int, *, rng: random.Random) -> None:
    radius = item["radius"] * size
    half = math.ceil(radius * 1.25) + 2  # with room for the shadow
    corner = round(item["x"] * size) - half, round(item["y"] * size) - half
    side = 2 * half * SUPERSAMPLING
    mask, line = Image.new("L", (side, side)), Image.new("L", (side, side))
    points = _outline(item["shape"], radius * SUPERSAMPLING, centre=side / 2, tilt=rng.uniform(-0.12, 0.12))
    ImageDraw.Draw(mask).polygon(points, fill=255)
    ImageDraw.Draw(line).line(
        [*points, *points[:2]], fill=255, width=round(radius * SUPERSAMPLING * LINE), joint="curve"
    )

    shadow = mask.reduce(SUPERSAMPLING).filter(ImageFilter.GaussianBlur(max(1.0, size / 60)))
    offset = max(1, size // 48)
    darkness = shadow.point([value * 2 // 5 for value in range(256)])
    picture.paste((40, 40, 50), (corner[0] + offset, corner[1] + offset), darkness)

    shade = rng.uniform(0.93, 1.05)
    rgb = tuple(min(255, round(channel * shade)) for channel in RGB[item["colour"]])
    picture.paste(rgb, corner, mask.reduce(SUPERSAMPLING))
    if item["texture"] != "plain":
        pattern = _pattern(item["texture"], side, radius * SUPERSAMPLING, rng=rng)
        pattern.paste(0, (0, 0), mask.point(lambda value: 255 - value))
        picture.paste(_contrast(rgb), corner, pattern.reduce(SUPERSAMPLING))
    picture.paste(LINE_RGB, corner, line.reduce(SUPERSAMPLING))


def _contrast(rgb: tuple[int, ...]) -> tuple[int, ...]:
    """A tone for stripes and dots that has the same colour name: darker, or lighter for a dark colour."""
    if sum(rgb) < 200:
        return tuple(channel + 75 for channel in rgb)
    return tuple(round(channel * (0.72 if sum(rgb) < 600 else 0.82)) for channel in rgb)


def _pattern(texture: str, side: int, radius: float, *, rng: random.Random) -> Image.Image:
    pattern = Image.new("L", (side, side))
    draw = ImageDraw.Draw(pattern)
    period = radius * 0.5
    phase = rng.uniform(0, period)
    steps = range(math.ceil(side / period) + 2)
    if texture == "striped":
        for step in steps:
            start = step * period - phase
            draw.rectangle((start, 0, start + period * 0.5, side), fill=255)
    else:
        for row in steps:
            for column in steps:
                x = (column + row % 2 / 2) * period - phase
                y = row * period * 0.9 - phase
                draw.ellipse((x, y, x + period * 0.55, y + period * 0.55), fill=255)
    return pattern


def _outline(shape: str, radius: float, *, centre: float, tilt: float) -> list[tuple[float, float]]:
    """The outline of a shape as points around (centre, centre), turned by `tilt` radians.

    The areas of all shapes are about equal.
    """
    if shape == "circle":
        polar = [(0.92, step * math.pi / 32) for step in range(64)]
    elif shape == "square":
        polar = [(1.15, math.pi / 4 + step * math.pi / 2) for step in range(4)]
    elif shape == "triangle":
        polar = [(1.2, -math.pi / 2 + step * 2 * math.pi / 3) for step in range(3)]
    elif shape == "star":
        polar = [(1.2 if step % 2 == 0 else 0.5, -math.pi / 2 + step * math.pi / 5) for step in range(10)]
    elif shape == "cross":
        arm, width = 1.05, 0.36
        corners = [(width, arm), (width, width), (arm, width), (arm, -width), (width, -width), (width, -arm)]
        corners += [(-x, -y) for x, y in corners]
        polar = [(math.hypot(x, y), math.atan2(y, x)) for x, y in corners]
    else:  # a heart, by the usual parametric curve
        polar = []
        for step in range(64):
            angle = step * math.pi / 32
            x = 16 * math.sin(angle) ** 3 / 16
            y = -(13 * math.cos(angle) - 5 * math.cos(2 * angle) - 2 * math.cos(3 * angle) - math.cos(4 * angle)) / 16
            polar.append((1.05 * math.hypot(x, y - 0.12), math.atan2(y - 0.12, x)))
    return [
        (centre + radius * reach * math.cos(angle + tilt), centre + radius * reach * math.sin(angle + tilt))
        for reach, angle in polar
    ]


# --- samples -------------------------------------------------------------------------------------------------------


def scene_sample(spec: SceneSpec, index: int) -> Record:
    """Make a Record of scene `index`: a JPEG and the selected captions. `meta` has all about it."""
    scene = draw_scene(spec, index)
    name = f"{spec.seed}/{spec.split}/{spec.level}/{index}"
    rng = random.Random(f"words/{name}")
    short, long = words.short_captions(scene, rng), words.long_caption(scene, rng)
    alt = words.alt_text(scene, rng)
    buffer = io.BytesIO()
    draw_picture(scene, spec.size, name).save(buffer, "JPEG", quality=rng.randint(72, 95))
    captions = {"short": short, "long": (long,), "alt": (alt,)}[spec.captions]
    meta = {"scene": scene, "alt_text": alt, "long_caption": long}
    return Record(f"{spec.split}{spec.level}-{index:06d}", buffer.getvalue(), captions, meta=meta)


@dataclass(frozen=True)
class _SceneRows:
    spec: SceneSpec
    rows: range

    def __iter__(self) -> Iterator[Record]:
        return (scene_sample(self.spec, index) for index in self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def scene_shards(spec: str) -> list[Shard]:
    """Return the shards of a `scenes:` spec, with 1,000 pictures each. Raises ValueError if the spec is wrong."""
    parsed = SceneSpec.parse(spec)
    shards = []
    for number, start in enumerate(range(0, parsed.n, ROWS_PER_SHARD)):
        rows = _SceneRows(parsed, range(start, min(start + ROWS_PER_SHARD, parsed.n)))
        name = f"scenes-{parsed.split}{parsed.level}-{number:05d}"
        shards.append(Shard(name, spec, stamp={}, samples=rows))
    return shards
