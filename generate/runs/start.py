"""The start of a run: compares it with its folder, settles which shards are to do, and writes `run.json`."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from captioners.ranks import Rank
from generate.runs.in_place import (
    keep_pictures_in_place,
    keep_rows_in_place,
    pictures_in,
    read_pictures,
    write_pictures,
)
from generate.runs.inputs import shards_to_do, shards_with_other_bytes
from generate.runs.manifest import check_rules, check_same, clear_run, read_run, write_run
from generate.runs.protocol import Engine, Work
from imagetext.apart import check_apart
from imagetext.marker_index import new_index, read_index
from imagetext.outputs import remove, write_file
from imagetext.sample import Shard
from imagetext.shards import MARKER, SUFFIXES, read_markers, read_shards
from imagetext.shown import say
from imagetext.stores import Entry, files_of, join

NAMES_IN_LINE = 10  # names that one line lists


class PreparedRun(NamedTuple):
    """A run whose models are loaded, before anything of it is written.

    beside: files to write beside `run.json`, by name.
    names: of all shards of the run, also of those whose inputs only an earlier command named.
    pictures: in each shard that is made of a folder of pictures.
    shards: of the inputs that this command names. to_do: those that this process is to write.
    damaged: names of shards whose bytes are not those of their markers.
    anew: whether the run begins anew, in place of all that an earlier one left.
    """

    fingerprint: dict[str, Any]
    beside: Mapping[str, bytes]
    names: Sequence[str]
    pictures: Mapping[str, Sequence[str]]
    shards: Sequence[Shard]
    to_do: Sequence[Shard]
    damaged: Sequence[str]
    anew: bool


class EarlierRun(NamedTuple):
    """What a folder holds of a run: markers of finished shards; names, pictures and damaged as in PreparedRun.

    index: a new index of the markers, by the name of its file, if one is needed.
    """

    markers: Mapping[str, Mapping[str, Any]] = {}
    names: Sequence[str] = ()
    pictures: Mapping[str, Sequence[str]] = {}
    damaged: Sequence[str] = ()
    index: Mapping[str, bytes] = {}


def read_earlier_run(folder: str, files: Mapping[str, Entry], verify_done: bool) -> EarlierRun:
    """Return what the folder holds of a run. A shard whose bytes are not those of its marker counts as not finished.

    files: the entries of the folder by their names.
    verify_done: check the bytes of all shards, instead of only those whose file is newer than its marker.
    """
    indexed = read_index(folder, files)
    markers = read_markers(folder, files, indexed)
    damaged = shards_with_other_bytes(files, markers, verify_done)
    markers = {name: marker for name, marker in markers.items() if name not in damaged}
    return EarlierRun(
        markers,
        read_shards(folder) or [],
        read_pictures(folder),
        damaged=damaged,
        index=new_index(folder, files, markers=markers, indexed=indexed),
    )


def prepare(
    work: Work, engine: Engine, shards: Sequence[Shard], *, rank: Rank, on_begun: Callable[[], None] | None
) -> PreparedRun:
    """Load the models, and compare the run and its inputs with what the output folder holds.

    on_begun: what `begin` will call in the first of several processes; None in the others, and where one is alone.
    Prints a line on each model, and on shards and pictures that are not there any more or must be made again.
    Raises: ValueError where the folder holds a run with other rules or settings, other files with the shards' names,
    or the inputs themselves; where inputs have changed; and as `Work.load` does.
    """
    config, folder = work.config, work.config.output
    check_apart(folder, [shard.path for shard in shards], work.instead)
    earlier_fingerprint = read_run(folder)
    files = files_of(folder)  # listed once: a store sends the names of 1,000 files a request
    # While no shard is done, the run may begin anew: by its single process, or the one that starts the others.
    is_first = rank.count == 1 or on_begun is not None
    anew = is_first and (config.overwrite or not any(name.endswith(MARKER) for name in files))
    settled = earlier_fingerprint if earlier_fingerprint and not anew else {}
    if settled:
        check_rules(folder, settled)
    fingerprint, models, beside = engine.load(work, settled)
    if settled:
        check_same(folder, settled, fingerprint)
    earlier = EarlierRun() if anew else read_earlier_run(folder, files, config.verify_done)
    shards, gone = keep_pictures_in_place(earlier.pictures, keep_rows_in_place(shards, earlier.markers))
    if earlier_fingerprint:
        check_file_names(folder, [shard.name + SUFFIXES[config.format] for shard in shards], files)
    to_do = shards_to_do(
        folder, rank.share(shards), earlier.markers, gone=gone, trust=config.trust_input, retry=config.retry_failed
    )
    if not rank.number:
        model_lines = [line for model in models for line in model.split("\n")]
        say(*model_lines, *_changes(earlier, shards, gone))
    return PreparedRun(
        fingerprint,
        {**beside, **earlier.index},
        _all_names(earlier, shards, gone),
        pictures=_all_pictures(earlier, shards),
        shards=shards,
        to_do=to_do,
        damaged=earlier.damaged,
        anew=anew,
    )


def _all_names(earlier: EarlierRun, shards: Sequence[Shard], gone: Collection[str]) -> list[str]:
    """Return the names of all shards of the run, earlier ones first. gone: the shards that have lost pictures."""
    shard_names = [shard.name for shard in shards]
    # A shard that was not finished and has lost all its pictures cannot be made any more.
    impossible = {*gone}.difference(shard_names, earlier.markers)
    return list(dict.fromkeys(name for name in [*earlier.names, *shard_names] if name not in impossible))


def _all_pictures(earlier: EarlierRun, shards: Sequence[Shard]) -> dict[str, Sequence[str]]:
    """Return the pictures in each shard of the run; a finished shard has those that it was made of."""
    shard_names = {shard.name for shard in shards}
    earlier_pictures = {
        name: pictures
        for name, pictures in earlier.pictures.items()
        if name in earlier.markers or name not in shard_names
    }
    return {**pictures_in(shards), **earlier_pictures}


def begin(folder: str, run: PreparedRun, rank: Rank, *, on_begun: Callable[[], None] | None) -> None:
    """Write `run.json`, and let the other processes start by calling `on_begun`.

    If the run begins anew, everything that an earlier run has left is removed first.
    """
    if run.anew and read_run(folder):
        clear_run(folder)
    for name in run.damaged:
        remove(join(folder, name + MARKER))
    if not rank.number:
        for name, data in run.beside.items():
            write_file(join(folder, name), data)
        write_run(folder, run.fingerprint, run.names)
        write_pictures(folder, run.pictures)
    if on_begun:
        on_begun()


def check_file_names(folder: str, to_write: Sequence[str], files: Mapping[str, Entry]) -> None:
    """Check that the files to write do not exist yet, except as files of the run in the folder.

    files: the entries of the folder by their names. A file is of the run if `run.json` names it, or it has a marker.
    Raises: ValueError that names the other files.
    """
    if (names := read_shards(folder)) is None:  # a run of version 0.1
        return
    own = {*names}
    foreign = []
    for file in to_write:
        name = os.path.splitext(file)[0]
        if file in files and name not in own and name + MARKER not in files:
            foreign.append(file)
    if foreign:
        raise ValueError(
            f"output {folder}: {first_names(foreign)}: is not a file of this run and would be overwritten; move it, "
            "or give another folder"
        )


def _changes(earlier: EarlierRun, shards: Sequence[Shard], gone: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield lines on shards whose inputs are not named now, on pictures that are gone, and on damaged shards."""
    shard_names = {shard.name for shard in shards}
    if unnamed := [name for name in earlier.names if name not in shard_names and name not in gone]:
        yield (
            f"{len(unnamed):,} shards of the run come from inputs that this command does not name, and are left as "
            f"they are: {first_names(unnamed)}"
        )
    for name, pictures in gone.items():
        yield f"{len(pictures):,} pictures of shard {name} are not there any more: {first_names(pictures)}"
    if not gone.keys().isdisjoint(earlier.markers):
        yield "it is not checked whether other pictures of these shards, or their texts, have changed since"
    for name in earlier.damaged:
        yield f"{name}: its bytes do not match the hash in its marker, so it is made again"


def first_names(names: Sequence[str]) -> str:
    """Return the first few names as text, and how many more there are."""
    more = len(names) - NAMES_IN_LINE
    return ", ".join(names[:NAMES_IN_LINE]) + (f" and {more:,} more" if more > 0 else "")
