"""`capsmith verify DIR`: is a finished set whole? Files against markers, records against counts, keys over all shards.

Of a reinforced set also views and embeddings: whether they can be read, belong to their record and have the teachers' shape.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import CliPositionalArg

from generate.runs.config import Folder
from generate.runs.manifest import ALL_REJECTED, RUN, expect_run
from generate.sets.repeats import Repeats
from imagetext.hashes import file_hash, name_hash
from imagetext.picture_files import LeadsOutside
from imagetext.readers.row_records import json_object
from imagetext.sample import Record, decode_image
from imagetext.shards import MARKER, SUFFIXES, read_shards
from imagetext.shown import Progress, say
from imagetext.sources import read_records
from imagetext.stores import join, listing, read_bytes

PROBLEMS_PRINTED = 50
MOST_COMMON = 3  # captions of a column that are printed
CONFIG = "config.json"
ROUNDED = (
    0.01  # how far from 1 the length of a teacher's part may be: in bfloat16, each number is rounded by up to 0.4 %
)


class VerifyConfig(BaseModel):
    """Check a finished set: files, counts, keys, every record with its embeddings, captions that repeat over many pictures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: CliPositionalArg[Folder] = Field(description="what capsmith generate, reinforce, join or select wrote")
    decode: bool = Field(False, description="decode every picture, too")
    images: list[str] = Field(
        [], description="folder, or s3://…, in which pictures lie that a JSONL set names, beside its own; repeatable"
    )
    most_repeated: float = Field(
        0.05, gt=0, le=1, description="share of the pictures; a caption that stands for it is a problem"
    )


def run(config: VerifyConfig) -> int:
    """Print what the set holds and what is wrong with it or not there; 0 where nothing is, 1 where something is.

    Raises: ValueError where the folder holds no run, or its rows name pictures outside that no flag names.
    """
    expect_run(config.folder)
    names = sorted(os.path.basename(one.path) for one in listing(config.folder) if not one.is_folder)
    markers = [name for name in names if name.endswith(MARKER)]
    reinforcement, problems = read_reinforcement(config.folder)
    keys, rows, embedded, repeats = [], 0, 0, {}
    for name in Progress(markers, desc="verifying", unit="shard", disable=None):
        try:
            marker = json.loads(read_bytes(join(config.folder, name)))
            read = read_shard(
                join(config.folder, marker["file"]), marker, reinforcement, decode=config.decode, images=config.images
            )
        except LeadsOutside:  # the flag that it names is missing, in all shards likewise
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.append(f"{name}: {error}")
            continue
        problems += read.problems
        keys.append(read.keys)
        rows += len(read.keys)
        embedded += read.embedded
        for name, of_shard in read.repeats.items():
            repeats.setdefault(name, Repeats()).merge(of_shard)
    problems += repeated_keys(keys)
    unvouched = [
        name
        for name in names
        if name.endswith(tuple(SUFFIXES.values()))
        and name != ALL_REJECTED
        and os.path.splitext(name)[0] + MARKER not in markers
    ]
    problems += [
        f"{name}: no marker vouches for it; the command that made the set makes it again" for name in unvouched
    ]
    problems += missing_shards(
        read_shards(config.folder), {*markers, *(os.path.splitext(name)[0] + MARKER for name in unvouched)}
    )
    for name, of_column in repeats.items():
        for caption, count in of_column.most(MOST_COMMON):
            told = f"{name}: {caption!r} stands for at least {count:,} of {of_column.pictures:,} pictures"
            if count > 2 and count >= config.most_repeated * of_column.pictures:
                problems.append(told)
            elif count > 1:
                say(told)
    if reinforcement and reinforcement.member:
        say(
            f"{embedded:,} of {rows:,} records ({embedded / max(rows, 1):.1%}) have embeddings in {reinforcement.member}"
        )
    for problem in problems[:PROBLEMS_PRINTED]:
        say(f"problem: {problem}")
    if len(problems) > PROBLEMS_PRINTED:
        say(f"and {len(problems) - PROBLEMS_PRINTED:,} more")
    say(
        f"{config.folder}: {rows:,} records in {len(markers):,} shards; "
        + (f"{len(problems):,} problems" if problems else "all as the markers say")
    )
    return 1 if problems else 0


class Reinforcement(NamedTuple):
    """What each record of a reinforced set has.

    `views`: None of a converted set, whose records say it themselves. `member`: with the embeddings, "" where there are none.
    `columns`: those embedded. `dimensions`: of each teacher's part of a row, () where teachers are unknown.
    """

    views: int | None
    member: str
    columns: str
    text_from_synthetic: bool
    dimensions: list[int]


