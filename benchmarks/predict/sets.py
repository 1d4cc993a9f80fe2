"""Make what the design names: captioners, pools of captions, columns drawn from them, and the CLIP model for figures.

Every step is a command of capsmith that resumes by itself, or writes a file that is not made again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.evidence.sets import CROP_AREA, captioner_folder, done, make_captioner, make_views
from benchmarks.evidence.students import RECIPE, student_folder
from benchmarks.predict.design import CLIP, GATED, LARGER, POOL, SELF, TEACHER, Column, World
from benchmarks.predict.lengths import candidates, draw_to_length
from finetune.student.config import StudentConfig
from finetune.student.run import run as train_student
from generate.captions.config import GenerateConfig
from generate.captions.run import run as generate
from generate.reinforce.config import ReinforceConfig
from generate.reinforce.run import run as reinforce
from imagetext.sample import Record
from imagetext.shards import ShardWriter, read_marker
from imagetext.sources import read_records

SHARD = "columns"
UNGATED = {"redraws": 0, "on_degenerate": "keep"}
OTHERS = "scenes:train,n=4000,level=2,seed=12,captions=alt"  # pictures for self-training
LOOKED_AT = (  # training data of the CLIP model: short captions, and long ones
    "scenes:train,n=8000,level=2,seed=11,captions=short",
    "scenes:train,n=8000,level=4,seed=11,captions=long",
)


def make_captioners(output: Path, world: World) -> None:
    """Fine-tune missing captioners; one of them on another's captions of other pictures, without degenerate ones."""
    for name, tuned in world.captioners.items():
        if name != SELF:
            make_captioner(output, name, tuned)
            continue
        column = f"syn_text_{TEACHER}"
        drawn_by = {"column": column, "model": captioner_folder(output, "little"), "top_p": 0.5, **GATED}
        caption(OTHERS, output / "self_taught", [drawn_by], format="jsonl")
        of_self = {"input": [str(output / "self_taught" / "*.jsonl")], "caption_column": [column]}
        make_captioner(output, name, tuned, model=captioner_folder(output, "little"), **of_self)


def make_pools(output: Path, world: World) -> None:
    """Caption every picture for every pool."""
    columns = [
        {"column": f"syn_text_{name}", "model": captioner_folder(output, pool.captioner)}
        | UNGATED
        | {"num_captions": POOL, **pool.settings}
        for name, pool in world.pools.items()
    ]
    caption(world.pictures, output / f"{world.name}_pools", columns)


def caption(pictures: str, folder: Path, columns: Sequence[Mapping[str, Any]], **settings: Any) -> None:
    """Caption pictures in these columns by `capsmith generate`."""
    config = GenerateConfig(input=[pictures], output=folder, num_workers=0, columns=columns, **settings)
    done(generate(config), "generate")


def make_columns(output: Path, world: World) -> None:
    """Draw every column from its pools to its group's length; write it with alt text and views to one shard."""
    folder = output / f"{world.name}_captioned"
    if not read_marker(folder, SHARD):
        records = list(read_records(str(output / f"{world.name}_pools" / "*.tar")))
        columns = {
            f"syn_text_{name}": draw(records, name, column=column, length=length)
            for length, group in world.groups.items()
            for name, column in group.items()
        }
        folder.mkdir(exist_ok=True)
        with ShardWriter(folder, SHARD, columns=tuple(columns)) as shard:
            for index, record in enumerate(records):
                texts = {name: tuple(of_pictures[index]) for name, of_pictures in columns.items()}
                shard.write(replace(record, columns=texts, scores={}))
    make_views(output, world.name)


def draw(records: Sequence[Record], name: str, *, column: Column, length: float) -> list[list[str]]:
    """Draw the column's captions of each record; ValueError if its pools cannot reach the length."""
    pools = [
        [
            text
            for pool in column.pools
            for text in candidates(
                record.syn_text.get(f"syn_text_{pool}", ()), column.sentences, f"{name}/{pool}/{record.key}"
            )
        ]
        for record in records
    ]
    keys = [record.key for record in records]
    return draw_to_length(pools, keys, k=column.captions, length=length, name=name)


def make_clip(output: Path) -> None:
    """Train a CLIP model by the students' recipe, on other pictures and their curated captions."""
    done(
        reinforce(
            ReinforceConfig(
                input=[*LOOKED_AT],
                output=output / "looked_at",
                views=1,
                size=64,
                crop_area=CROP_AREA,
                embeddings="none",
                num_workers=0,
            )
        ),
        "reinforce",
    )
    config = StudentConfig(
        input=[str(output / "looked_at" / "*.tar")],
        student=str(student_folder(output, LARGER)),
        output=output / CLIP,
        synthetic_weight=0,
        distill_weight=0,
        contrastive_weight=1,
        num_workers=0,
        device="cpu",
        **RECIPE | {"samples_seen": 64_000},
    )
    done(train_student(config), "train-student")
