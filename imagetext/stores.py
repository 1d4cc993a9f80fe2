"""Files on this machine or in a store that fsspec reaches (`s3://`, `gs://`, `hf://`).

Each store's library finds its credentials in the environment. Files in stores are read in ranges. A range that fails
is read again a few times; if it still fails, a StoreError is raised, which is never taken for an error of one row.
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

from imagetext.read_ahead import SMALL_AHEAD

logger = logging.getLogger(__name__)

LIBRARIES = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub"}
# for a read or a look-up, with 1, 2, 4, 8 and 16 seconds between them; the stores' libraries make further attempts
ATTEMPTS = 6
FIRST_WAIT = 1.0  # seconds
LITTER = {"Thumbs.db", "desktop.ini", "__MACOSX", "@eaDir"}  # files of file managers that are not hidden
LISTED = 16  # if more files of one folder are looked up, the folder is listed instead

Result = TypeVar("Result")


class StoreError(OSError):
    """A store, or the connection to it, has failed."""


class LibraryMissing(StoreError, ValueError):
    """A store's library is not installed."""


class StoreRefuses(StoreError, ValueError):
    """A store denies access, or there are no credentials: another attempt would change nothing."""


@dataclass(frozen=True)
class Entry:
    """A file or a folder."""

    path: str
    is_folder: bool
    stamp: Mapping[str, Any]  # changes with a file: its size in bytes, and mtime_ns or the store's etag


# ---- paths -------------------------------------------------------------------------------------------------------


def is_remote(path: str) -> bool:
    scheme, separator, _ = path.partition("://")
    return bool(separator) and scheme in LIBRARIES


def plain_path(path: str | os.PathLike) -> str:
    """The path as text, without `file://`.

    Raises ValueError for a URL of an unknown kind, and for one that lost a slash in a `pathlib.Path`.
    """
    path = os.fspath(path)
    if re.match(rf"({'|'.join(LIBRARIES)}|file):/[^/]", path):
        raise ValueError(f"{path}: a URL has two slashes; pathlib.Path removes one, so give it as text")
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*)://", path)
    if scheme and scheme[1] != "file" and scheme[1] not in LIBRARIES and not os.path.exists(path):
        raise ValueError(f"{path}: {scheme[0]} is none of file://, {', '.join(f'{name}://' for name in LIBRARIES)}")
    return path.removeprefix("file://")


def join(folder: str, name: str) -> str:
    """The path of a name in a folder. A name that is a URL or an absolute path stays as it is."""
    name = name.removeprefix("file://")
    if "://" in name:
        return name
    if not is_remote(folder) or os.path.isabs(name):
        return os.path.join(folder, name)
    scheme, _, place = folder.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(place, name))}"


# ---- calls to stores, and further attempts ------------------------------------------------------------------------


def filesystem(path: str) -> Any:
    """The store of a URL, an `fsspec.AbstractFileSystem`. Raises LibraryMissing, which says what to install."""
    return _filesystem(path.partition("://")[0], os.getpid())


@lru_cache
def _filesystem(scheme: str, process: int) -> Any:
    """The store for all threads of one process; it does not cache listings."""
    import fsspec

    connect = partial(fsspec.filesystem, scheme, skip_instance_cache=True, use_listings_cache=False)
    try:
        store = call_store(f"{scheme}://", connect, lasting=(ImportError,))
    except ImportError as error:
        raise LibraryMissing(f"{scheme}:// needs {LIBRARIES[scheme]}: pip install 'capsmith[remote]'") from error
    if scheme == "s3":
        # botocore makes attempts (AWS_MAX_ATTEMPTS), and so do we; those of s3fs on top would take too long
        store.retries = 1
        store.max_concurrency = 1  # otherwise each read of a whole file asks for the file's size first
        store.config_kwargs = {"max_pool_connections": SMALL_AHEAD, **store.config_kwargs}  # botocore's own are 10
    return store