def read_reinforcement(folder: str) -> tuple[Reinforcement | None, list[str]]:
    """What a set's records are reinforced with, None in a set that is not; and in what its `config.json` says otherwise."""
    run = expect_run(folder)
    if "embedded_columns" not in run:
        return None, []
    teachers = list(run["teachers"].values())
    wanted = {
        "num_samples": run["views"],
        "columns": run["embedded_columns"],
        "embeddings": run["embeddings"],
        "number of teachers": len(teachers),
        **_by_field(teachers),
    }
    try:
        config = json_object(read_bytes(join(folder, CONFIG)))
        described = {**config, "number of teachers": len(config["teachers"]), **_by_field(config["teachers"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problems = [f"{CONFIG}: is none of a reinforced set: {error!r}"]
    else:
        problems = [
            f"{CONFIG}: {field}: {described.get(field)!r}, {RUN} says {value!r}"
            for field, value in wanted.items()
            if described.get(field) != value
        ]
    return Reinforcement(
        None if run["convert"] else run["views"],
        "" if run["embeddings"] == "none" else run["embeddings"],
        run["embedded_columns"],
        run["text_from_synthetic"],
        [teacher["dimension"] for teacher in teachers],
    ), problems


def _by_field(teachers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        f"teachers.{number}.{field}": value
        for number, teacher in enumerate(teachers)
        for field, value in teacher.items()
    }


class Found(NamedTuple):
    """What a shard holds: its keys' hashes (R,) uint64, how many records have embeddings, its commonest captions by column,
    and what is wrong."""

    keys: np.ndarray
    embedded: int
    repeats: Mapping[str, Repeats]
    problems: list[str]


def read_shard(
    path: str,
    marker: Mapping[str, Any],
    reinforcement: Reinforcement | None,
    *,
    decode: bool,
    images: Sequence[str] = (),
) -> Found:
    """Reads a shard whole and holds it against its marker; OSError where its file cannot be read, LeadsOutside as `read_samples`."""
    name, problems = os.path.basename(path), []
    digest, size = file_hash(path)
    if size != marker["size"]:
        problems.append(f"{name}: {size:,} bytes, its marker says {marker['size']:,}")
    elif digest != marker["sha256"]:
        problems.append(f"{name}: its bytes are not those that its marker vouches for")
    keys, embedded, repeats, counted = [], 0, {}, Counter()
    try:
        for record in read_records(path, images, check=decode) if marker["rows"] else ():
            keys.append(name_hash(record.key))
            if record.error:
                counted["failed"] += 1
                continue
            for column, texts in record.named_columns.items():
                counted[f"captions in {column}"] += len(texts)
                if not column.startswith(("tags_", "neg_tags_")):  # many pictures show a dog
                    repeats.setdefault(column, Repeats()).update(texts)
            if decode and (reason := why_undecodable(record.image)):
                problems.append(f"{name}: {record.key}: {reason}")
            if reinforcement:
                problems += [f"{name}: {record.key}: {reason}" for reason in why_not_reinforced(record, reinforcement)]
                embedded += reinforcement.member in record.members
    except LeadsOutside:
        raise
    except ValueError as error:
        problems.append(f"{name}: after {len(keys)} records: {error}")
    wanted = {
        "records": marker["rows"],
        "failed": marker["failed"],
        **{f"captions in {column}": count for column, count in marker["captions"].items()},
    }
    counted["records"] = len(keys)
    problems += [
        f"{name}: {counted[what]:,} {what}, its marker says {count:,}"
        for what, count in wanted.items()
        if counted[what] != count
    ]
    return Found(np.array(keys, np.uint64), embedded, repeats, problems)


def why_undecodable(image: bytes | None) -> str:
    try:
        decode_image(image)
    except ValueError as error:
        return str(error)
    return ""


def why_not_reinforced(record: Record, reinforcement: Reinforcement) -> Iterator[str]:
    """What is wrong with the views and embeddings of a record that did not fail."""
    from imagetext.reinforced.embeddings import (  # they need torch, and other sets do not
        check_counts,
        named_texts,
        unpack,
    )
    from imagetext.reinforced.views import read_views

    views = reinforcement.views
    try:
        count = len(read_views(record.members["paug.json"]))
        if views not in (None, count):
            yield f"paug.json: {count} views, {RUN} says {views}"
        views = count
    except KeyError:
        yield "no paug.json"
    except ValueError as error:
        yield str(error)
    if not reinforcement.member:
        return
    if reinforcement.member not in record.members:
        yield f"no {reinforcement.member}"
        return
    columns = {name: texts for name, texts in record.syn_text.items() if re.match(reinforcement.columns, name)}
    synthetic = record.syn_text.values() if reinforcement.text_from_synthetic else ()
    text = next((text for texts in (*synthetic, record.captions) for text in texts if text.strip()), None)
    try:
        embeddings = unpack({reinforcement.member: record.members[reinforcement.member]})
        check_counts(
            embeddings,
            len(embeddings.get("image_emb", ())) if views is None else views,
            named_texts(text, record.captions, columns),
        )
    except ValueError as error:
        yield str(error)
        return
    dimensions = reinforcement.dimensions
    for name, rows in embeddings.items() if dimensions else ():
        if rows.shape[1] != sum(dimensions):
            yield f"{name}: {rows.shape[1]} numbers in a row, {RUN}'s teachers give {sum(dimensions)}"
            continue
        for number, part in enumerate(rows.split(dimensions, dim=1)):
            if off := [length for length in part.norm(dim=1).tolist() if abs(length - 1) > ROUNDED]:
                yield (
                    f"{name}: {len(off)} of {len(rows)} rows have no length of 1 in teacher {number}'s part, "
                    f"the first {off[0]:.4g}"
                )


def missing_shards(wanted: Sequence[str] | None, there: Collection[str]) -> list[str]:
    """One line for each shard that there was to be and is not; `wanted` is None where an earlier version began the run."""
    missing = [
        f"{name}: is not there: it failed, or was not begun; the command that made the set makes it"
        for name in wanted or ()
        if name + MARKER not in there
    ]
    return missing or ([] if there else ["no shard is there"])


def repeated_keys(keys: Sequence[np.ndarray]) -> list[str]:
    """One line where keys stand in the set more than once."""
    _, counts = np.unique(np.concatenate([*keys, np.zeros(0, np.uint64)]), return_counts=True)
    repeated = int((counts > 1).sum())
    return [f"{repeated:,} keys stand in the set more than once"] if repeated else []
