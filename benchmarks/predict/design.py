"""The design: three worlds of pictures, with captioners, the pools of captions that they draw, and columns drawn from
these.

Columns of one group have the same mean length, so that length cannot rank them; see `benchmarks.predict.lengths`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.evidence.sets import CAPTIONERS, Tuned
from benchmarks.evidence.students import MODEL

POOL = 12  # captions per picture in a pool; a third as many in a pool of captions with several sentences
SAMPLE = 1_000  # pictures with references on which figures are measured
CLIP = "clip"  # folder of the CLIP model for figures, which belongs to none of the captioners
LARGER = Path(__file__).parent / "larger"  # config of that model, and of the students of the second world
GATED = {"redraws": 2, "on_degenerate": "drop"}
PRIMARY = "bits_with_original"  # the figure that was fixed for the first two worlds


class Pool(NamedTuple):
    """A pool of captions of each picture: the captioner, and how captions are drawn (flags of `capsmith generate`)."""

    captioner: str
    settings: Mapping[str, Any] = {}


class Column(NamedTuple):
    """A column: the pools of its captions, captions per picture, and sentences per caption."""

    pools: tuple[str, ...]
    captions: int = 5
    sentences: int = 1

    @property
    def words(self) -> str:
        """The description of the column in a table."""
        sentences = f", {self.sentences} sentences" if self.sentences > 1 else ""
        return (
            f"{' and '.join(pool.replace('_', ' ') for pool in self.pools)}{sentences}, {self.captions} of a picture"
        )


class World(NamedTuple):
    """Pictures, captioners and their pools, columns by their mean length in words, the kind of students, and the
    primary figure, which was fixed before any of them was trained.
    """

    level: int
    captioners: Mapping[str, Tuned]
    pools: Mapping[str, Pool]
    groups: Mapping[float, Mapping[str, Column]]
    student: Path
    primary: str = PRIMARY

    @property
    def name(self) -> str:
        """The name with which the world's folders begin."""
        return f"level{self.level}"

    @property
    def pictures(self) -> str:
        """The SPEC of the pictures that students see, with alt text."""
        return f"scenes:train,n=2000,level={self.level},seed=7,captions=alt"

    @property
    def columns(self) -> dict[str, Column]:
        """The columns of all groups, by name."""
        return {name: column for group in self.groups.values() for name, column in group.items()}