def call_store(
    path: str, action: Callable[[], Result], *, attempts: int = 1, lasting: tuple[type[Exception], ...] = ()
) -> Result:
    """Return the result of an action on a store.

    The action is tried up to `attempts` times, with waits that double. Then a StoreError that names the path is
    raised.

    lasting: errors that another attempt would not change; they are raised as they are.
    """
    attempt = 1
    while True:
        try:
            return action()
        except (StoreError, MemoryError, *lasting):
            raise
        except Exception as error:  # the libraries of stores raise errors of many types
            reason = f"{path}: {type(error).__name__}: {error}"
            if attempt == attempts:
                raise StoreError(f"{reason} (in {attempts} attempts)" if attempts > 1 else reason) from error
            wait = FIRST_WAIT * 2 ** (attempt - 1)
            logger.warning("%s; attempt %d of %d in %g seconds", reason, attempt + 1, attempts, wait)
            time.sleep(wait)
            attempt += 1


# ---- reading -----------------------------------------------------------------------------------------------------


def open_file(path: str, block: int = 1 << 20) -> io.BufferedReader:
    """Open a file for reading and seeking.

    A file in a store is read in blocks of `block` bytes, when they are needed. Raises ValueError for a pipe or device.
    """
    if not is_remote(path):
        check_regular(path)
        return open(path, "rb")
    return io.BufferedReader(StoreFile(path), block)


def check_regular(path: str) -> None:
    """Raise ValueError if something on this machine is a pipe or a device, which can be read only once."""
    if not is_remote(path) and os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise ValueError(f"{path}: is a pipe or a device, which cannot be read more than once; write a file first")


def read_bytes(
    path: str, most: int | None = None, shown_path: str = "", *, lasting: tuple[type[Exception], ...] = ()
) -> bytes:
    """Read a whole file.

    shown_path: the path in the message of the ValueError (default: `path`).
    lasting: further errors after which no other attempt is made.

    Raises FileNotFoundError if there is no file, ValueError if it has more than `most` bytes.
    """
    if not is_remote(path):
        with open(path, "rb") as file:
            data = file.read(-1 if most is None else most + 1)
    else:
        read_file = partial(filesystem(path).cat_file, path, **({} if most is None else {"end": most + 1}))
        data = call_store(path, read_file, attempts=ATTEMPTS, lasting=(FileNotFoundError, IsADirectoryError, *lasting))
    if most is not None and len(data) > most:
        raise ValueError(f"{shown_path or path}: has more than the {most:,} bytes that are read of such a file")
    return data


