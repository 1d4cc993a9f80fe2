"""`capsmith verify DIR`: checks a finished set: files against markers, records against counts, keys over all shards.

In a reinforced set, it also checks that views and embeddings can be read, belong to their record and have the right
shape.
"""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import CliPositionalArg

from generate.runs.config import Folder
from generate.runs.manifest import ALL_REJECTED, CONFIG, expect_run
from generate.sets.repeats import COLLAPSED, Repeats, repeated_captions
from imagetext import limits
from imagetext.columns import is_tags
from imagetext.fields import json_object
from imagetext.hashes import file_hash, name_hash
from imagetext.marker_index import usable_marker
from imagetext.problems import LeadsOutside
from imagetext.sample import Record, decode_image
from imagetext.shards import MARKER, RUN, SUFFIXES, read_shards
from imagetext.shown import Progress, counted, say
from imagetext.sources import read_records
from imagetext.stores import join, listing, read_bytes

PROBLEMS_PRINTED = 50
# The length of a teacher's part may differ from 1 by this much: bfloat16 rounds each number by up to 0.4 %.
LENGTH_TOLERANCE = 0.01


class VerifyConfig(BaseModel):
    """Check a finished set: files, counts, keys, all records and embeddings, and captions that many pictures share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: CliPositionalArg[Folder] = Field(
        description="folder of a set that capsmith generate, reinforce, join or select wrote"
    )
    decode: bool = Field(False, description="also decode every picture")
    images: list[str] = Field(
        [],
        description="folder, local or s3://…, with the pictures of a JSONL set, if they are not in the set's own "
        "folder; repeatable",
    )
    most_repeated: float = Field(
        0.05,
        gt=0,
        le=1,
        description=f"a caption that at least this share of the pictures, and at least {COLLAPSED}, have is a problem",
    )


def run(config: VerifyConfig) -> int:
    """Print what the set holds and what is wrong with it; returns 0 where nothing is wrong, else 1.

    Raises: ValueError where the folder holds no run, or its rows name pictures in a folder that no flag names.
    """
    expect_run(config.folder)
    names = sorted(os.path.basename(file.path) for file in listing(config.folder) if not file.is_folder)
    markers = [name for name in names if name.endswith(MARKER)]
    reinforcement, problems = read_reinforcement(config.folder)
    keys, rows, embedded, repeats = [], 0, 0, {}
    file_of_marker: dict[str, str] = {}
    for marker_name in Progress(markers, desc="verifying", unit="shard", disable=None):
        try:
            marker = json_object(read_bytes(join(config.folder, marker_name), limits.DOCUMENT))
            if not usable_marker(marker):
                raise ValueError("is no marker of a shard")
            file_of_marker[marker_name] = marker["file"]
            path = join(config.folder, marker["file"])
            shard = read_shard(path, marker, reinforcement, decode=config.decode, images=config.images)
        except LeadsOutside:  # a flag is missing, for all shards alike
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.append(f"{marker_name}: {error}")
            continue
        problems += shard.problems
        keys.append(shard.keys)
        rows += len(shard.keys)
        embedded += shard.embedded
        for column, shard_repeats in shard.repeats.items():
            repeats.setdefault(column, Repeats()).merge(shard_repeats)
    problems += repeated_keys(keys)
    problems += [
        f"{name}: is not a shard of this set, whose shard of that name is {file}; remove it, because readers of all "
        "files of its format would read it"
        for name, file in files_in_other_formats(names, file_of_marker)
    ]
    unmarked = unmarked_shards(names)
    problems += [
        f"{name}: has no marker; run the command that made the set again, which makes it anew" for name in unmarked
    ]
    present = {name.removesuffix(MARKER) for name in markers} | {os.path.splitext(name)[0] for name in unmarked}
    problems += missing_shards(read_shards(config.folder), present)
    for column_repeats in repeats.values():
        column_repeats.pictures = rows  # with those that have no caption of the column, as `generate` counts them
    too_common = repeated_captions(repeats, config.most_repeated, pictures=COLLAPSED)
    for line in repeated_captions(repeats):
        if line not in too_common:
            say(line)
    problems += too_common
    if reinforcement and reinforcement.member:
        share = embedded / max(rows, 1)
        say(f"{embedded:,} of {rows:,} records ({share:.1%}) have embeddings in {reinforcement.member}")
    _say_problems(problems)
    verdict = counted(len(problems), "problem") if problems else "all as the markers say"
    say(f"{config.folder}: {counted(rows, 'record')} in {counted(len(markers), 'shard')}; {verdict}")
    return 1 if problems else 0


def _say_problems(problems: Sequence[str]) -> None:
    for problem in problems[:PROBLEMS_PRINTED]:
        say(f"problem: {problem}")
    if len(problems) > PROBLEMS_PRINTED:
        say(f"and {len(problems) - PROBLEMS_PRINTED:,} more")


class Reinforcement(NamedTuple):
    """What each record of a reinforced set has.

    views: number of views; None for a converted set, where each record says it.
    member: the member with the embeddings; "" where there are none.
    columns: regular expression for the names of the embedded columns.
    dimensions: of each teacher's part of a row; [] where the teachers are unknown.
    """

    views: int | None
    member: str
    columns: str
    text_from_synthetic: bool
    dimensions: list[int]


def read_reinforcement(folder: str) -> tuple[Reinforcement | None, list[str]]:
    """Return what the records of a set are reinforced with, and a line for each contradiction in its `config.json`.

    The first is None for a set that is not reinforced. Raises: ValueError where `run.json` lacks what it must have.
    """
    run = expect_run(folder)
    if "embedded_columns" not in run:
        return None, []
    try:
        teachers = list(run["teachers"].values())
        expected = {
            "num_samples": run["views"],
            "columns": run["embedded_columns"],
            "embeddings": run["embeddings"],
            "number of teachers": len(teachers),
            **_teacher_fields(teachers),
        }
        reinforcement = Reinforcement(
            views=None if run["convert"] else run["views"],
            member="" if run["embeddings"] == "none" else run["embeddings"],
            columns=run["embedded_columns"],
            text_from_synthetic=run["text_from_synthetic"],
            dimensions=[teacher["dimension"] for teacher in teachers],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder}: its {RUN} does not describe a reinforced set: {error!r}") from error
    try:
        config = json_object(read_bytes(join(folder, CONFIG)))
        described = {**config, "number of teachers": len(config["teachers"]), **_teacher_fields(config["teachers"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problems = [f"{CONFIG}: does not describe a reinforced set: {error!r}"]
    else:
        problems = [
            f"{CONFIG}: {field}: {described.get(field)!r}, {RUN} says {value!r}"
            for field, value in expected.items()
            if described.get(field) != value
        ]
    return reinforcement, problems


def _teacher_fields(teachers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        f"teachers.{number}.{field}": value
        for number, teacher in enumerate(teachers)
        for field, value in teacher.items()
    }


class ShardContent(NamedTuple):
    """What a shard holds, and what is wrong with it.

    keys: hashes of the records' keys, (R,) uint64. embedded: how many records have embeddings.
    repeats: the commonest captions, by column.
    """

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
) -> ShardContent:
    """Read the whole shard and compare it with its marker.

    Raises: OSError where its file cannot be read, LeadsOutside as `read_samples` does.
    """
    name, problems = os.path.basename(path), []
    digest, size = file_hash(path)
    if size != marker["size"]:
        problems.append(f"{name}: {size:,} bytes, its marker says {marker['size']:,}")
    elif digest != marker["sha256"]:
        problems.append(f"{name}: its bytes do not match the hash in its marker")
    keys, embedded, repeats, counts = [], 0, {}, Counter()
    try:
        for record in read_records(path, images, check=decode) if marker["rows"] else ():
            keys.append(name_hash(record.key))
            if record.error:
                counts["failed"] += 1
                continue
            for column, texts in record.named_columns.items():
                counts[f"captions in {column}"] += len(texts)
                if not is_tags(column):  # many pictures may share a tag
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
    counts["records"] = len(keys)
    problems += [f"{name}: {difference}" for difference in _differing_counts(counts, marker)]
    return ShardContent(np.array(keys, np.uint64), embedded, repeats, problems=problems)


def _differing_counts(counts: Counter[str], marker: Mapping[str, Any]) -> Iterator[str]:
    """Yield each count of a shard's content that is not that of its marker."""
    expected = {"records": marker["rows"], "failed": marker["failed"]}
    expected |= {f"captions in {column}": count for column, count in marker["captions"].items()}
    for unit, count in expected.items():
        if counts[unit] != count:
            yield f"{counts[unit]:,} {unit}, its marker says {count:,}"


