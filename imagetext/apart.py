"""An output must not be the input, lie in it or hold it: it would be written over, or read with it the next time."""

import os
import posixpath
from collections.abc import Hashable, Iterable
from functools import lru_cache

from imagetext.stores import is_remote, plain_path

ANOTHER = "give another folder"


def check_apart(output: str | os.PathLike, paths: Iterable[str], instead: str = ANOTHER) -> None:
    """Raises ValueError where an input is the output, stands in it, however deep, or is a folder that the output lies in.

    paths: of files and folders of the input; those of what is no file of this machine or of a store are left out.
    instead: the way that works.
    """
    output, places_of = plain_path(output), lru_cache(None)(_places)  # of many files of few folders
    own, *above = places_of(output)
    for path in dict.fromkeys(map(plain_path, paths)):
        if not is_remote(path) and not os.path.exists(path):
            continue
        itself = _place(path)
        if own in (itself, *places_of(os.path.dirname(path)), *places_of(os.path.dirname(_real(path)))):
            what = "pictures" if os.path.isdir(path) else "shards"
            raise ValueError(f"output {output}: the {what} stand there that are the input ({path}); {instead}")
        if itself in above:
            raise ValueError(
                f"output {output}: lies in a folder that is the input ({path}), and would be read with it; {instead}"
            )


def _places(path: str) -> list[Hashable]:
    """The identity of a path, then those of its folders, innermost first; links are followed."""
    places, path = [_place(path)], _real(path)
    while (folder := os.path.dirname(path)) not in (path, "") and not folder.endswith(":/"):  # of a store's bucket
        places.append(_place(folder))
        path = folder
    return places


def _place(path: str) -> Hashable:
    """Its file's number, however the path is spelled; of what is in a store, or not there, its name."""
    try:
        status = os.stat(path or ".")
        return status.st_dev, status.st_ino
    except OSError:
        return _real(path)


def _real(path: str) -> str:
    if not is_remote(path):
        return os.path.realpath(path)
    scheme, _, place = path.partition("://")
    return f"{scheme}://{posixpath.normpath(place)}"
