"""`capsmith verify DIR`: is a finished set whole? Files against markers, records against counts, keys over all shards."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import CliPositionalArg
from tqdm import tqdm

from generate.config import Folder
from generate.manifest import expect_run
from generate.repeats import Repeats
from imagetext.sample import decode_image
from imagetext.shards import MARKER, SUFFIXES
from imagetext.sources import read_records
from imagetext.stores import join, listing, open_file, read_bytes

SHOWN = 50        # problems that are printed
MOST_COMMON = 3   # captions of a column that are printed


class VerifyConfig(BaseModel):
    """Check a finished set: files, counts, keys, every record, captions that repeat over many pictures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: CliPositionalArg[Folder] = Field(description="what capsmith generate wrote")
    decode: bool = Field(False, description="decode every picture, too")
    most_repeated: float = Field(0.05, gt=0, le=1, description="share of the pictures; a caption that stands for it is a problem")


def run(config: VerifyConfig) -> int:
    """Print what the set holds and what is wrong with it; 0 where nothing is, 1 where something is.

    Raises: ValueError where the folder holds no run.
    """
    expect_run(config.folder)
    names = sorted(os.path.basename(one.path) for one in listing(config.folder) if not one.is_folder)
    markers = [name for name in names if name.endswith(MARKER)]
    problems, keys, rows, repeats = [], [], 0, {}
    for name in tqdm(markers, desc="verifying", unit="shard", disable=None):
        try:
            marker = json.loads(read_bytes(join(config.folder, name)))
            found = read_shard(join(config.folder, marker["file"]), marker, decode=config.decode)
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.append(f"{name}: {error}")
            continue
        problems += found.problems
        keys.append(found.keys)
        rows += len(found.keys)
        for name, of_shard in found.repeats.items():
            repeats.setdefault(name, Repeats()).merge(of_shard)
    problems += repeated_keys(keys)
    problems += [f"{name}: no marker vouches for it; the same generate command again makes it" for name in names
                 if name.endswith(tuple(SUFFIXES.values())) and os.path.splitext(name)[0] + MARKER not in markers]
    for name, of_column in repeats.items():
        for caption, count in of_column.most(MOST_COMMON):
            told = f"{name}: {caption!r} stands for at least {count:,} of {of_column.pictures:,} pictures"
            if count > 2 and count >= config.most_repeated * of_column.pictures:
                problems.append(told)
            elif count > 1:
                print(told)
    for problem in problems[:SHOWN]:
        print(f"problem: {problem}")
    if len(problems) > SHOWN:
        print(f"and {len(problems) - SHOWN:,} more")
    print(f"{config.folder}: {rows:,} records in {len(markers):,} shards; "
          + (f"{len(problems):,} problems" if problems else "all as the markers say"))
    return 1 if problems else 0


class Found(NamedTuple):
    """What a shard holds: its keys' hashes (R,) uint64, its commonest captions by column, and what is wrong."""

    keys: np.ndarray
    repeats: Mapping[str, Repeats]
    problems: list[str]


def read_shard(path: str, marker: Mapping[str, Any], *, decode: bool) -> Found:
    """Reads a shard whole and holds it against its marker; OSError where its file cannot be read."""
    name, problems = os.path.basename(path), []
    with open_file(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
    if size != marker["size"]:
        problems.append(f"{name}: {size:,} bytes, its marker says {marker['size']:,}")
    elif digest != marker["sha256"]:
        problems.append(f"{name}: its bytes are not those that its marker vouches for")
    keys, repeats, counted = [], {}, Counter()
    try:
        for record in read_records(path):
            keys.append(hashlib.blake2b(record.sample.key.encode("utf-8", "surrogatepass"), digest_size=8).digest())
            if record.error:
                counted["failed"] += 1
                continue
            for column, texts in record.syn_text.items():
                counted[f"captions in {column}"] += len(texts)
                repeats.setdefault(column, Repeats()).update(texts)
            if decode and (reason := why_undecodable(record.sample.image)):
                problems.append(f"{name}: {record.sample.key}: {reason}")
    except ValueError as error:
        problems.append(f"{name}: after {len(keys)} records: {error}")
    wanted = {"records": marker["rows"], "failed": marker["failed"],
              **{f"captions in {column}": count for column, count in marker["captions"].items()}}
    counted["records"] = len(keys)
    problems += [f"{name}: {counted[what]:,} {what}, its marker says {count:,}" for what, count in wanted.items()
                 if counted[what] != count]
    return Found(np.frombuffer(b"".join(keys), np.uint64), repeats, problems)


def why_undecodable(image: bytes | None) -> str:
    try:
        decode_image(image)
    except ValueError as error:
        return str(error)
    return ""


def repeated_keys(keys: Sequence[np.ndarray]) -> list[str]:
    """One line where keys stand in the set more than once."""
    _, counts = np.unique(np.concatenate([*keys, np.zeros(0, np.uint64)]), return_counts=True)
    repeated = int((counts > 1).sum())
    return [f"{repeated:,} keys stand in the set more than once"] if repeated else []
