"""Which files the pictures of a set may be, and their bytes: the one place that opens what a table, metadata or a link names.

Whoever made a set chose the paths in it. With all links followed, each has to lie in a folder that the user named: in those of
`--images`, or else in that of the file. The picture of a record that we wrote may lie beside its table in any case, and anywhere on this
machine if it has the SHA-256 in the record: who can tell that has the picture. Only regular files are opened, and where each leads is looked
up anew then, for a link may have taken its place.
"""

import errno
import hashlib
import os
import posixpath
import re
import shlex
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, NamedTuple

from imagetext import limits
from imagetext.fields import well_formed
from imagetext.stores import LIBRARIES, StoreError, filesystem, is_remote, join, plain_path, read_bytes

LONGEST = 4096  # bytes of a path
FLAGS = 8  # that one message names
PROBLEMS = 100  # that are told, one a line
OF_ROWS = (
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


class LeadsOutside(ValueError):
    """Pictures of one input, or of several, that lead out: what the first says, how many they are, and the folders where they lie."""

    def __init__(self, first: str, count: int, folders: Sequence[str], inputs: int = 1):
        super().__init__(first, count, folders, inputs)
        self.first, self.count, self.folders, self.inputs = first, count, dict.fromkeys(folders), inputs

    def __str__(self) -> str:
        others = f"; together with {self.inputs - 1:,} other inputs, {self.count:,} do" if self.inputs > 1 else ""
        flags = " ".join(f"--images {shlex.quote(folder)}" for folder in [*self.folders][:FLAGS])
        return f"{self.first}{others}; where such files are meant to be read, add {flags}, or a folder above"


class NotAFile(ValueError):
    """A folder, a device or a pipe, which is not opened."""


class Picture(NamedTuple):
    """Where a row says that its picture is."""

    name: str  # as the row has it
    # of the picture, in a record that we wrote, whose path starts from its table; None in all others
    sha256: str | None = None

    @property
    def ours(self) -> bool:
        return self.sha256 is not None


@dataclass(frozen=True)
class PictureFolders:
    """The folders, on this machine or in stores, in which the pictures of one table, caption set or folder may lie."""

    own: str  # of the file
    named: tuple[str, ...] = ()  # by `--images`
    is_input: bool = False  # whether `own` itself was named as an input: then pictures may always lie there
    strict: bool = True  # whether a picture outside is an error; else its record has none
    real_own: tuple[str, ...] = field(init=False, repr=False, compare=False)  # with links followed
    real: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        named = tuple(one for folder in self.named for one in _with_blobs(real_path(folder)))
        object.__setattr__(self, "real_own", _with_blobs(real_path(self.own)))
        object.__setattr__(self, "real", (*self.real_own * (self.is_input or not named), *named))

    def paths(self, picture: Picture) -> list[str]:
        """Where a picture may be, in the order of looking: a path starts from `--images`, then from the file, of ours the reverse."""
        if _URL.match(picture.name):
            return []
        starts = (self.own, *self.named) if picture.ours or self.is_input else (*self.named, self.own)
        return list(dict.fromkeys(join(start, picture.name) for start in starts))

    def hold(self, real: str, ours: bool = False) -> bool:
        """Whether a path, its links followed, is in one of them."""
        return any(f"{real}/".startswith(f"{root.rstrip('/')}/") for root in (*self.real, *self.real_own * ours))

    def __str__(self) -> str:
        return " and ".join(
            one or "the current folder" for one in ((self.own,) * (self.is_input or not self.named) + self.named)
        )


def named_folders(images: str | os.PathLike | Sequence[str | os.PathLike] | None) -> tuple[str, ...]:
    """The folders of `--images`; ValueError where one is no path, or is in a store whose library is not installed."""
    folders = tuple(map(plain_path, [images] if isinstance(images, str | os.PathLike) else images or ()))
    for folder in filter(is_remote, folders):
        filesystem(folder)
    return folders


def real_path(path: str) -> str:
    """The path with all links followed, of a URL without `..`; ValueError where it can be none."""
    if is_remote(path):
        scheme, _, place = path.partition("://")
        return f"{scheme}://{posixpath.normpath(place)}"
    return os.path.realpath(path)


def _with_blobs(folder: str) -> tuple[str, ...]:
    """The folder, and the one in which the Hub's cache keeps what its links lead to."""
    snapshot = _SNAPSHOT.fullmatch(folder)
    return (folder, f"{snapshot[1]}/blobs") if snapshot else (folder,)


# ---- before any work ------------------------------------------------------------------------------------------------------


def check_inside(
    place: str, pictures: Iterable[tuple[int | None, Picture]], folders: PictureFolders, what: str = "rows"
) -> None:
    """Raises LeadsOutside where pictures do, with the number of them, the first, and the flag that lets them be read.

    pictures: each with the number of its row from 0, if it has one. what: of which there are so many. No file is opened.
    """
    known = lru_cache(1 << 12)(partial(_folder_inside, folders))
    count, first, others_inside = 0, (None, Picture("")), False
    for number, picture in pictures:
        begin = picture.name.rfind("/") + 1
        folder, name = known(picture.name[:begin], picture.ours), picture.name[begin:]
        if (
            folder
            and name not in ("", ".", "..")
            and (is_remote(folder) or not os.path.islink(folder + name))
            or any(
                folders.hold(_real_or_none(path), picture.ours) or picture.sha256 and not is_remote(path)
                for path in folders.paths(picture)
            )
        ):
            others_inside |= not picture.ours
        elif _can_be(picture):
            first = first if count else (number, picture)
            count += 1
    if not count:
        return
    number, picture = first
    paths = folders.paths(picture)
    real = real_path(next(filter(os.path.lexists, paths), paths[0]))
    places = [folders.own or "."] * (others_inside and not folders.named and not folders.is_input) + [
        real if os.path.isdir(real) else os.path.dirname(real)
    ]
    row, leads = (
        "" if number is None else f", row {number + 1:,},",
        "" if real == picture.name else f", which is {short(real)}",
    )
    raise LeadsOutside(
        f"{place}: {count:,} of its {what} lead outside {folders}; the first{row} names {short(picture.name)}{leads}",
        count,
        places,
    )


def one_error(problems: Iterable[str | Exception]) -> ValueError:
    """One error that tells all problems, each once; all pictures that lead outside are one of them."""
    problems = list(problems)
    outside = [problem for problem in problems if isinstance(problem, LeadsOutside)]
    others = list(dict.fromkeys(str(problem) for problem in problems if not isinstance(problem, LeadsOutside)))
    if len(others) > PROBLEMS:
        others[PROBLEMS:] = [f"and {len(others) - PROBLEMS:,} more problems"]
    if not outside:
        return ValueError("\n".join(others))
    together = LeadsOutside(
        outside[0].first,
        sum(problem.count for problem in outside),
        [place for problem in outside for place in problem.folders],
        sum(problem.inputs for problem in outside),
    )
    return ValueError("\n".join([*others, str(together)])) if others else together


def _folder_inside(folders: PictureFolders, folder: str, ours: bool) -> str:
    """The first place where a folder of a row may be, as a path that ends with /; "" where that is not inside."""
    path = next((path or "." for path in folders.paths(Picture(folder, "" if ours else None))), "")
    return os.path.join(path, "") if folders.hold(_real_or_none(path), ours) else ""


def _real_or_none(path: str) -> str:
    try:
        return real_path(path)
    except ValueError:  # it can be none
        return ""


def _can_be(picture: Picture) -> bool:
    """Whether there can be a file of this name; what is none is its row's error."""
    name = picture.name
    return (
        bool(name) and "\0" not in name and well_formed(name) == name and len(name) <= LONGEST and not _URL.match(name)
    )


# ---- opening --------------------------------------------------------------------------------------------------------------


class PictureReader:
    """Reads the pictures of one shard."""

    def __init__(self, folders: PictureFolders):
        self.folders = folders
        self.given: dict[str, str] = {}  # a picture of each kind of store
        self.refused: dict[str, str] = {}  # why it did not give another one
        # the stores that have refused one for lack of rights, and are not asked twice again
        self.denied: set[str] = set()

    def read(self, picture: Picture, told: str = "") -> tuple[bytes, str]:
        """The bytes of a picture, and its path; raises as `read_picture` does."""
        problems: list[ValueError] = []
        for path in self.folders.paths(picture):
            store = path.partition("://")[0] if is_remote(path) else ""
            try:
                data = read_picture(
                    path, told or picture.name, self.folders, picture.sha256, patient=store not in self.denied
                )
            except StoreError:
                raise
            except ValueError as problem:
                problems.append(problem)
                if store and isinstance(problem.__cause__, OSError):
                    self.refused[store] = f"{path}: {problem}"
                    self.denied |= {store} if isinstance(problem.__cause__, PermissionError) else set()
                continue
            if store:
                self.given[store] = path
            return data, path
        told = short(told or picture.name)
        raise next(
            (one for one in problems if not isinstance(one, Outside)), next(iter(problems), None)
        ) or ValueError(f"missing picture file: {told} (pictures are not fetched from URLs)")

    def check(self) -> None:
        """Raises StoreError where a store has refused pictures and gives no other one: not the rows are at fault then."""
        for store, reason in self.refused.items():
            if store not in self.given:
                raise StoreError(f"{reason}, and {store}:// gave no other picture of this shard")
            try:
                read_bytes(self.given[store])
            except OSError as error:
                raise StoreError(
                    f"{reason}, and {self.given[store]}, which was read before, is refused now: {error}"
                ) from error


def read_picture(
    path: str,
    told: str = "",
    folders: PictureFolders | None = None,
    sha256: str | None = None,
    *,
    patient: bool = True,
) -> bytes:
    """The bytes of a picture file; ValueError where there is none to be read; other trouble with the store stays an OSError.

    told: the path as the error is to have it, which stands in a record and is the same wherever the input lies. folders: where it
    must lie; unless given, there may be no link in the path. sha256: of a record that we wrote: where the file has it, it may be
    read wherever it is on this machine, for whoever wrote the record knew it. patient: whether a store that refuses it is asked again.
    """
    name = short(told or path)
    try:
        real = real_path(path)
        if not (folders.hold(real, sha256 is not None) if folders else is_remote(path) or real == path):
            if (
                sha256
                and not is_remote(path)
                and hashlib.sha256(data := read_regular(real, limits.FILE, name)).hexdigest() == sha256
            ):
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


def read_regular(real: str, most: int, told: str = "", *, cut: bool = False) -> bytes:
    """The bytes of a file by a path without links; NotAFile where it is none.

    Of more than `most` bytes the first are given if they may be cut, else it is a ValueError.
    """
    if stat.S_ISREG(os.stat(real).st_mode):
        with open(os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                data = file.read(most + 1)
                if len(data) > most and not cut:
                    raise ValueError(
                        f"{told or short(os.path.basename(real))}: has more than the {most:,} bytes that are read of such a file"
                    )
                return data[:most]
    raise NotAFile(f"not a file: {short(os.path.basename(real))}")


def short(value: Any) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