SELF, TEACHER = (
    "self",
    "little_p05",
)  # the captioner SELF is trained on captions of the pool TEACHER, of other pictures
COLD, HOT, HOTTER = ({"temperature": 0.5}, {"temperature": 1.5, "top_p": 1.0}, {"temperature": 2.5, "top_p": 1.0})
SEVERAL = {"num_captions": POOL // 3}
BEAMS = {"strategy": "beam", "num_beams": POOL}

FIRST = World(
    level=2,
    captioners={
        **CAPTIONERS,
        "some": Tuned("short", 6_000, 2),
        "lora": Tuned("short", 20_000, 3, lora_rank=8),
        SELF: Tuned("little's own", 20_000, 0),
    },
    pools={
        "pretrained": Pool("pretrained"),
        "pretrained_cold": Pool("pretrained", COLD),
        "little": Pool("little"),
        "little_hot": Pool("little", HOT),
        "little_hot_gated": Pool("little", HOT | GATED),
        "little_beams": Pool("little", BEAMS),
        "some": Pool("some"),
        "much": Pool("much"),
        "much_cold": Pool("much", {"temperature": 0.3}),
        "much_hot": Pool("much", HOT),
        "much_hotter": Pool("much", HOTTER),
        "much_hotter_gated": Pool("much", HOTTER | GATED),
        "much_groups": Pool("much", BEAMS | {"num_beam_groups": 4, "diversity_penalty": 1.0}),
        "other": Pool("other"),
        "lora": Pool("lora"),
        "self": Pool("self"),
        "long": Pool("long", SEVERAL),
    },
    groups={
        8.0: {
            "short_pretrained": Column(("pretrained",), sentences=2),
            "short_pretrained_one": Column(("pretrained_cold",), 1, sentences=2),
            "short_little": Column(("little",)),
            "short_little_gated": Column(("little_hot_gated",)),
            "short_some_two": Column(("some",), 2),
            "short_much": Column(("much",)),
            "short_much_one": Column(("much_cold",), 1),
            "short_much_hot": Column(("much_hot",)),
            "short_much_hotter": Column(("much_hotter",)),
            "short_mix": Column(("pretrained", "self")),
        },
        10.0: {
            "middle_pretrained": Column(("pretrained",), sentences=2),
            "middle_little_hot": Column(("little_hot",), 3),
            "middle_little_beams": Column(("little_beams",)),
            "middle_much_one": Column(("much",), 1),
            "middle_much_groups": Column(("much_groups",)),
            "middle_much_gated": Column(("much_hotter_gated",), 1),
            "middle_lora": Column(("lora",)),
            "middle_self": Column(("self",)),
            "middle_long": Column(("long",)),
            "middle_mix": Column(("little_hot", "other")),
        },
        18.0: {
            "dense_pretrained": Column(("pretrained",), sentences=4),
            "dense_little": Column(("little",), sentences=2),
            "dense_little_hot": Column(("little_hot",), 3, sentences=2),
            "dense_some": Column(("some",), sentences=2),
            "dense_much_two": Column(("much",), 2, sentences=2),
            "dense_much_one": Column(("much_cold",), 1, sentences=2),
            "dense_much_hotter": Column(("much_hotter",), 3, sentences=2),
            "dense_self": Column(("self",), sentences=2),
            "dense_long": Column(("long",), 1, sentences=2),
            "dense_mix": Column(("little", "long"), sentences=2),
        },
    },
    student=MODEL,
)
SECOND = World(
    level=4,
    captioners={
        "long4": Tuned("long", 16_000, 4, level=4),
        "long4_little": Tuned("long", 3_000, 5, level=4),
        "short4": Tuned("short", 20_000, 6, level=4),
        "long": CAPTIONERS["long"],
    },
    pools={
        "pretrained": Pool("pretrained"),
        "short4": Pool("short4"),
        "short4_hot": Pool("short4", HOT),
        "long4": Pool("long4", SEVERAL),
        "long4_cold": Pool("long4", SEVERAL | COLD),
        "long4_hot": Pool("long4", SEVERAL | HOT),
        "long4_little": Pool("long4_little", SEVERAL),
        "long": Pool("long", SEVERAL),  # for pictures with more objects than in its training
    },
    groups={
        30.0: {
            "four_pretrained": Column(("pretrained",), sentences=6),
            "four_short": Column(("short4",), sentences=3),
            "four_short_hot": Column(("short4_hot",), sentences=3),
            "four_long": Column(("long4",), sentences=3),
            "four_long_one": Column(("long4_cold",), 1, sentences=3),
            "four_long_hot": Column(("long4_hot",), sentences=3),
            "four_long_little": Column(("long4_little",), sentences=3),
            "four_long_elsewhere": Column(("long",), sentences=3),
            "four_mix_pretrained": Column(("pretrained", "short4"), sentences=4),
            "four_mix": Column(("short4", "long4"), sentences=3),
        }
    },
    student=LARGER,
)
THIRD = World(  # fixed when 59 of the 126 students of the first two were known
    level=3,
    captioners={
        "little": CAPTIONERS["little"],
        "much": CAPTIONERS["much"],
        "long": CAPTIONERS["long"],
        "long4": SECOND.captioners["long4"],
        "short4": SECOND.captioners["short4"],
    },
    pools={
        "pretrained": Pool("pretrained"),
        "pretrained_cold": Pool("pretrained", COLD),
        "little": Pool("little"),
        "little_hot": Pool("little", HOT),
        "much": Pool("much"),
        "much_cold": Pool("much", {"temperature": 0.3}),
        "much_hotter": Pool("much", HOTTER),
        "much_hotter_gated": Pool("much", HOTTER | GATED),
        "short4": Pool("short4"),
        "short4_hot": Pool("short4", HOT),
        "long": Pool("long", SEVERAL),
        "long4": Pool("long4", SEVERAL),
        "long4_hot": Pool("long4", SEVERAL | HOT),
    },
    groups={
        9.0: {
            "short3_pretrained": Column(("pretrained",), sentences=2),
            "short3_pretrained_one": Column(("pretrained_cold",), 1, sentences=2),
            "short3_little": Column(("little",)),
            "short3_much": Column(("much",)),
            "short3_much_one": Column(("much_cold",), 1),
            "short3_much_hotter": Column(("much_hotter",)),
            "short3_mix": Column(("little", "short4")),
        },
        11.0: {
            "middle3_pretrained": Column(("pretrained",), sentences=2),
            "middle3_little_hot": Column(("little_hot",), 3),
            "middle3_much_gated": Column(("much_hotter_gated",), 1),
            "middle3_short": Column(("short4",)),
            "middle3_short_hot": Column(("short4_hot",), 3),
            "middle3_long": Column(("long4",)),
            "middle3_mix": Column(("much", "short4_hot")),
        },
        18.0: {
            "dense3_pretrained": Column(("pretrained",), sentences=4),
            "dense3_little": Column(("little",), sentences=2),
            "dense3_much_one": Column(("much_cold",), 1, sentences=2),
            "dense3_much_hotter": Column(("much_hotter",), 3, sentences=2),
            "dense3_short": Column(("short4",), 2, sentences=2),
            "dense3_long_elsewhere": Column(("long",), 3, sentences=2),
            "dense3_long_hot": Column(("long4_hot",), sentences=2),
        },
    },
    student=MODEL,
    primary="found_clip",
)
WORLDS = (FIRST, SECOND, THIRD)
