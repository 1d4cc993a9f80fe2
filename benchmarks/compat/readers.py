"""Readers of other projects read our records: `python -m benchmarks.compat.readers [--raygen-python PATH]`.

Each reader runs in its own environment under runs/peers and reports what it saw of each record. This is compared with
the content of the tar files, as the standard library reads them. Exit code 1 means that a reader saw something else.

PATH is the interpreter of an environment that can import `raygen` of apple/ml-mobileclip-dr: commit 418551d, with ray,
torch, webdataset 0.2.111 and the other packages of its pyproject.toml. raygen imports `notary_client.conductor`, which
is not published; an empty module is enough. Without PATH, raygen's reader is skipped.
"""

import argparse
import gzip
import hashlib
import io
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.compat.sets import (
    COLUMNS,
    OTHERS,
    RUNS,
    Set,
    make_captioned,
    make_reinforced,
    run,
    with_others,
    write_teachers,
)
from benchmarks.side_by_side import Peer, peer_python
from imagetext.reinforced.views import decode_stored
from imagetext.shards import dataset_features

SCRIPT = "compat/readers_peer.py"
PILLOW = f"pillow=={version('pillow')}"  # another version may decode to other pixels
REQUIREMENTS = {
    "readers": ("datasets==5.2.0", "webdataset==1.0.2", PILLOW),
    "open_clip_training": ("open_clip_torch[training]==3.3.0", PILLOW),
}


class Reading(NamedTuple):
    """A reader, how it is called, the set that it reads, and what it should report."""

    reader: str
    form: str
    python: Path
    options: dict[str, Any]
    records: Set
    keys: Sequence[str] | None  # keys of the records that it should return; None: it should fail
    failed: str  # how it treats failed records
    text: str  # which texts one can train on


def sha(data: bytes | None) -> str | None:
    return None if data is None else hashlib.sha256(data).hexdigest()


def stored_embeddings(files: Mapping[str, bytes]) -> dict[str, np.ndarray]:
    """A record's embeddings, read by numpy and torch."""
    if "npz" in files:
        return dict(np.load(io.BytesIO(files["npz"])))
    if "pth.gz" in files:
        tensors = torch.load(io.BytesIO(gzip.decompress(files["pth.gz"])), weights_only=True)
        return {name: rows.float().numpy() for name, rows in tensors.items()}
    return {}


