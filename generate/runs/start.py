"""How a run starts: what its folder holds already, and which shards are to do; then `run.json` is written."""

import os
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.synchronize import Event
from typing import Any, NamedTuple

from captioners.ranks import Rank
from generate.runs.inputs import (
    as_kept,
    disbelieved,
    pictures_in,
    read_pictures,
    shards_to_do,
    with_new_rows,
    write_pictures,
)
from generate.runs.manifest import any_done, check_rules, check_same, clear_run, read_run, write_run
from generate.runs.protocol import Engine, Work
from imagetext.apart import check_apart
from imagetext.outputs import remove, write_file
from imagetext.sample import Shard
from imagetext.shards import MARKER, SUFFIXES, read_markers, read_shards
from imagetext.shown import say
from imagetext.stores import join, listing

NAMES_TOLD = 10  # in a line


class Prepared(NamedTuple):
    """A run whose models are loaded, and of which nothing is written yet."""

    fingerprint: dict[str, Any]
    beside: Mapping[str, bytes]  # files that go beside `run.json`, by name
    names: Sequence[str]  # of all shards that there are to be, those of inputs that an earlier command named included
    pictures: Mapping[str, Sequence[str]]  # in the shards that are made of folders
    shards: Sequence[Shard]  # of the inputs that are named now
    to_do: Sequence[Shard]  # by this process
    disbelieved: Sequence[str]  # the shards whose bytes are not those of their markers
    anew: bool


class Held(NamedTuple):
    """What a folder holds of a run."""

    markers: Mapping[str, Mapping[str, Any]] = {}  # of the shards that are done
    names: Sequence[str] = ()  # of all shards that there are to be
    pictures: Mapping[str, Sequence[str]] = {}  # in the shards that are made of folders
    disbelieved: Sequence[str] = ()  # the shards whose bytes are not those of their markers


def held_by(folder: str, verify_done: bool) -> Held:
    """What the folder holds of a run; shards are done where their bytes may be believed to be those of their markers."""
    markers = read_markers(folder)
    wrong = disbelieved(folder, markers, verify_done)
    return Held(
        {name: marker for name, marker in markers.items() if name not in wrong},
        read_shards(folder) or [],
        read_pictures(folder),
        wrong,
    )


def prepare(work: Work, engine: Engine, shards: Sequence[Shard], rank: Rank, begun: Event | None) -> Prepared:
    """Load the models, and compare the run and its inputs with what the output folder holds; what is gone of these is told.

    Raises: ValueError where the folder has other rules or settings, files of somebody else in the shards' places, or the inputs
    themselves, where inputs have changed, and as `load` does.
    """
    config, folder = work.config, work.config.output
    check_apart(folder, [shard.path for shard in shards], work.instead)
    earlier = read_run(folder)
    # While nothing is done that could differ, a run begins anew; one of several knows only of those that it comes before.
    anew = (rank.count == 1 or begun is not None) and (config.overwrite or not any_done(folder))
    settled = earlier if earlier and not anew else {}
    if settled:
        check_rules(folder, settled)
    now, models, beside = engine.load(work, settled)
    if settled:
        check_same(folder, settled, now)
    held = Held() if anew else held_by(folder, config.verify_done)
    shards, gone = as_kept(held.pictures, with_new_rows(shards, held.markers))
    check_places(folder, [shard.name + SUFFIXES[config.format] for shard in shards], earlier)
    to_do = shards_to_do(
        folder, rank.share(shards), held.markers, gone=gone, trust=config.trust_input, retry=config.retry_failed
    )
    if not rank.number:
        say(*(line for model in models for line in model.split("\n")), *_told(held, shards, gone))
    named = [shard.name for shard in shards]
    # Shards of which all pictures are gone cannot be made.
    lost = {name for name in gone if name not in {*named, *held.markers}}
    names = dict.fromkeys(name for name in [*held.names, *named] if name not in lost)
    pictures = {name: kept for name, kept in held.pictures.items() if name in held.markers or name not in named}
    return Prepared(now, beside, list(names), pictures_in(shards) | pictures, shards, to_do, held.disbelieved, anew)


def begin(folder: str, run: Prepared, rank: Rank, begun: Event | None) -> None:
    """Write `run.json`, where the run begins anew in place of all that an earlier one has left; the other ranks may start."""
    if run.anew and read_run(folder):
        clear_run(folder)
    for name in run.disbelieved:
        remove(join(folder, name + MARKER))
    if not rank.number:
        for name, data in run.beside.items():
            write_file(join(folder, name), data)
        write_run(folder, run.fingerprint, run.names)
        write_pictures(folder, run.pictures)
    if begun:
        begun.set()


def check_places(folder: str, files: Sequence[str], earlier: Mapping[str, Any] | None) -> None:
    """Raises ValueError where one of the files is there, and neither `run.json` nor a marker says that it is a run's."""
    if earlier is None or (known := read_shards(folder)) is None:  # then there is nothing, or a run of 0.1
        return
    present = {os.path.basename(one.path) for one in listing(folder)}
    strange = [
        file
        for file in files
        if file in present and (name := os.path.splitext(file)[0]) not in known and name + MARKER not in present
    ]
    if strange:
        raise ValueError(
            f"output {folder}: {_some(strange)}: would be written over, and is no file of this run; move it, or give "
            "another folder"
        )


def _told(held: Held, shards: Sequence[Shard], gone: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """In words, which shards are of inputs that are not named now, which pictures are not where they were, and what is wrong."""
    named = {shard.name for shard in shards}
    if left := [name for name in held.names if name not in named and name not in gone]:
        yield f"of inputs that are not named now, and left as they are: {len(left):,} of the run's shards: {_some(left)}"
    for name, pictures in gone.items():
        yield f"not there any more: {len(pictures):,} of the pictures of shard {name}: {_some(pictures)}"
    for name in held.disbelieved:
        yield f"made again, for its bytes are not those that its marker vouches for: {name}"


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMES_TOLD
    return ", ".join(names[:NAMES_TOLD]) + (f" and {more:,} more" if more > 0 else "")
