"""The captioners, their captions, the reinforced set with all captions, and the figures of its diversity report.

Every step is a command of capsmith that resumes by itself, or is skipped if it is done.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from captioners.resolve import SHIPPED
from captioners.rules.negatives import NEGATIVES
from diversity.measures import catalogue
from diversity.score import score_captions
from finetune.captioner.config import FinetuneConfig
from finetune.captioner.run import run as finetune
from generate.captions.config import GenerateConfig
from generate.captions.run import run as generate
from generate.reinforce.config import ReinforceConfig
from generate.reinforce.run import run as reinforce
from imagetext.sources import read_records, read_samples

LEVEL = 2  # most objects in a picture
PICTURES = 2_000  # number of pictures that students see; their original captions are the set's noisy alt text
SET = f"scenes:train,n={PICTURES},level={LEVEL},seed=7,captions=alt"
VIEWS = 10
CROP_AREA = 0.6  # least share of the picture's area: smaller crops often lack the objects that a caption names
PRETRAINED = "coca_tiny"
EMBEDDED = "^syn_text_much_p09$"  # the columns with embeddings, which distillation needs


class Tuned(NamedTuple):
    """How the built-in captioner is fine-tuned: kind of captions, captions seen, seed of pictures and order, most
    objects.
    """

    captions: str
    samples_seen: int
    seed: int
    level: int = LEVEL
    lora_rank: int = 0  # 0: all weights are trained


CAPTIONERS = {
    "little": Tuned("short", 2_000, 0),
    "much": Tuned("short", 20_000, 0),
    "other": Tuned("short", 20_000, 1),
    "long": Tuned("long", 16_000, 0),
}
TEACHERS = ("much", "long")  # a CoCa is a CLIP model, too


class Point(NamedTuple):
    """A column of captions: its captioner, how captions were drawn, and the number of captions per picture."""

    captioner: str
    num_captions: int = 5
    temperature: float = 1.0
    top_p: float = 0.9
    strategy: str = "sample"

    @property
    def words(self) -> str:
        """The description of the column in a table."""
        how = "greedy" if self.strategy == "greedy" else f"temperature {self.temperature:g}, top-p {self.top_p:g}"
        return f"{self.captioner}, {how}, {self.num_captions} of a picture"


GREEDY = {"num_captions": 1, "strategy": "greedy"}
POINTS = {  # in the order of the tables
    "pretrained_p09": Point("pretrained"),
    "pretrained_t05": Point("pretrained", temperature=0.5),
    "pretrained_greedy": Point("pretrained", **GREEDY),
    "little_p09": Point("little"),
    "little_t15": Point("little", temperature=1.5, top_p=1.0),
    "little_greedy": Point("little", **GREEDY),
    "much_p09": Point("much"),
    "much_t05": Point("much", temperature=0.5),
    "much_t15": Point("much", temperature=1.5, top_p=1.0),
    "much_t25": Point("much", temperature=2.5, top_p=1.0),
    "much_one": Point("much", num_captions=1),
    "much_greedy": Point("much", **GREEDY),
    "long_p09": Point("long"),
    "long_greedy": Point("long", **GREEDY),
}
ALONE = {  # columns for comparing one captioner with several, with three captions per picture in total
    "much_three": Point("much", num_captions=3),
    "other_one": Point("other", num_captions=1),
    "long_one": Point("long", num_captions=1),
}
COLUMNS = {**POINTS, **ALONE}

# The report's figures that are tested for ranking students; their arrows say which direction is better. They were
# fixed before the ranked students were trained, but after a few trial students.
FIGURES = (
    catalogue.VOCABULARY,
    catalogue.DISTINCT[1],
    catalogue.DIV[1],
    catalogue.MBLEU,
    catalogue.SELF_CIDER,
    catalogue.VENDI[0],
    catalogue.WORD_COVERAGE,
    catalogue.COVERAGE,
    catalogue.PRECISION,
    catalogue.RECALL,
    catalogue.DEGENERATE,
)
BASELINES = (catalogue.LENGTH, catalogue.CIDER, catalogue.CLIP_SCORE)  # higher counts as better
# Values for columns with one caption per picture, for which these figures are undefined: no diversity.
OF_ONE = {catalogue.SELF_CIDER: 0.0, catalogue.MBLEU: 1.0, catalogue.VENDI[0]: 1.0}


def captioner_folder(output: Path, name: str) -> str:
    """The value of `--model` and `--teacher` for a captioner of this experiment."""
    return PRETRAINED if name == "pretrained" else str(output / "captioners" / name)


def make_captioner(output: Path, name: str, tuned: Tuned, **settings: Any) -> None:
    """Fine-tune the built-in captioner on curated captions of pictures that no student sees; `settings` override
    fields.
    """
    config = {
        "input": [f"scenes:train,n=4000,level={tuned.level},seed={tuned.seed},captions={tuned.captions}"],
        "model": PRETRAINED,
        "name": name,
        "output": captioner_folder(output, name),
        "samples_seen": tuned.samples_seen,
        "lora_rank": tuned.lora_rank,
        "batch_size": 32,
        "learning_rate": 1e-3,
        "hold_out": 0,
        "num_workers": 0,
        "seed": tuned.seed,
    }
    done(finetune(FinetuneConfig(**config | settings)), "finetune")


def make_set(output: Path) -> None:
    """Caption every picture in every column, without a gate, and reinforce the records."""
    make_captions(output)
    done(
        reinforce(
            ReinforceConfig(
                input=[str(output / "captioned" / "*.tar")],
                output=output / "reinforced",
                views=VIEWS,
                size=64,
                crop_area=CROP_AREA,
                columns=EMBEDDED,
                teacher=[captioner_folder(output, name) for name in TEACHERS],
                num_workers=0,
                report=True,
            )
        ),
        "reinforce",
    )


def make_captions(output: Path) -> None:
    """Caption every picture in every column, without a gate."""
    done(
        generate(
            GenerateConfig(
                input=[SET],
                output=output / "captioned",
                redraws=0,
                on_degenerate="keep",
                num_workers=0,
                columns=[
                    {"column": f"syn_text_{name}", "model": captioner_folder(output, point.captioner), **_drawn(point)}
                    for name, point in COLUMNS.items()
                ],
            )
        ),
        "generate",
    )


WORDS, REWRITTEN = (
    "words",
    "rewritten",
)  # sets with texts that are made from texts; the second also has those of a language model
CAPTIONS = "much_p09"  # the captions with which texts are compared and combined
MADE_OF = {
    "alt": "{{ text }}",
    CAPTIONS: f"{{{{ syn_text_{CAPTIONS} }}}}",
}  # the texts from which each column of hard negatives is made


def make_words(output: Path) -> None:
    """Make the captions of one column, hard negatives of these and of the alt text, and the views that all students
    see.
    """
    columns = [
        {"column": f"syn_text_{CAPTIONS}", "model": captioner_folder(output, COLUMNS[CAPTIONS].captioner)}
        | {"redraws": 0, "on_degenerate": "keep"}
        | _drawn(COLUMNS[CAPTIONS])
    ]
    columns += [
        {"column": f"neg_text_{name}", "model": NEGATIVES, "instruction": instruction}
        for name, instruction in MADE_OF.items()
    ]
    done(
        generate(
            GenerateConfig(
                input=[SET],
                output=output / f"{WORDS}_captioned",
                num_workers=0,
                columns=columns,
            )
        ),
        "generate",
    )
    make_views(output, WORDS)


def make_rewrites(output: Path, rewriter: str) -> None:
    """Add a language model's rewrites of the alt text, made by the recipe, to the set of `make_words`."""
    done(
        generate(
            GenerateConfig(
                recipe="laclip",
                model=rewriter,
                input=[str(output / f"{WORDS}_captioned" / "*.tar")],
                output=output / f"{REWRITTEN}_captioned",
                column="syn_text_laclip",
                num_workers=0,
            )
        ),
        "generate",
    )
    make_views(output, REWRITTEN)


