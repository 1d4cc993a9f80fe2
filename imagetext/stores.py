"""Files wherever they are: on this machine, or in a store that fsspec reaches (`s3://`, `gs://`, `hf://`).

Credentials are what each store's own library finds in the environment. What is read is read by ranges, and a range that
fails is asked for again; what still fails is a StoreError, which is never the fault of a row.
"""

import glob
import io
import logging
import os
import posixpath
import re
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

LIBRARIES = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub"}
# of a read or a look, with 1, 2, 4, 8 and 16 seconds between them; the libraries' own attempts come on top
ATTEMPTS = 6
FIRST_WAIT = 1.0  # seconds
LITTER = {"Thumbs.db", "desktop.ini", "__MACOSX", "@eaDir"}  # of file managers; their other files are hidden
LISTED = 16  # more named files of one folder than these are looked up by listing it

Result = TypeVar("Result")


class StoreError(OSError):
    """A store, or the way to it, has failed."""


class LibraryMissing(StoreError, ValueError):
    """A store's library is not installed."""


class StoreRefuses(StoreError, ValueError):
    """A store does not let this user look, or finds no credentials: another attempt would change nothing."""


@dataclass(frozen=True)
class Entry:
    """A file, or a folder, and what tells whether a file has changed: its size in bytes, and mtime_ns or the store's etag."""

    path: str
    is_folder: bool
    stamp: Mapping[str, Any]


# ---- paths -------------------------------------------------------------------------------------------------------


def is_remote(path: str) -> bool:
    scheme, separator, _ = path.partition("://")
    return bool(separator) and scheme in LIBRARIES


def plain_path(path: str | os.PathLike) -> str:
    """The path as text, without `file://`; ValueError for a URL of another kind, or one that a `pathlib.Path` has spoilt."""
    path = os.fspath(path)
    if re.match(rf"({'|'.join(LIBRARIES)}|file):/[^/]", path):
        raise ValueError(f"{path}: a URL has two slashes; pathlib.Path takes one away, so give it as text")
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*)://", path)
    if scheme and scheme[1] != "file" and scheme[1] not in LIBRARIES and not os.path.exists(path):
        raise ValueError(f"{path}: {scheme[0]} is none of file://, {', '.join(f'{name}://' for name in LIBRARIES)}")
    return path.removeprefix("file://")


def join(folder: str, name: str) -> str:
    """The path of a name in a folder; a URL or an absolute path stays what it is."""
    name = name.removeprefix("file://")
    if "://" in name:
        return name
    if not is_remote(folder) or os.path.isabs(name):
        return os.path.join(folder, name)
    scheme, _, place = folder.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(place, name))}"


# ---- asking, once or again and again ------------------------------------------------------------------------------


def filesystem(path: str) -> Any:
    """The store that a URL names, an `fsspec.AbstractFileSystem`; LibraryMissing, a ValueError, says what to install."""
    return _filesystem(path.partition("://")[0], os.getpid())


@lru_cache
def _filesystem(scheme: str, process: int) -> Any:
    """One for all threads of a process, which does not remember listings."""
    import fsspec

    connect = partial(fsspec.filesystem, scheme, skip_instance_cache=True, use_listings_cache=False)
    try:
        store = asked(f"{scheme}://", connect, lasting=(ImportError,))
    except ImportError as error:
        raise LibraryMissing(f"{scheme}:// needs {LIBRARIES[scheme]}: pip install 'capsmith[remote]'") from error
    if scheme == "s3":
        # botocore makes its own attempts (AWS_MAX_ATTEMPTS), and we do; a third time over would take too long
        store.retries = 1
    return store


