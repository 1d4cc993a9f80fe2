"""Which files may be pictures of a set, and their bytes.

Only this module opens files that a table, metadata or a link names.

The paths in a set were chosen by its author. With all links followed, each must lie in a folder that the user named:
in those of `--images`, or, without these, in the folder of the file. The picture of a record that capsmith wrote may
always lie beside its table, and anywhere on this machine if it has the SHA-256 in the record, because only somebody
who has the picture can know that hash. Only regular files are opened, and links are followed again at that moment,
because a file may have been replaced by a link since the first check.
"""

import errno
import hashlib
import logging
import os
import posixpath
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import chain
from typing import Any, NamedTuple
from unicodedata import normalize
from urllib.parse import unquote

from imagetext import limits
from imagetext.fields import well_formed
from imagetext.problems import LeadsOutside
from imagetext.stores import LIBRARIES, StoreError, filesystem, is_remote, join, plain_path, read_bytes

logger = logging.getLogger(__name__)

LONGEST = 4096  # characters of a path
OF_ROWS = (  # errors of one row's path, not of the whole input
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
    errno.ELOOP,
    errno.ENXIO,
    errno.ENODEV,
)
_SNAPSHOT = re.compile(r"(.*/(?:datasets|models|spaces)--[^/]+)/snapshots/[^/]+(?:/.*)?")  # in the Hub's cache
_URL = re.compile(rf"(?!({'|'.join(LIBRARIES)}|file)://)[a-zA-Z][a-zA-Z0-9+.-]*://")  # of a kind that is not read


class Outside(ValueError):
    """A path that leads out of the folders of a set's pictures."""


class NotAFile(ValueError):
    """A folder, a device or a pipe, which is not opened."""


class PictureReference(NamedTuple):
    """The place of a picture as a row of a set names it."""

    name: str  # a path or URL, unchanged
    # The picture's hash, only in a record that capsmith wrote. The path in such a record starts from its table.
    sha256: str | None = None

    @property
    def ours(self) -> bool:
        """Whether capsmith wrote the record."""
        return self.sha256 is not None


@dataclass(frozen=True)
class PictureFolders:
    """The folders, on this machine or in stores, in which the pictures of one table, caption set or folder may lie."""

    of_file: str  # the folder of the table or caption set, or the folder of pictures
    named: tuple[str, ...] = ()  # by `--images`
    is_input: bool = False  # whether `of_file` itself was named as an input: then pictures may always lie there
    strict: bool = True  # whether a picture outside is an error; otherwise its record only has no picture
    real_of_file: tuple[str, ...] = field(init=False, repr=False, compare=False)  # with links followed
    real_allowed: tuple[str, ...] = field(init=False, repr=False, compare=False)  # with links followed

    def __post_init__(self) -> None:
        named = tuple(chain.from_iterable(_with_blobs(real_path(folder)) for folder in self.named))
        of_file = _with_blobs(real_path(self.of_file))
        object.__setattr__(self, "real_of_file", of_file)
        object.__setattr__(self, "real_allowed", (*of_file, *named) if self.is_input or not named else named)

    def paths(self, picture: PictureReference) -> list[str]:
        """The paths at which a picture is looked for, in order.

        A relative path starts from the folders of `--images`, then from that of the file. For a record that capsmith
        wrote, and in a folder of pictures, the folder of the file comes first. Backslashes, which separate folders on
        Windows, are taken as characters of the name first, and then as slashes. Then both forms of Unicode are tried:
        macOS writes é in file names as two characters. Last, percent signs in a `file://` URL are decoded.
        """
        if _URL.match(picture.name):
            return []
        first_of_file = picture.ours or self.is_input
        starts = (self.of_file, *self.named) if first_of_file else (*self.named, self.of_file)
        slashed = with_slashes(picture.name)
        decoded = unquote(picture.name) if picture.name.startswith("file://") else slashed
        names = (picture.name, slashed, normalize("NFC", slashed), normalize("NFD", slashed), decoded)
        return list(dict.fromkeys(join(start, name) for name in names for start in starts))

    def hold(self, real: str, ours: bool = False) -> bool:
        """Whether a path whose links were followed lies in one of the allowed folders.

        ours: whether the path is of a record that capsmith wrote, which may also lie in the folder of the file.
        """
        allowed = (*self.real_allowed, *self.real_of_file) if ours else self.real_allowed
        return any(f"{real}/".startswith(f"{folder.rstrip('/')}/") for folder in allowed)

    def __str__(self) -> str:
        allowed = (self.of_file, *self.named) if self.is_input or not self.named else self.named
        return " and ".join(folder or "the current folder" for folder in allowed)


def with_slashes(name: str) -> str:
    """A path with slashes for the backslashes that separate folders on Windows."""
    return name.replace("\\", "/")


def with_other_case(path: str) -> str:
    """A path with its suffix in capitals, or in small letters if it has capitals."""
    stem, suffix = os.path.splitext(path)
    return stem + (suffix.upper() if suffix.islower() else suffix.lower())


