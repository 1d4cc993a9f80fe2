"""Our records in the hands of others' readers: `python -m benchmarks.compat.readers [--raygen-python PATH]`.

Each reader runs in an environment of its own under runs/peers and says what it saw of each record; that is compared with what
stands in the tar files, as the standard library reads them. Exit code 1: a reader saw something else than it should.

PATH is an interpreter in whose environment `raygen` of apple/ml-mobileclip-dr can be imported: commit 418551d, with ray, torch,
webdataset 0.2.111 and what else its pyproject.toml names; `notary_client.conductor`, which it imports and does not publish, may
be an empty module. Without PATH its reader is left out.
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
PILLOW = f"pillow=={version('pillow')}"  # another decoder's pixels may be others
REQUIREMENTS = {
    "readers": ("datasets==5.2.0", "webdataset==1.0.2", PILLOW),
    "open_clip_training": ("open_clip_torch[training]==3.3.0", PILLOW),
}


class Reading(NamedTuple):
    """A reader, how it is called, the set that it is given, and what it should see."""

    reader: str
    form: str
    python: Path
    options: dict[str, Any]
    records: Set
    keys: Sequence[str] | None  # of the records that it should give; None: it should fail
    failed: str  # what it does with failed records
    text: str  # what is trained on


def sha(data: bytes | None) -> str | None:
    return None if data is None else hashlib.sha256(data).hexdigest()


def stored_embeddings(files: Mapping[str, bytes]) -> dict[str, np.ndarray]:
    """A record's embeddings, by numpy's and torch's own readers."""
    if "npz" in files:
        return dict(np.load(io.BytesIO(files["npz"])))
    if "pth.gz" in files:
        tensors = torch.load(io.BytesIO(gzip.decompress(files["pth.gz"])), weights_only=True)
        return {name: rows.float().numpy() for name, rows in tensors.items()}
    return {}


def expected(key: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    """All that a reader can say of a record, from its files."""
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
    """What the reader saw that is not as it should be; nothing is left out of account but fields that it does not give."""
    if reading.keys is None:
        return [] if "failed" in answer else ["reads what it is said to fail on"]
    if "failed" in answer:
        return [answer["failed"]]
    found, records = answer["rows"], reading.records.records
    fields = found[0][1].keys() if found else ()
    wanted = [
        [named(reading, key), {name: value for name, value in expected(key, records[key]).items() if name in fields}]
        for key in reading.keys
    ]
    wanted, found = (sorted(json.dumps(row, sort_keys=True) for row in rows) for rows in (wanted, found))
    problems = [] if len(found) == len(wanted) else [f"{len(found)} rows, not {len(wanted)}"]
    for (name, mine), (other, theirs) in zip(map(json.loads, wanted), map(json.loads, found)):
        if name != other:
            return [*problems, f"{other!r} in the place of {name!r}"]
        problems += [
            f"{name}: {field}: {str(theirs.get(field))[:100]}, not {str(value)[:100]}"
            for field, value in mine.items()
            if theirs.get(field) != value
        ]
    return problems


def named(reading: Reading, key: str) -> str:
    """What the reader calls the record: open_clip nothing, ml-mobileclip-dr by `json` where in a tar no file follows that."""
    files = reading.records.records[key]
    by_json = reading.reader == "ml-mobileclip-dr" and ("jsonl" in reading.form or list(files)[-1] == "json")
    return "" if reading.reader == "open_clip" else json.loads(files["json"])["uid"] if by_json else key


def readings(captioned: Path, reinforced: Mapping[str, Path], raygen_python: Path | None) -> Iterator[Reading]:
    """What is to be read by whom, on the sets in these folders."""
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
            {"reader": "webdataset", "shards": shards},
            records,
            everything,
            "seen: no jpg, no txt",
            "any",
        )
        yield Reading(
            "webdataset",
            f'{name}: to_tuple("jpg", "txt", "syn.json")',
            readers,
            {"reader": "webdataset_pairs", "shards": shards},
            records,
            list(records.pairs),
            "passed over",
            "any",
        )
        embeddings = next((kind for kind in reinforced if name.endswith(kind)), None)
        columns = (*COLUMNS, *OTHERS) if "negatives" in name else COLUMNS
        features = dataset_features(columns, similarity=True, embeddings=embeddings).to_dict()
        for streaming in (False, True):
            options = {"reader": "datasets_webdataset", "files": shards, "streaming": streaming, "cache": cache}
            how = f"{name}: webdataset{', streaming' if streaming else ''}"
            yield Reading(
                "datasets",
                f"{how}, columns inferred",
                readers,
                options,
                records,
                everything if name.startswith("captions") else None,
                "seen: None",
                "any",
            )
            yield Reading(
                "datasets",
                f"{how}, dataset_features",
                readers,
                options | {"features": features},
                records,
                everything,
                "seen: None",
                "any",
            )
        for train in (False, True):
            options = {"reader": "open_clip", "shards": "::".join(shards), "pairs": len(records.pairs), "train": train}
            yield Reading(
                "open_clip",
                f"{name}: get_wds_dataset, {'training' if train else 'validation'}",
                training,
                options,
                records,
                list(records.pairs),
                "passed over",
                "txt alone",
            )
        if raygen_python:
            yield Reading(
                "ml-mobileclip-dr",
                f"{name}: tar",
                raygen_python,
                {"reader": "raygen", "shards": shards},
                records,
                everything,
                "seen: no image",
                "any",
            )
    joined = Set(captioned.parent / "joined")
    yield Reading(
        "open_clip",
        f"captions, joined with --text-from {COLUMNS[0]}:1: get_wds_dataset, training",
        training,
        {
            "reader": "open_clip",
            "shards": "::".join(map(str, joined.shards)),
            "pairs": len(joined.pairs),
            "train": True,
        },
        joined,
        list(joined.pairs),
        "passed over",
        f"{COLUMNS[0]}, as txt",
    )
    for form in ("jsonl", "parquet"):
        files = sorted(map(str, (captioned.parent / form).glob(f"*.{form}")))
        for streaming in (False, True):
            yield Reading(
                "datasets",
                f"captions: {form}{', streaming' if streaming else ''}",
                readers,
                {"reader": f"datasets_{form}", "files": files, "streaming": streaming, "cache": cache},
                captions,
                list(captions.records),
                "seen: None",
                "any",
            )
        if raygen_python and form == "jsonl":
            yield Reading(
                "ml-mobileclip-dr",
                "captions: jsonl",
                raygen_python,
                {"reader": "raygen", "shards": files},
                captions,
                list(captions.records),
                "seen",
                "any; pictures are paths, which it does not open",
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
        kind: make_reinforced(folder / kind, captioned, teachers, "--embeddings", kind) for kind in ("npz", "pth.gz")
    }
    records, joined = Set(captioned), Set(captioned.parent / "joined")
    columns = {key: json.loads(joined.records[key]["syn.json"])[COLUMNS[0]] for key in joined.pairs}
    if other := [key for key, text in joined.pairs.items() if text not in columns[key]]:
        raise RuntimeError(f"joined: txt of {', '.join(other)} is no caption of {COLUMNS[0]}")
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
        said = [answer["failed"]] if "failed" in answer else problems[:4]
        print(f"{reading.reader} {answer['version']}, {reading.form}: {rows}", *said, sep="\n  ", flush=True)
    Console(width=150).print(table)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