def why_undecodable(image: bytes | None) -> str:
    """Return why a picture does not decode; "" where it does."""
    try:
        decode_image(image)
    except ValueError as error:
        return str(error)
    return ""


def why_not_reinforced(record: Record, reinforcement: Reinforcement) -> Iterator[str]:
    """Yield what is wrong with the views and embeddings of a record that did not fail."""
    from imagetext.reinforced.views import read_views  # late: it needs torch, and sets that are not reinforced do not

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
    if reinforcement.member:
        yield from _why_not_embedded(record, reinforcement, views)


def _why_not_embedded(record: Record, reinforcement: Reinforcement, views: int | None) -> Iterator[str]:
    """Yield what is wrong with the embeddings of a record. views: how many it has; None where that is not known."""
    from imagetext.reinforced.embeddings import check_counts, named_texts, unpack  # late, as above

    if reinforcement.member not in record.members:
        yield f"no {reinforcement.member}"
        return
    columns = {name: texts for name, texts in record.syn_text.items() if re.match(reinforcement.columns, name)}
    text = record.first_text(from_synthetic=reinforcement.text_from_synthetic)
    try:
        embeddings = unpack({reinforcement.member: record.members[reinforcement.member]})
        view_count = len(embeddings.get("image_emb", ())) if views is None else views
        check_counts(embeddings, view_count, named_texts(text, record.captions, columns))
    except ValueError as error:
        yield str(error)
        return
    dimensions = reinforcement.dimensions
    for name, rows in embeddings.items() if dimensions else ():
        if rows.shape[1] != sum(dimensions):
            yield f"{name}: {rows.shape[1]} numbers in a row, {RUN}'s teachers give {sum(dimensions)}"
            continue
        for number, part in enumerate(rows.split(dimensions, dim=1)):
            lengths = [length for length in part.norm(dim=1).tolist() if abs(length - 1) > LENGTH_TOLERANCE]
            if lengths:
                yield (
                    f"{name}: {len(lengths)} of {len(rows)} rows have a length other than 1 in teacher {number}'s "
                    f"part, the first {lengths[0]:.4g}"
                )