def asked(
    path: str, action: Callable[[], Result], *, attempts: int = 1, lasting: tuple[type[Exception], ...] = ()
) -> Result:
    """The result of an action, which is tried so many times with waits that double; then StoreError, naming the path.

    lasting: errors that another attempt would not change; they are raised as they are.
    """
    attempt = 1
    while True:
        try:
            return action()
        except (StoreError, MemoryError, *lasting):
            raise
        except Exception as error:  # libraries of stores have errors of many kinds
            reason = f"{path}: {type(error).__name__}: {error}"
            if attempt == attempts:
                raise StoreError(f"{reason} (in {attempts} attempts)" if attempts > 1 else reason) from error
            wait = FIRST_WAIT * 2 ** (attempt - 1)
            logger.warning("%s; attempt %d of %d in %g seconds", reason, attempt + 1, attempts, wait)
            time.sleep(wait)
            attempt += 1


# ---- reading -----------------------------------------------------------------------------------------------------


def open_file(path: str, block: int = 1 << 20) -> io.BufferedReader:
    """A file to read and seek in; from a store it comes in blocks of so many bytes, as they are wanted."""
    if not is_remote(path):
        return open(path, "rb")
    return io.BufferedReader(StoreFile(path), block)


def read_bytes(
    path: str, most: int | None = None, told: str = "", *, lasting: tuple[type[Exception], ...] = ()
) -> bytes:
    """A whole file; FileNotFoundError where there is none, ValueError where it has more than `most` bytes.

    told: the path as that error is to have it. lasting: what else is not tried again.
    """
    if not is_remote(path):
        with open(path, "rb") as file:
            data = file.read(-1 if most is None else most + 1)
    else:
        whole = partial(filesystem(path).cat_file, path, **({} if most is None else {"end": most + 1}))
        data = asked(path, whole, attempts=ATTEMPTS, lasting=(FileNotFoundError, IsADirectoryError, *lasting))
    if most is not None and len(data) > most:
        raise ValueError(f"{told or path}: has more than the {most:,} bytes that are read of such a file")
    return data


def read_head(path: str, count: int) -> bytes:
    """The first bytes of a file, no more than there are; none of one that cannot be opened."""
    try:
        if not is_remote(path):
            with open(path, "rb") as file:
                return file.read(count)
        return asked(
            path,
            partial(filesystem(path).cat_file, path, start=0, end=count),
            attempts=ATTEMPTS,
            lasting=(FileNotFoundError, PermissionError),
        )
    except StoreError:
        raise
    except OSError:
        return b""


class StoreFile(io.RawIOBase):
    """A file in a store, read by ranges: each whole, of the version that was there when it was opened."""

    def __init__(self, path: str):
        self.path, self.position, self.file, self.store = path, 0, None, filesystem(path)
        self.stamp = _stamp_of(asked(path, partial(_info, self.store, path), attempts=ATTEMPTS))
        self.size = self.stamp["size"]

    def readinto(self, buffer: bytearray | memoryview) -> int:
        count = max(0, min(len(buffer), self.size - self.position))
        if count:
            buffer[:count] = asked(self.path, partial(self._range, self.position, count), attempts=ATTEMPTS)
            self.position += count
        return count

    def _range(self, start: int, count: int) -> bytes:
        try:
            if self.file is None:
                self.file = self.store.open(self.path, "rb", cache_type="none")
            self.file.seek(start)
            data = self.file.read(count)
            if len(data) != count:
                raise EOFError(f"{len(data)} bytes came of the {count} from {start}")
            return data
        except Exception:
            self.file = None
            if (now := _stamp_of(_info(self.store, self.path))) != self.stamp:
                raise StoreError(
                    f"{self.path}: changed while it was read: {dict(self.stamp)} before, {dict(now)} now"
                ) from None
            raise

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        return self.position

    def tell(self) -> int:
        return self.position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


# ---- looking -----------------------------------------------------------------------------------------------------


def entry(path: str) -> Entry | None:
    """The file or folder at a path; None where there is none."""
    if is_remote(path):
        try:
            info = _looked_up(path, partial(_info, filesystem(path), path))
        except FileNotFoundError:
            return None
        return Entry(path, info["type"] == "directory", _stamp_of(info))
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # as os.path.exists: whatever cannot be a name too
        return None
    return Entry(path, stat.S_ISDIR(status.st_mode), {"size": status.st_size, "mtime_ns": status.st_mtime_ns})


