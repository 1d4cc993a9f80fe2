"""The card of a finished set: a README.md as the Hugging Face Hub reads it."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from diversity.measures.accumulate import CaptionAccumulator
from diversity.measures.catalogue import DEGENERATE, DISTINCT, DIV, LENGTH
from generate.runs.manifest import expect_run
from generate.runs.set_card import front_matter
from generate.sets.repeats import Repeats
from imagetext import cards
from imagetext.columns import is_other_column, is_tags
from imagetext.shards import SUFFIXES
from imagetext.sources import read_records
from imagetext.stores import join

MEASURES = (LENGTH, DISTINCT[0], DISTINCT[1], DIV[1], DEGENERATE)
MEASURED_RECORDS = 1000  # of the first, the middle and the last shard each
LICENCES = 20  # the commonest licences, which are listed
NOT_UPLOADED = ["*.tmp", ".*"]


def write_card(folder: str, inputs: Sequence[str], markers: Sequence[Mapping[str, Any]]) -> None:
    """Write `README.md` of a set whose shards have these markers. Of local paths, it shows only the last part."""
    run = expect_run(folder)
    rows, failed = (sum(marker[name] for marker in markers) for name in ("rows", "failed"))
    settings = _settings(run["columns"])
    captions = {name: sum(marker["captions"].get(name, 0) for marker in markers) for name in run["columns"]}
    licences = Repeats()
    for marker in markers:
        licences.merge(Repeats.of(marker["licences"]))
    captioners = dict.fromkeys(column["captioner"] for column in run["columns"].values())
    title = f"Captions of {', '.join(inputs)} by {', '.join(captioners)}"
    has_similarity = any(
        column["similarity"] or column["gate"]["min_similarity"] is not None for column in run["columns"].values()
    )
    with suppress(FileNotFoundError):  # another process, which also saw the set complete, is writing the same bytes
        cards.write_card(
            folder,
            Path(__file__).parent / "templates" / "card.md",
            front=front_matter(title, rows, f"*{SUFFIXES[run['format']]}"),
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
            similarity=has_similarity,
            spread=_spread(folder, markers, [name for name in run["columns"] if not is_tags(name)]),
            measures=MEASURES,
        )


def push(folder: str, name: str) -> None:
    """Upload the set to the data set `org/name` on the Hub, which is created if it does not exist."""
    from huggingface_hub import HfApi

    HfApi().create_repo(name, repo_type="dataset", exist_ok=True)
    HfApi().upload_folder(repo_id=name, repo_type="dataset", folder_path=folder, ignore_patterns=NOT_UPLOADED)


def _settings(columns: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the settings of the columns; columns of the same JSON answer share one entry, with all their names."""
    groups: list[list[str]] = []
    for name, settings in columns.items():
        for group in groups:
            if columns[group[0]] == settings and name in _columns_of_fields(settings):
                group.append(name)
                break
        else:
            groups.append([name])
    return {", ".join(group): columns[group[0]] for group in groups}


def _columns_of_fields(settings: Mapping[str, Any]) -> Collection[str]:
    """Return the columns that the fields of JSON answers go to."""
    return settings.get("task", {}).get("fields", {}).values()


def _spread(
    folder: str, markers: Sequence[Mapping[str, Any]], columns: Sequence[str]
) -> list[tuple[str, int, list[str]]]:
    """Return, for each column: its name, its pictures among the measured records, and the measures as text."""
    accumulators = {name: CaptionAccumulator() for name in columns}
    for number in sorted({0, len(markers) // 2, len(markers) - 1}):
        records = list(islice(read_records(join(folder, markers[number]["file"]), check=False), MEASURED_RECORDS))
        for name, accumulator in accumulators.items():
            texts, truncated = [], []
            for record in records:
                if record_texts := record.columns.get(name):
                    texts.append(record_texts)
                    truncated.append(_truncated(record.scores, name, record_texts))
            accumulator.update(texts, truncated)
    results = {name: accumulator.result() for name, accumulator in accumulators.items()}
    return [
        (name, result["pictures"], [measure.text(result) for measure in MEASURES]) for name, result in results.items()
    ]


def _truncated(scores: Mapping[str, Mapping[str, Any]], name: str, texts: Sequence[str]) -> list[bool]:
    """Return, for each text of the column, whether its scores say that it is truncated."""
    marks = (scores.get(name) or {}).get("truncated") or []
    return [bool(mark) for mark in marks] if len(marks) == len(texts) else [False] * len(texts)
