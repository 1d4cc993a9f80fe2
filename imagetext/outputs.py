"""Write files that appear under their name only when they are complete, on this machine and in stores."""

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

PART = 16 << 20  # bytes of one part of an upload, which is sent again if that fails; a store takes 10,000 parts
PATIENCE = 60.0  # seconds that a process waits for another one that writes the same file
UNFINISHED = ".capsmith.tmp"  # suffix of a file that is being written; no other program's files have it


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path for the block to write to; after the block, the file gets the name `path`.

    The data are on the disk before the file gets its name, and the name is on the disk when this returns. If anything
    fails, an earlier file of that name stays. The file has the permissions of the umask. For files of this machine
    only. The temporary name of a path is always the same, so the rest of a killed process disappears when the file is
    written again.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + UNFINISHED)
    with _claimed(temporary) as handle:
        try:
            permissions = os.stat(handle).st_mode & 0o777
            with naming(path):
                yield temporary
            os.chmod(temporary, permissions)  # some libraries give permissions to the owner only
            to_disk(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    to_disk(path.parent)


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """In the block, an error that names no file, as that of a full disk, gets this file's name."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = os.fspath(path)
        raise


@contextmanager
def _claimed(temporary: str | os.PathLike) -> Iterator[int]:
    """Create a file whose name no other process can claim during the block. The rest of a killed process is removed.

    Raises OSError if another process still writes under this name after PATIENCE seconds.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        handle = os.open(temporary, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            if not _locked(handle):
                if time.monotonic() > deadline:
                    raise OSError(errno.EBUSY, "another process writes this file", os.fspath(temporary))
                time.sleep(0.1)
            elif is_at(handle, temporary):
                if not os.fstat(handle).st_size:
                    yield handle
                    return
                os.unlink(temporary)  # left by a killed process, perhaps with other permissions
        finally:
            with suppress(OSError):  # closing is not enough: processes forked meanwhile hold the lock, too
                fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)


def _locked(handle: int) -> bool:
    """Lock the file until it is closed; False if another process has it. True on file systems without locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def is_at(handle: int, path: str | os.PathLike) -> bool:
    """Whether the open file or folder is the one at the path."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


@contextmanager
def whole_files(folder: str | os.PathLike, last: Collection[str] = ()) -> Iterator[Path]:
    """Yield a temporary folder; after the block, its files are moved to the same places in `folder`.

    Each file is moved as in `whole_file`. Files whose names are in `last` are moved after all others: their presence
    shows that the others are complete.
    """
    folder = Path(folder)
    staging = folder / f".saving{UNFINISHED}"
    shutil.rmtree(staging, ignore_errors=True)  # left by a killed process
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
    """Wait until a file's data, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Output:
    """A file that is written from beginning to end, while its bytes are hashed and counted.

    On this machine the file has a temporary name until `commit`, and its data are on the disk before it gets its name.
    In a store it is an upload of several parts, which `commit` completes. Before `commit`, and after `discard`, an
    earlier file of that name stays.
    """

    def __init__(self, path: str):
        self.path, self.size, self.closed = path, 0, False
        self._file: Any  # a file of the store or of this machine
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
            with naming(self.path):
                self._file.write(data)
        self._hash.update(data)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        """Do nothing: only `commit` makes the data permanent."""

    def finish(self) -> None:
        """Put all data on the disk (for a file of this machine). An earlier file of that name still stays."""
        if not is_remote(self.path) and not self._file.closed:
            with naming(self.path):
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()

    def commit(self) -> None:
        """Give the file its name.

        Raises OSError if its size is not that of what was written, or it is another file.
        """
        self.finish()
        if is_remote(self.path):
            call_store(self.path, self._complete)
        else:
            if not is_at(self._handle, self.path + UNFINISHED) or os.fstat(self._handle).st_size != self.size:
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
        """Remove the unfinished file; do nothing after `commit`."""
        if self.closed:
            return
        self.closed = True
        if is_remote(self.path):
            self._file.closed = True  # otherwise garbage collection would close it, and some stores then complete it
            try:
                call_store(self.path, self._file.discard)
            except StoreError as error:
                logger.warning(
                    "an upload could not be aborted; the next attempt to write this file does it: %s", error
                )
        else:
            with suppress(OSError):  # a full disk, which has raised an error before
                self._file.close()
            if is_at(self._handle, self.path + UNFINISHED):
                remove(self.path + UNFINISHED)
            self._claim.close()


def write_file(path: str | os.PathLike, data: bytes | str) -> None:
    """Write a small file, completely or not at all. A text is written in UTF-8, with lone surrogates as `\\udc80`."""
    path = plain_path(path)
    data = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
    if is_remote(path):
        call_store(path, partial(filesystem(path).pipe_file, path, data))
        return
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


def remove(path: str) -> None:
    """Remove a file, if there is one."""
    try:
        if is_remote(path):
            call_store(path, partial(filesystem(path).rm_file, path), lasting=(FileNotFoundError,))
        else:
            os.unlink(path)
    except FileNotFoundError:
        pass


def abort_uploads(path: str) -> int:
    """Abort unfinished uploads of this file, or of all files below `FOLDER/`, and return how many there were.

    Killed processes leave them. S3 keeps their parts, and charges for them; other stores let them expire.
    """
    if not path.startswith("s3://"):
        return 0
    store = filesystem(path)
    bucket, _, key = path.removeprefix("s3://").partition("/")
    uploads, page = [], {}
    while page is not None:
        listed = call_store(path, partial(store.call_s3, "list_multipart_uploads", Bucket=bucket, Prefix=key, **page))
        uploads += listed.get("Uploads") or []
        page = None
        if listed.get("IsTruncated"):
            page = {"KeyMarker": listed["NextKeyMarker"], "UploadIdMarker": listed["NextUploadIdMarker"]}
    uploads = [upload for upload in uploads if upload["Key"] == key or key.endswith("/")]
    for upload in uploads:
        part = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
        try:
            call_store(path, partial(store.call_s3, "abort_multipart_upload", **part), lasting=(FileNotFoundError,))
        except FileNotFoundError:
            pass  # completed or aborted meanwhile
    return len(uploads)
