"""The peers of `readers.py`, each in its own environment: what a reader returns for each record, in a common form.

This file imports nothing of ours. Its argument is a JSON object: `reader`, the name of a function below, and the
arguments of that function. It prints `version` and `rows`. A row is a pair of a key and the fields that the reader
returns, out of these: `picture` (SHA-256 of the file), `pixels` (SHA-256), `text`, `columns`, `all_columns` (with
those of failed records), `others` (columns that are not captions), `error`, `views` or `rounded_views` (to 10
decimals), `embeddings` (SHA-256 of float32 numbers), and `files` (SHA-256).
"""

import hashlib
import json
import os
import sys
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np


def sha(data):
    return None if data is None else hashlib.sha256(data).hexdigest()


def embeddings(arrays):
    """Hashes of the embeddings by name; missing ones are left out."""
    return {
        name: sha(np.asarray(rows, dtype=np.float32).tobytes())
        for name, rows in (arrays or {}).items()
        if rows is not None
    }


def columns(fields):
    """Captions by column; columns without captions are left out."""
    return {
        name: list(texts)
        for name, texts in (fields or {}).items()
        if name.startswith("syn_text") and not name.endswith("_emb") and texts
    }


# ---- webdataset -----------------------------------------------------------------------------------------------------


def webdataset(shards):
    """Every file of every sample, not decoded."""
    import webdataset as wds

    for sample in wds.WebDataset(shards, shardshuffle=False):
        files = {name: data for name, data in sample.items() if not name.startswith("__")}
        yield sample["__key__"], {"files": {name: sha(data) for name, data in files.items()}}


def webdataset_pairs(shards):
    """Picture and text of the samples that have both; `to_tuple` raises for the others, and they are skipped."""
    import webdataset as wds

    pipeline = (
        wds.WebDataset(shards, shardshuffle=False)
        .decode("pilrgb")
        .to_tuple("__key__", "jpg", "txt", "syn.json", handler=wds.ignore_and_continue)
    )
    for key, image, text, syn_text in pipeline:
        yield key, {"pixels": sha(image.tobytes()), "text": text, "columns": columns(syn_text)}


# ---- datasets -------------------------------------------------------------------------------------------------------


def load(builder, files, streaming, *, features, cache, picture):
    import datasets

    options = {} if features is None else {"features": datasets.Features.from_dict(features)}
    rows = datasets.load_dataset(
        builder, data_files=files, split="train", streaming=streaming, cache_dir=cache, **options
    )
    for row in rows:  # check that all pictures decode
        if not isinstance(row[picture], str | None):
            row[picture].load()
    return rows.cast_column(picture, datasets.Image(decode=False)) if builder != "json" else rows


def datasets_webdataset(files, streaming, cache, features=None):
    for row in load("webdataset", files, streaming, features=features, cache=cache, picture="jpg"):
        fields = {
            "picture": row["jpg"] and sha(row["jpg"]["bytes"]),
            "text": row["txt"],
            "columns": columns(row["syn.json"]),
            "others": {name: texts for name, texts in (row["json"].get("caption_fields") or {}).items() if texts},
            "error": row["json"]["error"],
        }
        for name in {"npz", "pth.gz"} & row.keys():
            fields |= {
                "embeddings": embeddings(row[name]),
                "rounded_views": (row["paug.json"] or {}).get("param_aug", []),
            }
        yield row["__key__"], fields


def datasets_parquet(files, streaming, cache):
    for row in load("parquet", files, streaming, features=None, cache=cache, picture="image"):
        yield (
            row["key"],
            {
                "picture": row["image"] and sha(row["image"]["bytes"]),
                "captions": row["captions"],
                "all_columns": columns(row),
                "error": row["error"],
            },
        )


def datasets_jsonl(files, streaming, cache):
    """The pictures of JSONL are paths relative to the file."""
    folder = os.path.dirname(files[0])
    for row in load("json", files, streaming, features=None, cache=cache, picture="image"):
        picture = None
        if row["image"] is not None:
            with open(os.path.join(folder, row["image"]), "rb") as file:
                picture = file.read()
        yield (
            row["key"],
            {"picture": sha(picture), "captions": row["captions"], "all_columns": columns(row), "error": row["error"]},
        )


# ---- open_clip ------------------------------------------------------------------------------------------------------


def open_clip(shards, pairs, train):
    """The samples on which open_clip's own pipeline would train; it returns no keys."""
    import torch
    from open_clip_train.data import get_wds_dataset

    args = SimpleNamespace(
        train_data=shards,
        val_data=shards,
        train_num_samples=pairs,
        val_num_samples=pairs,
        batch_size=1,
        workers=0,
        world_size=1,
        seed=0,
        dataset_resampled=False,
        train_data_upsampling_factors=None,
    )

    def pixels_hash(image):
        return torch.frombuffer(bytearray(hashlib.sha256(image.tobytes()).digest()), dtype=torch.uint8)

    loader = get_wds_dataset(args, pixels_hash, is_train=train, tokenizer=lambda text: [text]).dataloader
    for pictures, texts in loader:
        yield "", {"pixels": bytes(pictures[0].tolist()).hex(), "text": texts[0]}


# ---- ml-mobileclip-dr -----------------------------------------------------------------------------------------------


def raygen(shards):
    from raygen.datasetio import get_reader

    for path in shards:
        with open(path, "rb") as file:
            for item in get_reader(path).shard_iterator(file):
                fields = {"all_columns": columns(item), "error": item["error"]}
                if path.endswith(".tar"):
                    stored = {
                        name: rows.float() if hasattr(rows, "float") else rows
                        for name, rows in item.items()
                        if name.endswith("_emb")
                    }
                    fields |= {
                        "picture": sha(item.get("image")),
                        "text": item.get("text"),
                        "embeddings": embeddings(stored),
                        "views": item.get("param_aug", []),
                    }
                yield item["uid"], fields


READERS = {
    reader.__name__: (package, reader)
    for package, reader in (
        ("webdataset", webdataset),
        ("webdataset", webdataset_pairs),
        ("datasets", datasets_webdataset),
        ("datasets", datasets_parquet),
        ("datasets", datasets_jsonl),
        ("open_clip_torch", open_clip),
        ("ray", raygen),
    )
}


def main() -> None:
    options = json.loads(sys.argv[1])
    package, reader = READERS[options.pop("reader")]
    answer = {"version": f"ray {version(package)}" if package == "ray" else version(package)}  # raygen has no version
    try:
        answer["rows"] = list(reader(**options))
    except Exception as error:  # that a reader fails is an answer, too
        while error.__cause__:
            error = error.__cause__
        answer["failed"] = f"{type(error).__name__}: {error}"
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
