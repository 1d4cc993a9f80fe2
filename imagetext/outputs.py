"""Files that stand under their name only when they are whole, on this machine and in stores."""

import hashlib
import logging
import os
from contextlib import suppress
from functools import partial

from imagetext.stores import StoreError, asked, filesystem, is_remote

logger = logging.getLogger(__name__)

PART = 16 << 20  # bytes of an upload that are sent at once, and sent again where that fails; a store takes 10,000 such


class Output:
    """A file to write from its beginning to its end, hashed and counted on the way.

    On this machine it has a temporary name until `commit`, and the data are on disk before it has its own. In a store it is
    one upload of several parts, which `commit` completes. Until then, and after `discard`, whatever had its name stays.
    """

    def __init__(self, path: str):
        self.path, self.size, self.closed = path, 0, False
        self._hash = hashlib.sha256()
        if is_remote(path):
            self._file = asked(path, partial(filesystem(path).open, path, "wb", block_size=PART, autocommit=False))
        else:
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            self._file = open(path + ".tmp", "wb")

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def write(self, data: bytes) -> int:
        if is_remote(self.path):
            asked(self.path, partial(self._file.write, data))
        else:
            self._file.write(data)
        self._hash.update(data)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        """Nothing: what is written counts from `commit` on."""

    def commit(self) -> None:
        """Gives the file its name; StoreError where a store does not hold as much as was written."""
        if is_remote(self.path):
            asked(self.path, self._complete)
        else:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self.path + ".tmp", self.path)
            _sync_folder(os.path.dirname(self.path))
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
                asked(self.path, self._file.discard)
            except StoreError as error:
                logger.warning("an upload is left, and aborted when this file is begun again: %s", error)
        else:
            with suppress(OSError):  # a full disk, which has been told of
                self._file.close()
            remove(self.path + ".tmp")


def write_file(path: str, data: bytes) -> None:
    """A small file, whole or not at all."""
    if is_remote(path):
        asked(path, partial(filesystem(path).pipe_file, path, data))
        return
    output = Output(path)
    try:
        output.write(data)
        output.commit()
    finally:
        output.discard()


def remove(path: str) -> None:
    """Removes a file, if there is one."""
    try:
        if is_remote(path):
            asked(path, partial(filesystem(path).rm_file, path), lasting=(FileNotFoundError,))
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
        found = asked(path, partial(store.call_s3, "list_multipart_uploads", Bucket=bucket, Prefix=key, **page))
        uploads += found.get("Uploads") or []
        more = found.get("IsTruncated")
        page = {"KeyMarker": found["NextKeyMarker"], "UploadIdMarker": found["NextUploadIdMarker"]} if more else None
    uploads = [upload for upload in uploads if upload["Key"] == key or key.endswith("/")]
    for upload in uploads:
        one = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
        try:
            asked(path, partial(store.call_s3, "abort_multipart_upload", **one), lasting=(FileNotFoundError,))
        except FileNotFoundError:
            pass  # completed or aborted by now
    return len(uploads)


def _sync_folder(folder: str) -> None:
    """Has the folder's names on disk."""
    handle = os.open(folder or ".", os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
