"""Small reinforced sets whose texts and embeddings encode their origin, and students with few weights."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imagetext.reinforced.embeddings import pack
from imagetext.reinforced.views import write_views

DIMENSIONS, SCALES = (3, 2), (50.0, 20.0)
VIEWS = 4
COLUMNS = {"syn_text_a": 2, "syn_text_b": 3}
STUDENT = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
RESNET = STUDENT | {"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}}


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((40, 30), Image.BICUBIC).save(file, "PNG")
    return file.getvalue()


def views(record: int) -> list:
    return [[[view, record, 20, 20 + view], [[6, 0.1 * view], [5, 9.0]]] for view in range(VIEWS)]


def row(*numbers: int) -> list[float]:
    """Return a text's embeddings: three numbers of the first teacher and two of the second."""
    return [*map(float, numbers), 1.0, 2.0]


def members(
    record: int,
    *,
    layout: str = "newer",
    kind: str = "npz",
    originals: Tensor | None = None,
    negatives: dict[str, list[str]] | None = None,
) -> dict[str, bytes | None]:
    """Return the files of a record, whose texts and embeddings encode their origin.

    The text `0 RECORD 0` is the original caption; `COLUMN RECORD ROW` are the others.
    originals: other embeddings of the original captions. negatives: columns of hard negatives.
    """
    columns = {
        name: [f"{number} {record} {index}" for index in range(count)]
        for number, (name, count) in enumerate(COLUMNS.items(), 1)
    }
    rows = {name: torch.tensor([row(*map(int, text.split())) for text in texts]) for name, texts in columns.items()}
    originals = torch.tensor([row(0, record, 0)]) if originals is None else originals
    embeddings = {"image_emb": torch.tensor([row(9, record, view) for view in range(VIEWS)]), "text_emb": originals}
    if layout == "newer":
        embeddings |= {f"{name}_emb": tensor for name, tensor in rows.items()}
    else:
        embeddings["text_emb"] = torch.cat([embeddings["text_emb"], *rows.values()])
    text = f"0 {record} 0"
    fields = {"uid": f"r{record}", "captions": [text], "error": "", "source": "elsewhere/x.png"}
    if negatives is not None:  # our own writers also write all of these
        fields |= {"sha256": "", "width": 40, "height": 30, "caption_scores": {}, "caption_fields": negatives}
    return {
        "jpg": picture(record),
        "txt": text.encode(),
        "syn.json": json.dumps(columns).encode(),
        "json": json.dumps(fields).encode(),
        "paug.json": write_views(views(record)),
        kind: pack(embeddings, kind),
    }


def write_tar(path: Path, records: dict[str, dict[str, bytes | None]]) -> str:
    """Write a shard of records by key, without files that are None, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, files in records.items():
            for suffix, data in files.items():
                if data is not None:
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return str(path)


def write_config(folder: Path, dimensions=DIMENSIONS, scales=SCALES) -> None:
    teachers = [
        {"name": f"teacher_{number}", "dimension": dimension, "logit_scale": scale}
        for number, (dimension, scale) in enumerate(zip(dimensions, scales, strict=True), 1)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"teachers": teachers}))


def write_set(folder: Path, count: int = 6, *, negatives: bool = False, **how) -> str:
    """Write a set of two shards, and return its input spec; with negatives, three of four records have one."""
    write_config(folder)
    for shard in range(2):
        records = range(shard, count, 2)
        columns = {record: {"neg_text_a": [f"3 {record} 0"] if record % 4 else []} for record in records if negatives}
        write_tar(
            folder / f"{shard:05}.tar",
            {f"r{record:03}": members(record, negatives=columns.get(record), **how) for record in records},
        )
    return str(folder / "*.tar")


def write_student(folder: Path, model_cfg=STUDENT) -> str:
    """Write a folder with a configuration and without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))
    return str(folder)