def read_head(path: str, count: int) -> bytes:
    """The first `count` bytes of a file, or fewer if it is shorter; b"" if it cannot be opened."""
    try:
        if not is_remote(path):
            with open(path, "rb") as file:
                return file.read(count)
        return call_store(
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
    """A file in a store, read in whole ranges. A change of the file after it was opened is a StoreError."""

    def __init__(self, path: str):
        self.path, self.position, self.file, self.store = path, 0, None, filesystem(path)
        self.stamp = _stamp_of(call_store(path, partial(_info, self.store, path), attempts=ATTEMPTS))
        self.size = self.stamp["size"]

    def readinto(self, buffer: bytearray | memoryview) -> int:
        count = max(0, min(len(buffer), self.size - self.position))
        if count:
            read_range = partial(self._read_range, self.position, count)
            buffer[:count] = call_store(self.path, read_range, attempts=ATTEMPTS)
            self.position += count
        return count

    def _read_range(self, start: int, count: int) -> bytes:
        try:
            if self.file is None:
                self.file = self.store.open(self.path, "rb", cache_type="none")
            self.file.seek(start)
            data = self.file.read(count)
            if len(data) != count:
                raise EOFError(f"{len(data)} of {count} bytes were read from offset {start}")
            return data
        except Exception:
            self.file = None
            stamp = _stamp_of(_info(self.store, self.path))
            if stamp != self.stamp:
                raise StoreError(
                    f"{self.path}: changed while it was read: {dict(self.stamp)} before, {dict(stamp)} now"
                ) from None
            raise

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        return self.position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


# ---- look-ups and listings ---------------------------------------------------------------------------------------


def entry(path: str) -> Entry | None:
    """The file or folder at a path; None if there is none."""
    if is_remote(path):
        try:
            info = _look_up(path, partial(_info, filesystem(path), path))
        except FileNotFoundError:
            return None
        return Entry(path, info["type"] == "directory", _stamp_of(info))
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: the path cannot be a name; os.path.exists is False for these, too
        return None
    return Entry(path, stat.S_ISDIR(status.st_mode), {"size": status.st_size, "mtime_ns": status.st_mtime_ns})


def entries(paths: Iterable[str]) -> dict[str, Entry | None]:
    """The file or folder at each path; None if there is none. For many paths in one folder of a store it is listed."""
    entry_of: dict[str, Entry | None] = dict.fromkeys(paths)
    folders: dict[str, list[str]] = {}
    for path in entry_of:
        folders.setdefault(os.path.dirname(path), []).append(path)
    for folder, members in folders.items():
        if is_remote(folder) and len(members) > LISTED:
            listed = {file.path: file for file in listing(folder)}
            entry_of |= {path: listed.get(path) for path in members}
        else:
            entry_of |= {path: entry(path) for path in members}
    return entry_of


def matches(pattern: str) -> dict[str, Entry | None]:
    """The files that match a pattern with `*`, `?`, `[...]` or `**`, sorted; None for a broken link.

    The brackets of a folder that exists are no pattern.
    """
    folder = os.path.dirname(pattern)
    if glob.has_magic(folder) and entry(folder):
        pattern = glob.escape(folder) + pattern[len(folder) :]
    if is_remote(pattern):
        return {file.path: file for file in _remote_entries(pattern, "glob")}
    return {path: entry(path) for path in sorted(glob.glob(pattern, recursive=True))}


def listing(folder: str) -> list[Entry]:
    """The entries of a folder, sorted; [] if there is no folder."""
    if is_remote(folder):
        return _remote_entries(folder, "ls")
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    return [file for name in names if (file := entry(os.path.join(folder, name)))]


def files_of(folder: str | os.PathLike) -> dict[str, Entry]:
    """The entries of a folder by their names; {} if there is no folder."""
    return {os.path.basename(file.path): file for file in listing(plain_path(folder))}


def files_below(folder: str, enters: Callable[[str], bool] = lambda link: True) -> list[Entry]:
    """All files of a folder and its subfolders, except hidden files and LITTER.

    Links to folders are followed, each folder once.

    enters: takes the path of a link to a folder, and says whether it is to be followed.
    """
    if is_remote(folder):
        prefix = f"{folder.rstrip('/')}/"
        files = [
            file for file in _remote_entries(folder, "find") if not file.is_folder and file.path.startswith(prefix)
        ]
        return [file for file in files if not any(map(_is_hidden, file.path[len(prefix) :].split("/")))]
    files, visited = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(
            name
            for name in folders
            if not _is_hidden(name) and (not os.path.islink(path := os.path.join(parent, name)) or enters(path))
        )
        for name in sorted(names):
            if not _is_hidden(name):
                path = os.path.join(parent, name)
                files.append(entry(path) or Entry(path, False, {"size": 0, "mtime_ns": 0}))  # a broken link
    return files


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in LITTER


def _remote_entries(path: str, method: str) -> list[Entry]:
    """What a store's method `ls`, `glob` or `find` returns for a path or pattern, sorted; [] if there is nothing."""
    store = filesystem(path)
    store.invalidate_cache()
    try:
        infos = _look_up(path, partial(getattr(store, method), path, detail=True))
    except FileNotFoundError:
        return []
    infos = infos.values() if isinstance(infos, dict) else infos
    files = [
        Entry(store.unstrip_protocol(info["name"]), info["type"] == "directory", _stamp_of(info)) for info in infos
    ]
    return sorted((file for file in files if not file.path.endswith("/")), key=lambda file: file.path)


def _look_up(path: str, look: Callable[[], Result]) -> Result:
    """The result of a look-up, tried ATTEMPTS times; FileNotFoundError and StoreRefuses are raised at once."""

    def look_or_refuse() -> Result:
        try:
            return look()
        except Exception as error:  # each store's library has a class of its own for missing credentials
            if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
                raise StoreRefuses(f"{path}: {type(error).__name__}: {error}") from error
            raise

    return call_store(path, look_or_refuse, attempts=ATTEMPTS, lasting=(FileNotFoundError,))


def _info(store: Any, path: str) -> Mapping[str, Any]:
    store.invalidate_cache(path)  # the Hub's library caches listings in spite of `use_listings_cache=False`
    return store.info(path)


def _stamp_of(info: Mapping[str, Any]) -> dict[str, Any]:
    version = next(
        (info[name] for name in ("ETag", "etag", "blob_id", "LastModified", "created") if info.get(name)), ""
    )
    return {"size": info["size"] or 0, "etag": str(version).strip('"')}