def named_folders(images: str | os.PathLike | Sequence[str | os.PathLike] | None) -> tuple[str, ...]:
    """The folders of `--images` as a tuple.

    Raises ValueError if one of them is not a path, or is in a store whose library is not installed.
    """
    folders = tuple(map(plain_path, [images] if isinstance(images, str | os.PathLike) else images or ()))
    for folder in filter(is_remote, folders):
        filesystem(folder)
    return folders


def real_path(path: str) -> str:
    """The path with all links followed, or the URL without `..`. Raises ValueError for what cannot be a path."""
    if is_remote(path):
        scheme, _, place = path.partition("://")
        return f"{scheme}://{posixpath.normpath(place)}"
    return os.path.realpath(path)


def _with_blobs(folder: str) -> tuple[str, ...]:
    """The folder, and for a snapshot in the Hub's cache also the folder that the links in it lead to."""
    snapshot = _SNAPSHOT.fullmatch(folder)
    return (folder, f"{snapshot[1]}/blobs") if snapshot else (folder,)


# ---- before any work -----------------------------------------------------------------------------------------------


def check_inside(
    place: str,
    pictures: Iterable[tuple[int | None, PictureReference]],
    folders: PictureFolders,
    *,
    what: str = "rows",
) -> None:
    """Raise LeadsOutside if pictures lead outside.

    The message has their number, the first one, and the flag that allows them. If the path of the first row leads to a
    file only from the current folder, a warning says so.

    place: the file or folder that names the pictures.
    pictures: each with the number of its row, counted from 0, or None. No picture is opened.
    what: what names the pictures, in the plural, for the message.
    """
    folder_inside = lru_cache(1 << 12)(partial(_folder_inside, folders))
    count, first, others_inside = 0, (None, PictureReference("")), False
    for index, (number, picture) in enumerate(pictures):
        if not index:
            _warn_of_current_folder(place, picture, folders)
        begin = picture.name.rfind("/") + 1
        folder, name = folder_inside(picture.name[:begin], picture.ours), picture.name[begin:]
        # Quick for most pictures: their folder is inside, and the file is no link.
        is_plain = bool(folder) and name not in ("", ".", "..")
        is_inside = is_plain and (is_remote(folder) or not os.path.islink(folder + name))
        if is_inside or any(_may_be_at(path, picture, folders) for path in folders.paths(picture)):
            others_inside |= not picture.ours
        elif _may_exist(picture):
            first = first if count else (number, picture)
            count += 1
    if not count:
        return
    number, picture = first
    paths = folders.paths(picture)
    real = real_path(next(filter(os.path.lexists, paths), paths[0]))
    suggested = [real if os.path.isdir(real) else os.path.dirname(real)]
    if others_inside and not folders.named and not folders.is_input:  # with --images, this folder must be named, too
        suggested.insert(0, folders.of_file or ".")
    row = "" if number is None else f", row {number + 1:,},"
    target = "" if real == picture.name else f", which is {short(real)}"
    raise LeadsOutside(
        f"{place}: {count:,} of its {what} lead outside {folders}; the first{row} names {short(picture.name)}{target}",
        count,
        suggested,
    )


def _warn_of_current_folder(place: str, picture: PictureReference, folders: PictureFolders) -> None:
    """Warn if a path leads to a file only from the current folder."""
    if not _may_exist(picture) or not os.path.isfile(picture.name):
        return
    if not any(is_remote(path) or os.path.exists(path) for path in folders.paths(picture)):
        logger.warning(
            "%s: paths of pictures start from %s, where %s is not; if they start from the current folder, add "
            "--images .",
            place,
            folders,
            short(picture.name),
        )


def _may_be_at(path: str, picture: PictureReference, folders: PictureFolders) -> bool:
    """Whether a picture may be read at a path: inside, or anywhere on this machine if its record has a hash."""
    return folders.hold(_real_or_empty(path), picture.ours) or bool(picture.sha256) and not is_remote(path)


def _folder_inside(folders: PictureFolders, folder: str, ours: bool) -> str:
    """The first path at which a row's folder may be, ending with /; "" if that path is not inside."""
    path = next((path or "." for path in folders.paths(PictureReference(folder, "" if ours else None))), "")
    return os.path.join(path, "") if folders.hold(_real_or_empty(path), ours) else ""


def _real_or_empty(path: str) -> str:
    try:
        return real_path(path)
    except ValueError:  # it cannot be a path
        return ""


def _may_exist(picture: PictureReference) -> bool:
    """Whether a file of this name can exist. A name that cannot is an error of its row, not of the input."""
    name = picture.name
    is_name = bool(name) and "\0" not in name and well_formed(name) == name and len(name) <= LONGEST
    return is_name and not _URL.match(name)


# ---- opening -------------------------------------------------------------------------------------------------------


