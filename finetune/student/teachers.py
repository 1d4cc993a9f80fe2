"""What a reinforced set says of its embeddings: its teachers, the size of the views, and which texts are embedded."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.student.config import StudentConfig
from finetune.tar_files import is_local_tar
from imagetext.fields import json_object
from imagetext.sample import Shard
from imagetext.stores import join, read_bytes

CONFIG, RUN = "config.json", "run.json"
PUBLISHED_SIZE = 224  # for which the views of DataCompDR and DFNDR were drawn, which come without config.json


@dataclass(frozen=True)
class Teachers:
    """The teachers of a set, in the order in which each row of its embeddings joins them.

    dimensions: how many numbers of a row belong to each teacher. logit_scales: each teacher's scale of cosines.
    """

    names: Sequence[str]
    dimensions: Sequence[int]
    logit_scales: Sequence[float]


def read_teachers(shards: Sequence[Shard], config: StudentConfig) -> Teachers | None:
    """Return the teachers that config.json beside the shards or the configuration names; None without distillation.

    Logit scales of the configuration take precedence over those of config.json.
    Raises ValueError if neither names the teachers, or if they disagree.
    """
    if not config.distill_weight:
        return None
    teachers_by_path = {}
    for folder in dict.fromkeys(os.path.dirname(shard.path) for shard in shards):
        path = join(folder, CONFIG)
        teachers = _read_config(path).get("teachers") or []
        try:
            teachers_by_path[path] = [
                (str(teacher["name"]), int(teacher["dimension"]), float(teacher["logit_scale"]))
                for teacher in teachers
            ]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}: not the config.json of a reinforced set: {error!r}") from error
    path, first = next(iter(teachers_by_path.items()))
    if differing := [other for other, teachers in teachers_by_path.items() if teachers != first]:
        other = differing[0]
        raise ValueError(f"{other} and {path} name different teachers: {teachers_by_path[other]} and {first}")
    names = [name for name, _, _ in first]
    dimensions = [dimension for _, dimension, _ in first]
    scales = config.logit_scale or [scale for _, _, scale in first]
    if dimensions and config.teacher_dimension not in ([], dimensions):
        raise ValueError(f"--teacher-dimension: {config.teacher_dimension}, but {path} says {dimensions}")
    dimensions = dimensions or config.teacher_dimension
    if not dimensions or not scales:
        raise ValueError(
            f"{path} names no teachers: give --teacher-dimension and --logit-scale for each teacher, in the order of "
            "the embeddings, or --distill-weight 0"
        )
    if len(scales) != len(dimensions):
        scale_texts = ", ".join(f"{scale:g}" for scale in scales)
        teacher_texts = ", ".join(names or map(str, dimensions))
        raise ValueError(
            f"--logit-scale: {len(scales)} ({scale_texts}) for {len(dimensions)} teachers ({teacher_texts})"
        )
    return Teachers(names or [f"teacher {number}" for number, _ in enumerate(dimensions, 1)], dimensions, scales)


def view_sizes(shards: Sequence[Shard]) -> dict[str, int]:
    """Return the side in pixels for which the views in each shard's folder were drawn.

    Raises ValueError for a config.json that cannot be read.
    """
    sizes = {}
    for folder in {os.path.dirname(shard.path) for shard in shards}:
        match _read_config(join(folder, CONFIG)):
            case {"reinforce": {"image_augmentation": {"random_resized_crop": {"size": int() as size}}}} if size > 0:
                sizes[folder] = size
            case _:
                sizes[folder] = PUBLISHED_SIZE
    return sizes


def _read_config(path: str) -> dict[str, Any]:
    """Return what a config.json says; {} if there is none."""
    try:
        return json_object(read_bytes(path))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path}: not the config.json of a reinforced set: {error!r}") from error


def check_texts(shards: Sequence[Shard]) -> None:
    """Raise ValueError for sets made with --text-from-synthetic whose `txt` files are not read.

    In such a set `text_emb` embeds the synthetic caption in `txt`, which is read from tars on this machine only.
    """
    wrong = []
    for folder in dict.fromkeys(os.path.dirname(shard.path) for shard in shards if not is_local_tar(shard)):
        try:
            run = json_object(read_bytes(join(folder, RUN))).get("fingerprint")
        except (FileNotFoundError, ValueError):  # the set was not made by capsmith
            continue
        if isinstance(run, Mapping) and run.get("text_from_synthetic"):
            wrong.append(folder)
    if wrong:
        raise ValueError(
            f"--input: {', '.join(wrong)}: was made with --text-from-synthetic, and only tars on this machine tell "
            "which caption was used; copy them here, or train with --text-weight 0"
        )
