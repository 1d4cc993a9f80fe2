"""Find the files that a pattern names, in folders and stores; a folder that a run wrote stands for its shards."""

import os
import re
from glob import has_magic

from imagetext.shards import MARKER, RUN, read_markers, read_shards
from imagetext.stores import Entry, entries, entry, is_remote, join, listing, matches, plain_path


def named_files(spec: str) -> dict[str, Entry | None]:
    """Return the files that one pattern, or several with `::` between them, name, in order.

    A path that exists is not a pattern. A folder that a run of capsmith wrote stands for its shards.

    Raises ValueError if nothing matches a pattern, or if shards of such a folder are missing.
    """
    if file := entry(spec):
        return _with_shards_of_runs({spec: file})
    if "::" in spec:
        files = {}
        for part in filter(None, spec.split("::")):
            files |= named_files(plain_path(part))
        return files
    patterns = _expand_braces(spec)
    named = entries(patterns)
    files = {}
    for pattern in patterns:
        if named[pattern] or not has_magic(pattern):
            files[pattern] = named[pattern]
            continue
        matching = matches(pattern)
        if not matching:
            raise ValueError(f"{spec}: nothing matches {pattern}")
        files |= matching
    return _with_shards_of_runs(files)


def _with_shards_of_runs(named: dict[str, Entry | None]) -> dict[str, Entry | None]:
    """Replace each folder that a run of capsmith wrote by its shards.

    Raises ValueError if some of them are missing.
    """
    files = {}
    for path, file in named.items():
        shards = _shards_of_run(path) if file and file.is_folder else []
        if not shards:
            files[path] = file
            continue
        markers = read_markers(path)
        if missing := [name for name in shards if name not in markers]:
            raise ValueError(
                f"{path}: {len(missing):,} of its shards are not there ({', '.join(missing[:10])}); finish it with "
                "the command that began it, or name the files that are there"
            )
        files |= entries(join(path, markers[name]["file"]) for name in shards)
    return files


def _shards_of_run(folder: str) -> list[str]:
    """The names of the shards that have a marker in a folder or are in its `run.json`; none if there is no marker."""
    names = [os.path.basename(file.path) for file in listing(folder)] if is_remote(folder) else os.listdir(folder)
    done = {name.removesuffix(MARKER) for name in names if name.endswith(MARKER)}
    if not done or RUN not in names:
        return sorted(done)
    return sorted(done.union(name for name in read_shards(folder) or () if isinstance(name, str)))


def _expand_braces(pattern: str) -> list[str]:
    """Expand `{00000..00009}` and `{a,b}` as a shell does; numbers keep their leading zeros."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        if first > last:
            raise ValueError(f"{pattern}: {match[0]} counts downwards")
        choices = [f"{number:0{len(numbers[1])}d}" for number in range(first, last + 1)]
    elif "," in match[1]:
        choices = match[1].split(",")
    else:
        raise ValueError(f"{pattern}: {match[0]} is neither {{00000..00009}} nor {{a,b}}")
    expanded = []
    for choice in choices:
        expanded += _expand_braces(pattern[: match.start()] + choice + pattern[match.end() :])
    return expanded