def unmarked_shards(names: Collection[str]) -> list[str]:
    """Return the files that are shards by their names and have no marker, among all files of the folder."""
    markers = {name for name in names if name.endswith(MARKER)}
    return [name for name in names if _is_shard(name) and os.path.splitext(name)[0] + MARKER not in markers]


def files_in_other_formats(names: Collection[str], file_of_marker: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each file that has the name of a shard in another format, as of an earlier run, and the shard's file.

    file_of_marker: the file that each marker names.
    """
    for name in filter(_is_shard, names):
        file = file_of_marker.get(os.path.splitext(name)[0] + MARKER, name)
        if file != name:
            yield name, file


def _is_shard(name: str) -> bool:
    return name.endswith(tuple(SUFFIXES.values())) and name != ALL_REJECTED


def missing_shards(names: Sequence[str] | None, present: Collection[str]) -> list[str]:
    """Return a line for each shard of the run that is missing.

    names: of all shards of the run; None where an earlier version began it and does not name them.
    """
    missing = [
        f"{name}: is missing: it failed or was not begun; run the command that made the set again"
        for name in names or ()
        if name not in present
    ]
    return missing or ([] if present else ["no shard is there"])


def repeated_keys(keys: Sequence[np.ndarray]) -> list[str]:
    """Return one line where several records of the set have the same key."""
    _, counts = np.unique(np.concatenate([*keys, np.zeros(0, np.uint64)]), return_counts=True)
    repeated = int((counts > 1).sum())
    return [f"{repeated:,} keys are in the set more than once"] if repeated else []
