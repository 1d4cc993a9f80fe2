"""The card of a set whose records come from another set: a README.md that names its files to the Hugging Face Hub."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Any

from imagetext import cards
from imagetext.shards import dataset_features
from imagetext.sources import read_records
from imagetext.stores import join

SIZES = (
    ("n<1K", 1e3),
    ("1K<n<10K", 1e4),
    ("10K<n<100K", 1e5),
    ("100K<n<1M", 1e6),
    ("1M<n<10M", 1e7),
    ("10M<n<100M", 1e8),
    ("100M<n<1B", 1e9),
)


def front_matter(title: str, rows: int, data_files: str | Sequence[str]) -> dict[str, Any]:
    """Return the header of a set's card. data_files: patterns of the files that hold its records."""
    return {
        "pretty_name": title,
        "task_categories": ["image-to-text"],
        "tags": ["image-captioning", "synthetic-captions", "capsmith"],
        "size_categories": [next((name for name, end in SIZES if rows < end), "n>1B")],
        "configs": [{"config_name": "default", "data_files": data_files}],
    }


def write_set_card(
    folder: str, command: str, title: str, markers: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> None:
    """Write `README.md` of a complete set whose shards have these markers. command: the one that made the set."""
    rows, failed = (sum(marker[name] for marker in markers) for name in ("rows", "failed"))
    files = [marker["file"] for marker in markers if marker["rows"]]
    with suppress(FileNotFoundError):  # another process, which also saw the set complete, is writing the same bytes
        cards.write_card(
            folder,
            Path(__file__).parent / "templates" / "set.md",
            front=front_matter(title, rows, patterns_of(files)) | reinforced_columns(folder, markers),
            settings=settings,
            title=title,
            command=command,
            rows=rows,
            failed=failed,
            files=len(markers),
            format=markers[0]["format"] if markers else "",
        )


def reinforced_columns(folder: str, markers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The part of a card's header that states the columns of reinforced tars, which `datasets` cannot find out.

    {} for all other sets.
    """
    tars = [marker for marker in markers if marker["format"] == "webdataset" and marker["rows"] > marker["failed"]]
    if not tars:
        return {}
    record = next(read_records(join(folder, tars[0]["file"]), check=False))  # failed records come last
    if "paug.json" not in record.members:
        return {}
    from datasets import Json
    from datasets.info import DatasetInfo, DatasetInfosDict
    from huggingface_hub import DatasetCardData

    columns = list(dict.fromkeys(name for marker in markers for name in marker["captions"]))
    embeddings: Any = next((name for name in ("npz", "pth.gz") if name in record.members), None)
    features = dataset_features(columns, similarity=True, embeddings=embeddings)
    features.update({"paug.json": Json()})
    card = DatasetCardData()
    DatasetInfosDict(default=DatasetInfo(features=features)).to_dataset_card_data(card)
    return {"dataset_info": card["dataset_info"]}


def patterns_of(files: Sequence[str]) -> list[str]:
    """Return patterns that match these shards, and no list of rejected records beside them.

    Shards whose names differ only in numbers share a pattern.
    """
    return list(dict.fromkeys(re.sub(r"\d+", "[0-9]*", escape(file)) for file in files))