def entries(paths: Iterable[str]) -> dict[str, Entry | None]:
    """The file or folder at each path; where many paths are in one folder of a store, that folder is listed."""
    entry_of: dict[str, Entry | None] = dict.fromkeys(paths)
    folders: dict[str, list[str]] = {}
    for path in entry_of:
        folders.setdefault(os.path.dirname(path), []).append(path)
    for folder, named in folders.items():
        listed = is_remote(folder) and len(named) > LISTED
        there = {one.path: one for one in listing(folder)} if listed else {}
        entry_of |= {path: there.get(path) if listed else entry(path) for path in named}
    return entry_of


def matches(pattern: str) -> dict[str, Entry | None]:
    """The files that a pattern with `*`, `?`, `[...]` or `**` names, sorted; None is a link to nothing."""
    if is_remote(pattern):
        return {one.path: one for one in _remote(pattern, "glob")}
    return {path: entry(path) for path in sorted(glob.glob(pattern, recursive=True))}


def listing(folder: str) -> list[Entry]:
    """The entries of a folder, sorted; [] where there is no folder."""
    if is_remote(folder):
        return _remote(folder, "ls")
    try:
        return [one for name in sorted(os.listdir(folder)) if (one := entry(os.path.join(folder, name)))]
    except FileNotFoundError:
        return []


def files_below(folder: str, enters: Callable[[str], bool] = lambda link: True) -> list[Entry]:
    """All files of a folder and its subfolders but hidden ones and LITTER; links to folders are followed once, those that `enters`."""
    if is_remote(folder):
        prefix = f"{folder.rstrip('/')}/"
        files = [file for file in _remote(folder, "find") if not file.is_folder and file.path.startswith(prefix)]
        return [file for file in files if not any(map(_is_hidden, file.path[len(prefix) :].split("/")))]
    files, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(
            name
            for name in folders
            if not _is_hidden(name) and (not os.path.islink(path := os.path.join(parent, name)) or enters(path))
        )
        for name in sorted(names):
            if not _is_hidden(name):
                path = os.path.join(parent, name)
                files.append(entry(path) or Entry(path, False, {"size": 0, "mtime_ns": 0}))  # a link to nothing
    return files


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in LITTER


def _remote(place: str, how: str) -> list[Entry]:
    store = filesystem(place)
    store.invalidate_cache()
    try:
        infos = _looked_up(place, partial(getattr(store, how), place, detail=True))
    except FileNotFoundError:
        return []
    infos = infos.values() if isinstance(infos, dict) else infos
    found = [
        Entry(store.unstrip_protocol(info["name"]), info["type"] == "directory", _stamp_of(info)) for info in infos
    ]
    return sorted((there for there in found if not there.path.endswith("/")), key=lambda there: there.path)


def _looked_up(path: str, look: Callable[[], Result]) -> Result:
    """The result of a look-up, tried again as a read is; FileNotFoundError and StoreRefuses are raised at once."""

    def found() -> Result:
        try:
            return look()
        except Exception as error:  # that credentials are missing, each store's library says with a class of its own
            if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
                raise StoreRefuses(f"{path}: {type(error).__name__}: {error}") from error
            raise

    return asked(path, found, attempts=ATTEMPTS, lasting=(FileNotFoundError,))


def _info(store: Any, path: str) -> Mapping[str, Any]:
    store.invalidate_cache(path)  # the Hub's keeps listings though told not to
    return store.info(path)


def _stamp_of(info: Mapping[str, Any]) -> dict[str, Any]:
    version = next(
        (info[name] for name in ("ETag", "etag", "blob_id", "LastModified", "created") if info.get(name)), ""
    )
    return {"size": info["size"] or 0, "etag": str(version).strip('"')}
