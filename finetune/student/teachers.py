"""What a reinforced set says of the teachers whose embeddings it holds."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from finetune.student.config import StudentConfig
from imagetext.readers.row_records import json_object
from imagetext.sources import Shard
from imagetext.stores import join, read_bytes

CONFIG = "config.json"


@dataclass(frozen=True)
class Teachers:
    """The teachers of a set, in the order of its embeddings: the numbers of each in a row, and the scale of its cosines."""

    names: Sequence[str]
    dimensions: Sequence[int]
    logit_scales: Sequence[float]


def read_teachers(shards: Sequence[Shard], config: StudentConfig) -> Teachers | None:
    """The teachers that the configuration, or else config.json beside the shards, names; None where none are distilled from.

    Raises: ValueError where neither does, or where they do not agree.
    """
    if not config.distill_weight:
        return None
    told = {}
    for folder in dict.fromkeys(os.path.dirname(shard.path) for shard in shards):
        try:
            teachers = json_object(read_bytes(path := join(folder, CONFIG))).get("teachers") or []
            told[path] = [(str(one["name"]), int(one["dimension"]), float(one["logit_scale"])) for one in teachers]
        except FileNotFoundError:
            told[path] = []
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}: not the config.json of a reinforced set: {error!r}") from error
    path, first = next(iter(told.items()))
    if differing := [other for other, teachers in told.items() if teachers != first]:
        raise ValueError(f"{differing[0]} and {path} name other teachers: {told[differing[0]]}, {first}")
    names = [name for name, _, _ in first]
    dimensions, scales = [one for _, one, _ in first], config.logit_scale or [one for *_, one in first]
    if dimensions and config.teacher_dimension not in ([], dimensions):
        raise ValueError(f"--teacher-dimension: {config.teacher_dimension}, and {path} has {dimensions}")
    dimensions = dimensions or config.teacher_dimension
    if not dimensions or not scales:
        raise ValueError(
            f"{path} names no teachers: give --teacher-dimension and --logit-scale for each, in the order of the "
            "embeddings, or --distill-weight 0"
        )
    if len(scales) != len(dimensions):
        raise ValueError(
            f"--logit-scale: {len(scales)} ({', '.join(f'{scale:g}' for scale in scales)}) for {len(dimensions)} "
            f"teachers ({', '.join(names) or ', '.join(map(str, dimensions))})"
        )
    return Teachers(names or [f"teacher {number}" for number, _ in enumerate(dimensions, 1)], dimensions, scales)
