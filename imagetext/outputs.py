"""Files that stand under their name only when they are whole, on this machine and in stores."""

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from imagetext.stores import StoreError, call_store, filesystem, is_remote, plain_path

logger = logging.getLogger(__name__)

PART = 16 << 20  # bytes of an upload that are sent at once, and sent again where that fails; a store takes 10,000 such
PATIENCE = 60.0  # seconds that a process waits for another one that writes the same file
UNFINISHED = ".capsmith.tmp"  # what a file's name has behind it while the file is written; nobody else's file has it


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary name, of which the file that the block writes there gets its own name once it is whole.

    What was written is on the disk before the file gets its name, and the name is before the block is left. Where anything
    fails, whatever had the name stays. The file has the rights that the umask gives, whoever wrote it. For this machine only.
    The temporary name is always the same, so that what a killed process has left goes when the file is written again.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + UNFINISHED)
    with _claimed(temporary) as handle:
        try:
            rights = os.stat(handle).st_mode & 0o777
            yield temporary
            os.chmod(temporary, rights)  # some libraries give the owner alone any
            to_disk(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    to_disk(path.parent)


@contextmanager
def _claimed(temporary: str | os.PathLike) -> Iterator[int]:
    """A new file, of which no other process takes the name as long as this one has it; what a killed process has left goes.

    Raises: OSError where another process still writes under the name after PATIENCE seconds.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        handle = os.open(temporary, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            if not _locked(handle):
                if time.monotonic() > deadline:
                    raise OSError(errno.EBUSY, "another process writes this file", os.fspath(temporary))
                time.sleep(0.1)
            elif _is_at(handle, temporary):
                if not os.fstat(handle).st_size:
                    yield handle
                    return
                os.unlink(temporary)  # left by a killed process, with whatever rights
        finally:
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_UN)  # processes that were forked meanwhile hold it, too
            os.close(handle)


def _locked(handle: int) -> bool:
    """Whether this process has the file alone, until it closes it; True, too, on file systems that cannot tell."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _is_at(handle: int, path: str | os.PathLike) -> bool:
    """Whether the open file is the one at the path."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


@contextmanager
def whole_files(folder: str | os.PathLike, last: Collection[str] = ()) -> Iterator[Path]:
    """A temporary folder, whose files go to their places in `folder` once the block has written them all.

    Each goes there as in `whole_file`, those of the names in `last` after all others: they vouch for the rest.
    """
    folder = Path(folder)
    staging = folder / f".saving{UNFINISHED}"
    shutil.rmtree(staging, ignore_errors=True)  # a killed process has left it
    staging.mkdir(parents=True)
    try:
        yield staging
        files = [path for path in staging.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: (path.name in last, path)):
            with whole_file(folder / path.relative_to(staging)) as temporary:
                os.replace(path, temporary)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def to_disk(path: str | os.PathLike) -> None:
    """Has a file's data, or the names in a folder, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Output:
    """A file to write from its beginning to its end, hashed and counted on the way.

    On this machine it has a temporary name until `commit`, and the data are on disk before it has its own. In a store it is
    one upload of several parts, which `commit` completes. Until then, and after `discard`, whatever had its name stays.
    """

    def __init__(self, path: str):
        self.path, self.size, self.closed = path, 0, False
        self._file: Any  # of the store, or of this machine
        self._hash = hashlib.sha256()
        if is_remote(path):
            self._file = call_store(
                path, partial(filesystem(path).open, path, "wb", block_size=PART, autocommit=False)
            )
        else:
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            self._claim = ExitStack()
            self._handle = self._claim.enter_context(_claimed(path + UNFINISHED))
            self._file = open(path + UNFINISHED, "wb")

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def write(self, data: bytes) -> int:
        if is_remote(self.path):
            call_store(self.path, partial(self._file.write, data))
        else:
            self._file.write(data)
        self._hash.update(data)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        """Nothing: what is written counts from `commit` on."""

    def finish(self) -> None:
        """Has all that was written on the disk, where it is a file of this machine; what had its name is still there."""
        if not is_remote(self.path) and not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def commit(self) -> None:
        """Gives the file its name; OSError where that is not what was written: as much as that, and by nobody else."""
        self.finish()
        if is_remote(self.path):
            call_store(self.path, self._complete)
        else:
            if not _is_at(self._handle, self.path + UNFINISHED) or os.fstat(self._handle).st_size != self.size:
                raise OSError(
                    f"{self.path}{UNFINISHED}: is not what was written there; another process has written it, too"
                )
            os.replace(self.path + UNFINISHED, self.path)
            to_disk(os.path.dirname(self.path) or ".")
            self._claim.close()
        self.closed = True

    def _complete(self) -> None:
        self._file.close()
        self._file.commit()
        stored = filesystem(self.path).info(self.path)["size"]
        if stored != self.size:
            raise OSError(f"{self.size} bytes were written, the store has {stored}")

    def discard(self) -> None:
        """Leaves nothing of the file; does nothing once it has its name."""
        if self.closed:
            return
        self.closed = True
        if is_remote(self.path):
            self._file.closed = True  # or it would be closed, and in some stores completed, when collected as garbage
            try:
                call_store(self.path, self._file.discard)
            except StoreError as error:
                logger.warning("an upload is left, and aborted when this file is begun again: %s", error)
        else:
            with suppress(OSError):  # a full disk, which has been told of
                self._file.close()
            if _is_at(self._handle, self.path + UNFINISHED):
                remove(self.path + UNFINISHED)
            self._claim.close()


def write_file(path: str | os.PathLike, data: bytes | str) -> None:
    """A small file, whole or not at all; a text in UTF-8, lone surrogates as `\\udc80`."""
    path = plain_path(path)
    data = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
    if is_remote(path):
        call_store(path, partial(filesystem(path).pipe_file, path, data))
        return
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


def remove(path: str) -> None:
    """Removes a file, if there is one."""
    try:
        if is_remote(path):
            call_store(path, partial(filesystem(path).rm_file, path), lasting=(FileNotFoundError,))
        else:
            os.unlink(path)
    except FileNotFoundError:
        pass


def abort_uploads(path: str) -> int:
    """Aborts the uploads of this file, or of the files below `FOLDER/`, that a killed process has left; returns how many.

    S3 keeps, and charges for, their parts until then; other stores let them expire, and this machine has none.
    """
    if not path.startswith("s3://"):
        return 0
    store = filesystem(path)
    bucket, _, key = path.removeprefix("s3://").partition("/")
    uploads, page = [], {}
    while page is not None:
        listed = call_store(path, partial(store.call_s3, "list_multipart_uploads", Bucket=bucket, Prefix=key, **page))
        uploads += listed.get("Uploads") or []
        more = listed.get("IsTruncated")
        page = {"KeyMarker": listed["NextKeyMarker"], "UploadIdMarker": listed["NextUploadIdMarker"]} if more else None
    uploads = [upload for upload in uploads if upload["Key"] == key or key.endswith("/")]
    for upload in uploads:
        part = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
        try:
            call_store(path, partial(store.call_s3, "abort_multipart_upload", **part), lasting=(FileNotFoundError,))
        except FileNotFoundError:
            pass  # completed or aborted by now
    return len(uploads)