def make_views(output: Path, name: str) -> None:
    """Draw the same views as `make_set`, without embeddings, for the captioned set `name`."""
    done(
        reinforce(
            ReinforceConfig(
                input=[str(output / f"{name}_captioned" / "*.tar")],
                output=output / name,
                views=VIEWS,
                size=64,
                crop_area=CROP_AREA,
                embeddings="none",
                num_workers=0,
            )
        ),
        "reinforce",
    )


def _drawn(point: Point) -> dict[str, Any]:
    settings = point._asdict()
    settings.pop("captioner")
    return {name: settings[name] for name in GREEDY} if point.strategy == "greedy" else settings


def done(code: int, command: str) -> None:
    if code:
        raise SystemExit(f"capsmith {command} failed with exit code {code}")


def write_figures(output: Path) -> None:
    """Write the figures of the diversity report for each column, with all its captions, to `figures.json`.

    References are the curated captions. The CLIP model and the embedder are the pretrained captioner, which has seen
    only alt text of such pictures.
    """
    records = list(read_records(str(output / "captioned" / "*.tar")))
    curated = {
        sample.key: sample.captions
        for shard in read_samples([SET.replace("captions=alt", "captions=short")])
        for sample in shard
    }
    settings = {
        "references": [curated[record.key] for record in records],
        "scenes": [record.meta["scene"] for record in records],
        "images": [record.image for record in records],
        "keys": [record.key for record in records],
        "embedder": str(SHIPPED / PRETRAINED),
        "clip": str(SHIPPED / PRETRAINED),
    }
    rows = {}
    for name in POINTS:
        captions = [record.syn_text[f"syn_text_{name}"] for record in records]
        rows[name] = score_captions({name: captions}, **settings).rows[name]
    (output / "figures.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
