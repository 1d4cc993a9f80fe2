"""The end of a run: what its records hold, by their markers, and what goes with a set that is whole."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from captioners.ranks import Rank
from generate.captions.config import GenerateConfig
from generate.captions.export import export_by_class
from generate.captions.overlap import Overlap
from generate.captions.refused import Refused
from generate.runs.inputs import share_failed
from generate.runs.manifest import GALLERY, expect_run, expect_shards
from generate.sets.card import push, write_card
from generate.sets.gallery import write_set_gallery
from generate.sets.repeats import Repeats
from imagetext.columns import is_tags
from imagetext.shards import read_markers
from imagetext.shown import say
from imagetext.sources import Shard
from imagetext.stores import join, plain_path

SHARE_TOLD = 0.01  # a caption that stands for this share of the pictures is told of
MOST_TOLD = 3  # captions of a column


def finish(config: GenerateConfig, rank: Rank = Rank(), shards: Sequence[Shard] = ()) -> int:
    """Print what the run's shards hold, or of several processes this one's; write the card where all are done; the exit code."""
    folder = plain_path(config.output)
    markers, names = read_markers(folder), expect_shards(folder)
    whole = markers.keys() >= set(names)
    own = names if rank.count == 1 else [shard.name for shard in rank.share(shards)]
    missing = [name for name in own if name not in markers]
    done = [markers[name] for name in own if name in markers]
    pictures, failed = sum(marker["rows"] for marker in done), sum(marker["failed"] for marker in done)
    captions = ", ".join(
        f"{sum(marker['captions'].get(column, 0) for marker in done):,} {'tags' if is_tags(column) else 'captions'} in {column}"
        for column in expect_run(folder)["columns"]
    )
    say(
        f"{folder}: {captions} of {pictures:,} pictures, {failed:,} without ({failed / max(pictures, 1):.1%}), "
        f"in {len(done):,} {config.format} shards"
    )
    rate = share_failed(done)
    overlap, refused = Overlap(), Refused()
    for marker in done:
        overlap.add(marker.get("overlap", ()))
        refused.add(marker.get("refused", {}))
    for line in [*refused.lines(), *repeated(done), *overlap.lines()]:
        say(line)
    if whole:
        of_all = [markers[name] for name in names]
        write_card(folder, config.input, of_all)
        if config.export_by_class and rank.count == 1:
            lines, classes = export_by_class(folder, of_all, config.export_by_class)
            say(f"{config.export_by_class}: {lines:,} captions of {classes:,} classes, a file each")
        elif config.export_by_class:
            say("--export-by-class: is written by one process; the same command in one writes it")
        if config.limit:
            places = dict.fromkeys(place for shard in shards for place in (shard.path, os.path.dirname(shard.path)))
            write_set_gallery(folder, join(folder, GALLERY), images=[*config.images, *places])
    if missing:
        say(f"{len(missing)} of {len(own)} shards failed: {', '.join(missing)}; the same command tries them again")
        return 1
    if rate > config.max_error_rate:
        say(
            f"{rate:.1%} of the pictures failed, more than --max-error-rate {config.max_error_rate:.1%}; "
            "the records say why, under `error`"
        )
        return 3
    if config.push_to_hub and whole:
        push(folder, config.push_to_hub)
        say(f"uploaded to the data set {config.push_to_hub}")
    return 0


def repeated(markers: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each caption that stands for many pictures of a set, by the shards' markers."""
    columns: dict[str, Repeats] = {}
    for marker in markers:
        for name, state in marker["repeats"].items():
            columns.setdefault(name, Repeats()).merge(Repeats.of(state))
    lines = []
    for name, repeats in columns.items():
        pictures = repeats.pictures
        for caption, count in repeats.most(MOST_TOLD):
            if count > 2 and count >= SHARE_TOLD * pictures:
                lines.append(
                    f"  {name}: {caption!r} stands for at least {count:,} of {pictures:,} pictures ({count / pictures:.1%})"
                )
    return lines
