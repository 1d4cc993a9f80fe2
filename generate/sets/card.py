"""The card of a finished set: a README.md as the Hugging Face Hub reads it."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from diversity.measures.accumulate import CaptionAccumulator
from diversity.measures.catalogue import DEGENERATE, DISTINCT, DIV, LENGTH
from generate.runs.manifest import expect_run
from generate.sets.repeats import Repeats
from imagetext import cards
from imagetext.columns import is_other_column, is_tags
from imagetext.sources import read_records
from imagetext.stores import join

MEASURES = (LENGTH, DISTINCT[0], DISTINCT[1], DIV[1], DEGENERATE)
MEASURED_RECORDS = 1000  # of the first shard, of the middle one and of the last
LICENCES = 20  # the commonest that are named
KEPT_OUT = ["*.tmp", ".*"]  # of an upload


def write_card(folder: str, inputs: Sequence[str], markers: Sequence[Mapping[str, Any]]) -> None:
    """Write `README.md` of a set whose shards have these markers; of paths on this machine it holds only the last part."""
    run = expect_run(folder)
    rows, failed = (sum(marker[name] for marker in markers) for name in ("rows", "failed"))
    settings = _settings(run["columns"])
    captions = {name: sum(marker["captions"].get(name, 0) for marker in markers) for name in run["columns"]}
    licences = Repeats()
    for marker in markers:
        licences.merge(Repeats.of(marker["licences"]))
    captioners = dict.fromkeys(column["captioner"] for column in run["columns"].values())
    title = f"Captions of {', '.join(inputs)} by {', '.join(captioners)}"
    with suppress(FileNotFoundError):  # another process has found the set whole, too, and written these very bytes
        cards.write_card(
            folder,
            Path(__file__).parent / "templates" / "card.md",
            front=_front(title, run, rows),
            settings=settings,
            groups=settings,
            captioners=", ".join(captioners),
            others=list(filter(is_other_column, run["columns"])),
            untrue=", ".join(name for name in run["columns"] if name.startswith("neg_")),
            title=title,
            run=run,
            rows=rows,
            failed=failed,
            captions=captions,
            files=[marker["file"] for marker in markers],
            licences=licences.most(LICENCES),
            more_licences=licences.absent > 0 or len(licences.counts) > LICENCES,
            similarity=any(
                of["similarity"] or of["gate"]["min_similarity"] is not None for of in run["columns"].values()
            ),
            spread=_spread(folder, markers, [name for name in run["columns"] if not is_tags(name)]),
            measures=MEASURES,
        )


def push(folder: str, name: str) -> None:
    """Upload the set to the Hub's data set `org/name`, which is made where there is none."""
    from huggingface_hub import HfApi

    HfApi().create_repo(name, repo_type="dataset", exist_ok=True)
    HfApi().upload_folder(repo_id=name, repo_type="dataset", folder_path=folder, ignore_patterns=KEPT_OUT)


def _settings(columns: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The settings of columns; those of one answer stand once, under the names of all its columns."""
    names: list[list[str]] = []
    for name, of in columns.items():
        alike = next((others for others in names if columns[others[0]] == of and name in _fields(of)), None)
        alike.append(name) if alike else names.append([name])
    return {", ".join(others): columns[others[0]] for others in names}


def _fields(of_column: Mapping[str, Any]) -> Collection[str]:
    """The columns that the fields of its answers go to."""
    return of_column.get("task", {}).get("fields", {}).values()


def _front(title: str, run: Mapping[str, Any], rows: int) -> dict[str, Any]:
    sizes = (
        ("n<1K", 1e3),
        ("1K<n<10K", 1e4),
        ("10K<n<100K", 1e5),
        ("100K<n<1M", 1e6),
        ("1M<n<10M", 1e7),
        ("10M<n<100M", 1e8),
        ("100M<n<1B", 1e9),
    )
    suffix = {"webdataset": "tar"}.get(run["format"], run["format"])
    return {
        "pretty_name": title,
        "task_categories": ["image-to-text"],
        "tags": ["image-captioning", "synthetic-captions", "capsmith"],
        "size_categories": [next((name for name, end in sizes if rows < end), "n>1B")],
        "configs": [{"config_name": "default", "data_files": f"*.{suffix}"}],
    }


def _spread(
    folder: str, markers: Sequence[Mapping[str, Any]], columns: Sequence[str]
) -> list[tuple[str, int, list[str]]]:
    """Each column's name, its pictures among some records of some shards, and the measures over these as text."""
    accumulators = {name: CaptionAccumulator() for name in columns}
    for number in sorted({0, len(markers) // 2, len(markers) - 1}):
        records = list(islice(read_records(join(folder, markers[number]["file"]), check=False), MEASURED_RECORDS))
        for name, accumulator in accumulators.items():
            of_column = [
                (texts, _cut(record.scores, name, texts)) for record in records if (texts := record.columns.get(name))
            ]
            accumulator.update([texts for texts, _ in of_column], [cut for _, cut in of_column])
    results = {name: accumulator.result() for name, accumulator in accumulators.items()}
    return [
        (name, result["pictures"], [measure.text(result) for measure in MEASURES]) for name, result in results.items()
    ]


def _cut(scores: Mapping[str, Mapping[str, Any]], name: str, texts: Sequence[str]) -> list[bool]:
    marks = (scores.get(name) or {}).get("truncated") or []
    return [bool(mark) for mark in marks] if len(marks) == len(texts) else [False] * len(texts)