def expected(key: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    """All fields that a reader can report of a record, computed from the record's files."""
    meta, columns = json.loads(files["json"]), json.loads(files["syn.json"])
    good, views = not meta["error"], files.get("paug.json", b'{"param_aug": []}')
    return {
        "picture": sha(files.get("jpg")),
        "pixels": sha(decode_stored(files["jpg"]).tobytes()) if good else None,
        "text": files["txt"].decode() if "txt" in files else None,
        "captions": meta["captions"],
        "columns": columns,
        "all_columns": columns | {name: texts for name, texts in meta.items() if name.startswith("syn_text")},
        "others": {name: texts for name, texts in meta.get("caption_fields", {}).items() if texts},
        "error": meta["error"],
        "views": json.loads(views)["param_aug"],
        "rounded_views": json.loads(views, parse_float=lambda number: round(float(number), 10))["param_aug"],
        "embeddings": {name: sha(rows.tobytes()) for name, rows in stored_embeddings(files).items()},
        "files": {name: sha(data) for name, data in files.items()},
    }


def differences(reading: Reading, answer: Mapping[str, Any]) -> list[str]:
    """Differences between the reader's rows and the set, in all fields that the reader reports."""
    if reading.keys is None:
        return [] if "failed" in answer else ["the reader should fail on this set, but reads it"]
    if "failed" in answer:
        return [answer["failed"]]
    records = reading.records.records
    fields = answer["rows"][0][1].keys() if answer["rows"] else ()
    rows = []
    for key in reading.keys:
        values = {name: value for name, value in expected(key, records[key]).items() if name in fields}
        rows.append([reported_key(reading, key), values])
    expected_rows = sorted(json.dumps(row, sort_keys=True) for row in rows)
    reported_rows = sorted(json.dumps(row, sort_keys=True) for row in answer["rows"])
    problems = []
    if len(reported_rows) != len(expected_rows):
        problems.append(f"{len(reported_rows)} rows, not {len(expected_rows)}")
    for expected_row, reported_row in zip(expected_rows, reported_rows):
        (key, values), (reported, reported_values) = json.loads(expected_row), json.loads(reported_row)
        if key != reported:
            return [*problems, f"{reported!r} in the place of {key!r}"]
        problems += [
            f"{key}: {field}: {str(reported_values.get(field))[:100]}, not {str(value)[:100]}"
            for field, value in values.items()
            if reported_values.get(field) != value
        ]
    return problems


def reported_key(reading: Reading, key: str) -> str:
    """The key that the reader reports for the record.

    open_clip reports none. ml-mobileclip-dr reports the `uid` of the `json`, if the record has no later file in its
    tar.
    """
    files = reading.records.records[key]
    if reading.reader == "open_clip":
        return ""
    if reading.reader == "ml-mobileclip-dr" and ("jsonl" in reading.form or list(files)[-1] == "json"):
        return json.loads(files["json"])["uid"]
    return key


def readings(captioned: Path, reinforced: Mapping[str, Path], raygen_python: Path | None) -> Iterator[Reading]:
    """All readings of the sets in these folders."""
    sets = {
        "captions": Set(captioned),
        "captions beside negatives": Set(captioned.parent / "others" / "joined"),
        **{f"reinforced, {name}": Set(folder) for name, folder in reinforced.items()},
    }
    readers, training = (peer_python(name, requirements) for name, requirements in REQUIREMENTS.items())
    captions = sets["captions"]
    cache = str(RUNS.resolve() / "readers" / "cache")
    for name, records in sets.items():
        shards, everything = list(map(str, records.shards)), list(records.records)
        yield Reading(
            "webdataset",
            f"{name}: files",
            readers,
            options={"reader": "webdataset", "shards": shards},
            records=records,
            keys=everything,
            failed="seen: no jpg, no txt",
            text="any",
        )
        yield Reading(
            "webdataset",
            f'{name}: to_tuple("jpg", "txt", "syn.json")',
            readers,
            options={"reader": "webdataset_pairs", "shards": shards},
            records=records,
            keys=list(records.pairs),
            failed="passed over",
            text="any",
        )
        embeddings = next((kind for kind in reinforced if name.endswith(kind)), None)
        columns = (*COLUMNS, *OTHERS) if "negatives" in name else COLUMNS
        features = dataset_features(columns, similarity=True, embeddings=embeddings).to_dict()
        for streaming in (False, True):
            options = {"reader": "datasets_webdataset", "files": shards, "streaming": streaming, "cache": cache}
            form = f"{name}: webdataset{', streaming' if streaming else ''}"
            yield Reading(
                "datasets",
                f"{form}, columns inferred",
                readers,
                options=options,
                records=records,
                keys=everything if name.startswith("captions") else None,
                failed="seen: None",
                text="any",
            )
            yield Reading(
                "datasets",
                f"{form}, dataset_features",
                readers,
                options=options | {"features": features},
                records=records,
                keys=everything,
                failed="seen: None",
                text="any",
            )
        for train in (False, True):
            options = {"reader": "open_clip", "shards": "::".join(shards), "pairs": len(records.pairs), "train": train}
            yield Reading(
                "open_clip",
                f"{name}: get_wds_dataset, {'training' if train else 'validation'}",
                training,
                options=options,
                records=records,
                keys=list(records.pairs),
                failed="passed over",
                text="txt alone",
            )
        if raygen_python:
            yield Reading(
                "ml-mobileclip-dr",
                f"{name}: tar",
                raygen_python,
                options={"reader": "raygen", "shards": shards},
                records=records,
                keys=everything,
                failed="seen: no image",
                text="any",
            )
    joined = Set(captioned.parent / "joined")
    yield Reading(
        "open_clip",
        f"captions, joined with --text-from {COLUMNS[0]}:1: get_wds_dataset, training",
        training,
        options={
            "reader": "open_clip",
            "shards": "::".join(map(str, joined.shards)),
            "pairs": len(joined.pairs),
            "train": True,
        },
        records=joined,
        keys=list(joined.pairs),
        failed="passed over",
        text=f"{COLUMNS[0]}, as txt",
    )
    for form in ("jsonl", "parquet"):
        files = sorted(map(str, (captioned.parent / form).glob(f"*.{form}")))
        for streaming in (False, True):
            yield Reading(
                "datasets",
                f"captions: {form}{', streaming' if streaming else ''}",
                readers,
                options={"reader": f"datasets_{form}", "files": files, "streaming": streaming, "cache": cache},
                records=captions,
                keys=list(captions.records),
                failed="seen: None",
                text="any",
            )
        if raygen_python and form == "jsonl":
            yield Reading(
                "ml-mobileclip-dr",
                "captions: jsonl",
                raygen_python,
                options={"reader": "raygen", "shards": files},
                records=captions,
                keys=list(captions.records),
                failed="seen",
                text="any; pictures are paths, which it does not open",
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raygen-python", type=Path, help="interpreter of ml-mobileclip-dr's environment")
    raygen_python = parser.parse_args().raygen_python
    folder = (RUNS / "readers").resolve()
    shutil.rmtree(folder, ignore_errors=True)
    captioned = make_captioned(folder / "captioned", "jsonl", "parquet")
    run(
        "join",
        "--input",
        str(captioned / "*.tar"),
        "--output",
        str(captioned.parent / "joined"),
        "--text-from",
        f"{COLUMNS[0]}:1",
    )
    with_others(captioned.parent / "others", Set(captioned))
    teachers = write_teachers(folder / "teachers")
    reinforced = {
        kind: make_reinforced(folder / kind, captioned, teachers, options=["--embeddings", kind])
        for kind in ("npz", "pth.gz")
    }
    records, joined = Set(captioned), Set(captioned.parent / "joined")
    columns = {key: json.loads(joined.records[key]["syn.json"])[COLUMNS[0]] for key in joined.pairs}
    if wrong_keys := [key for key, text in joined.pairs.items() if text not in columns[key]]:
        raise RuntimeError(f"joined: the txt of {', '.join(wrong_keys)} is not a caption of {COLUMNS[0]}")
    table = Table(
        "reader",
        "version",
        "read",
        "rows",
        "failed ones",
        "text",
        title=(
            f"{len(records.records)} records, {len(records.failed)} failed, {len(records.pairs)} with picture and text"
        ),
    )
    wrong = 0
    for reading in readings(captioned, reinforced, raygen_python):
        with Peer(reading.python, SCRIPT, **reading.options) as peer:
            answer = peer.ready
        problems = differences(reading, answer)
        wrong += bool(problems)
        rows = "cannot" if reading.keys is None else f"{len(answer.get('rows', ()))} of {len(reading.records.records)}"
        table.add_row(
            reading.reader,
            answer["version"],
            reading.form,
            "[red]differs[/]" if problems else rows,
            reading.failed,
            reading.text,
        )
        details = [answer["failed"]] if "failed" in answer else problems[:4]
        print(f"{reading.reader} {answer['version']}, {reading.form}: {rows}", *details, sep="\n  ", flush=True)
    Console(width=150).print(table)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
