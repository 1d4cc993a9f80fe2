"""The end of a run: prints what the shards hold, and writes the card, the export and the gallery of a complete set."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from captioners.ranks import Rank
from generate.captions.config import GenerateConfig
from generate.captions.export import export_by_class
from generate.captions.overlap import Overlap
from generate.captions.refused import Refused
from generate.runs.failures import exit_code_of_run, share_failed
from generate.runs.manifest import GALLERY, expect_run, expect_shards, read_own_markers
from generate.sets.card import push, write_card
from generate.sets.gallery import write_set_gallery
from generate.sets.repeats import Repeats, repeated_captions
from imagetext.columns import is_tags
from imagetext.sample import Shard
from imagetext.shown import counted, say
from imagetext.stores import is_remote, join, plain_path


def finish(config: GenerateConfig, rank: Rank = Rank(), shards: Sequence[Shard] = ()) -> int:
    """Print what the shards hold, write what belongs to a complete set, and return the exit code.

    Where several processes work on the run, only this process's shards are printed; `shards` are those of all
    processes.
    """
    folder = plain_path(config.output)
    markers, names = read_own_markers(folder), expect_shards(folder)
    is_complete = markers.keys() >= set(names)
    own_names = names if rank.count == 1 else [shard.name for shard in rank.share(shards)]
    missing = [name for name in own_names if name not in markers]
    done = [markers[name] for name in sorted(own_names) if name in markers]
    _say_totals(folder, config, done)
    failed_share = share_failed(done)
    overlap, refused = Overlap(), Refused()
    for marker in done:
        overlap.add(marker.get("overlap", ()))
        refused.add(marker.get("refused", {}))
    repeated = [f"  {line}" for line in repeated_captions(repeats_of(done))]
    for line in [*refused.lines(), *repeated, *overlap.lines()]:
        say(line)
    if is_complete:
        all_markers = [markers[name] for name in names]
        write_card(folder, config.input, all_markers)
        if config.export_by_class and rank.count == 1:
            lines, classes = export_by_class(folder, all_markers, config.export_by_class)
            say(f"{config.export_by_class}: {lines:,} captions of {classes:,} classes, one file for each class")
        elif config.export_by_class:
            say("--export-by-class: needs a single process; run the same command in one process to write the files")
        if config.limit:
            places = dict.fromkeys(path for shard in shards for path in (shard.path, os.path.dirname(shard.path)))
            folders = [place for place in places if is_remote(place) or os.path.isdir(place or os.curdir)]
            write_set_gallery(folder, join(folder, GALLERY), images=[*config.images, *folders])
    code = exit_code_of_run(missing, own_names, done, failed_share, most=config.max_error_rate, unit="picture")
    names = expect_run(folder)["columns"]
    sound = sum(marker["rows"] - marker["failed"] for marker in done)
    if code == 0 and sound and config.max_error_rate < 1 and not any(_count(done, name) for name in names):
        say(f"none of {sound:,} records has got a text in {', '.join(names)}")
        code = 3
    if code == 0 and config.push_to_hub and is_complete:
        push(folder, config.push_to_hub)
        say(f"uploaded to the data set {config.push_to_hub}")
    return code


def _say_totals(folder: str, config: GenerateConfig, markers: Sequence[Mapping[str, Any]]) -> None:
    pictures, failed = (sum(marker[name] for marker in markers) for name in ("rows", "failed"))
    counts = []
    for column in expect_run(folder)["columns"]:
        count = _count(markers, column)
        counts.append(f"{count:,} {'tags' if is_tags(column) else 'captions'} in {column}")
    say(
        f"{folder}: {', '.join(counts)} of {pictures:,} pictures, {failed:,} without "
        f"({failed / max(pictures, 1):.1%}), in {counted(len(markers), f'{config.format} shard')}"
    )


def _count(markers: Sequence[Mapping[str, Any]], column: str) -> int:
    """Return how many texts the shards have in the column."""
    return sum(marker["captions"].get(column, 0) for marker in markers)


def repeats_of(markers: Iterable[Mapping[str, Any]]) -> dict[str, Repeats]:
    """Return which captions the pictures of each column share, by the shards' markers."""
    columns: dict[str, Repeats] = {}
    for marker in markers:
        for name, state in marker["repeats"].items():
            columns.setdefault(name, Repeats()).merge(Repeats.of(state))
    return columns