class PictureReader:
    """Reads the pictures of one shard."""

    def __init__(self, folders: PictureFolders):
        self.folders = folders
        self.readable: dict[str, str] = {}  # by store: a picture that could be read
        self.unreadable: dict[str, str] = {}  # by store: why another picture could not be read
        # stores that have denied access to a picture; after this they get only one attempt for each picture
        self.denying: set[str] = set()

    def read(self, picture: PictureReference, shown_path: str = "") -> tuple[bytes, str]:
        """Return the bytes of a picture, and its path. Raises as `read_picture` does.

        Last, files are tried whose suffix is in the other case, which Windows and macOS do not distinguish.
        """
        problems: list[ValueError] = []
        shown_path = shown_path or picture.name
        paths = self.folders.paths(picture)
        for path in (*paths, *(with_other_case(path) for path in paths if not is_remote(path))):
            store = path.partition("://")[0] if is_remote(path) else ""
            try:
                data = read_picture(
                    path,
                    shown_path=shown_path,
                    folders=self.folders,
                    sha256=picture.sha256,
                    patient=store not in self.denying,
                )
            except StoreError:
                raise
            except ValueError as problem:
                problems.append(problem)
                if store and isinstance(problem.__cause__, OSError):
                    self.unreadable[store] = f"{path}: {problem}"
                    self.denying |= {store} if isinstance(problem.__cause__, PermissionError) else set()
                continue
            if store:
                self.readable[store] = path
            return data, path
        if not problems:
            raise ValueError(f"missing picture file: {short(shown_path)} (pictures are not fetched from URLs)")
        problems = problems[: len(paths)]
        raise next((problem for problem in problems if not isinstance(problem, Outside)), problems[0])

    def check(self) -> None:
        """Raise StoreError if a store has refused pictures and no other can be read: then the store is at fault."""
        for store, reason in self.unreadable.items():
            if store not in self.readable:
                raise StoreError(f"{reason}, and no other picture of this shard could be read from {store}://")
            try:
                read_bytes(self.readable[store])
            except OSError as error:
                raise StoreError(
                    f"{reason}, and {self.readable[store]}, which was read before, is refused now: {error}"
                ) from error


def read_picture(
    path: str,
    *,
    shown_path: str = "",
    folders: PictureFolders | None = None,
    sha256: str | None = None,
    patient: bool = True,
) -> bytes:
    """Return the bytes of a picture file.

    shown_path: the path in error messages, which are stored in records and must not depend on where the input lies
        (default: `path`).
    folders: the folders in which the file must lie. Without them, the path must not contain a link.
    sha256: the hash in a record that capsmith wrote. A file with this hash may be read anywhere on this machine,
        because the author of the record knew its content.
    patient: whether a store that denies access gets further attempts.

    Raises ValueError if there is no such picture, or it may not be read; OSError if the store or the disk fails.
    """
    name = short(shown_path or path)
    try:
        real = real_path(path)
        if not (folders.hold(real, sha256 is not None) if folders else is_remote(path) or real == path):
            if sha256 and not is_remote(path):
                data = read_regular(real, limits.FILE, name)
                if hashlib.sha256(data).hexdigest() == sha256:
                    return data
            raise Outside(f"a picture outside the set, in no folder of --images: {name}")
        if not is_remote(path):
            return read_regular(real, limits.FILE, name)
        if "\0" in path or well_formed(path) != path or len(path.encode()) > 1024:
            raise ValueError(f"neither a path nor a picture in base64: {name}")
        return read_bytes(path, limits.FILE, name, lasting=() if patient else (PermissionError,))
    except OSError as error:
        cause = error.__cause__ if isinstance(error, StoreError) else error
        if isinstance(cause, OSError) and cause.errno == errno.ENAMETOOLONG:
            raise ValueError(f"neither a path nor a picture in base64: {name}") from error
        if (
            not isinstance(cause, FileNotFoundError | IsADirectoryError | PermissionError)
            and getattr(cause, "errno", 0) not in OF_ROWS
        ):
            raise
        usual = errno.EACCES if isinstance(cause, PermissionError) else errno.ENOENT
        reason = getattr(cause, "strerror", None) or os.strerror(usual)
        raise ValueError(f"missing picture file: {name} ({reason})") from cause


def read_regular(real: str, most: int, shown_name: str = "", *, cut: bool = False) -> bytes:
    """Return the bytes of a regular file.

    real: a path without links.
    most: how many bytes are read.
    shown_name: the file's name in the message of the ValueError.
    cut: whether a longer file is cut; otherwise it is a ValueError.

    Raises NotAFile if the path is not a regular file.
    """
    if stat.S_ISREG(os.stat(real).st_mode):
        with open(os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                data = file.read(most + 1)
                if len(data) > most and not cut:
                    name = shown_name or short(os.path.basename(real))
                    raise ValueError(f"{name}: has more than the {most:,} bytes that are read of such a file")
                return data[:most]
    raise NotAFile(f"not a file: {short(os.path.basename(real))}")


def short(value: Any) -> str:
    """A value as messages show it: its repr, cut to 120 characters."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
