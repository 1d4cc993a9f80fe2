"""Check that an output folder is apart from the input: otherwise one is overwritten, or read with the other."""

import os
from collections.abc import Hashable, Iterable
from functools import lru_cache

from imagetext.picture_files import real_path
from imagetext.stores import is_remote, plain_path

ANOTHER = "give another folder"


def check_apart(output: str | os.PathLike, paths: Iterable[str], instead: str = ANOTHER) -> None:
    """Raise ValueError if an input is the output, lies in it at any depth, or is a folder that the output lies in.

    paths: files and folders of the input. Paths of nothing on this machine or in a store are ignored.
    instead: what the message advises to do.
    """
    # cached, because there are many files in few folders
    output, identities = plain_path(output), lru_cache(None)(_identities)
    output_identity, *above = identities(output)
    for path in dict.fromkeys(map(plain_path, paths)):
        if not is_remote(path) and not os.path.exists(path):
            continue
        identity = _identity(path)
        folders = (*identities(os.path.dirname(path)), *identities(os.path.dirname(real_path(path))))
        if output_identity in (identity, *folders):
            what = "pictures" if os.path.isdir(path) else "shards"
            raise ValueError(f"output {output}: holds the {what} that are the input ({path}); {instead}")
        if identity in above:
            raise ValueError(
                f"output {output}: lies in a folder that is the input ({path}), and would be read with it; {instead}"
            )


def _identities(path: str) -> list[Hashable]:
    """The identity of a path, then those of its folders, innermost first; links are followed."""
    identities, path = [_identity(path)], real_path(path)
    # a folder that ends with ":/" is the root above a store's buckets
    while (folder := os.path.dirname(path)) not in (path, "") and not folder.endswith(":/"):
        identities.append(_identity(folder))
        path = folder
    return identities


def _identity(path: str) -> Hashable:
    """Device and inode of a file, which do not depend on how its path is written.

    For a path in a store, or of no file, the path itself.
    """
    try:
        status = os.stat(path or ".")
        return status.st_dev, status.st_ino
    except OSError:
        return real_path(path)
