"""One run for each folder: a lock file with a sign of life.

Another run may take over a lock without a sign of life.
"""

import errno
import json
import logging
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from functools import lru_cache, partial
from inspect import signature
from pathlib import Path
from typing import Any, Self

import psutil

from imagetext.outputs import is_at, remove
from imagetext.stores import ATTEMPTS, call_store, entry, filesystem, is_remote, join, plain_path

logger = logging.getLogger(__name__)

LOCK = ".lock"
BEAT = 10.0  # seconds between signs of life
DEAD = 60.0  # seconds without a sign of life, after which the lock may be taken over
NO_RIGHTS = (errno.EACCES, errno.EPERM, errno.EROFS)  # the last is that of a file system mounted for reading only
JOB = "CAPSMITH_JOB"  # environment variable of processes that share the lock of the process that started them
LAUNCHERS = {  # the variable with the number of processes, and those that identify the job
    "WORLD_SIZE": ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT"),
    "SLURM_STEP_NUM_TASKS": ("SLURM_JOB_ID", "SLURM_STEP_ID"),  # not of a batch script that starts no step
    "OMPI_COMM_WORLD_SIZE": ("PMIX_NAMESPACE", "OMPI_MCA_orte_hnp_uri"),
    "PMI_SIZE": ("PMI_JOBID", "PMI_PORT"),
}

_held: dict[str, "FolderLock"] = {}


class LockLost(OSError):
    """Another run now writes in the folder, so this one must not."""


class FolderLock:
    """The right to write in a folder, for this process and all processes of its job; a context manager.

    A lock of this machine whose process has ended is taken over at once; a lock of another machine after DEAD seconds
    without a sign of life. Some stores cannot create a file only if there is none; then a warning says that the folder
    is not locked.

    guest_of: the job of the run that this process works for. A guest sets no lock, and may write as long as that run
        has the lock.

    Raises ValueError if the folder is a file or cannot be written, or another run has it, and LockLost if the run that
    a guest works for has ended.
    """

    def __init__(self, folder: str | os.PathLike, guest_of: str = ""):
        self.folder = plain_path(folder)
        self.path = join(self.folder, LOCK)
        self.is_guest = bool(guest_of)
        self.job = guest_of or os.environ.get(JOB) or _job_of_launcher() or uuid.uuid4().hex
        self.owner = {"job": self.job, "lock": uuid.uuid4().hex, **_this_process()}
        self.is_owner = False  # whether this process has set the lock file, and removes it in the end
        self.new_folders: list[Path] = []
        self._opened: int | None = None  # of this machine: another folder of this name is not the same
        self.last_sign = time.time()
        self._ended = threading.Event()
        self._heartbeat = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        try:
            self._open_folder()
            self._take()
        except NotImplementedError:
            logger.warning(
                "%s: this store cannot lock a folder; make sure that no two commands write there at once", self.folder
            )
            return self
        except BaseException as error:
            self._leave_folder()
            if isinstance(error, OSError) and error.errno in NO_RIGHTS:
                raise ValueError(
                    f"output {self.folder}: cannot be written: {error.strerror}; give another folder"
                ) from error
            raise
        _held.setdefault(self.folder, self)
        if not self.is_guest:
            self._heartbeat.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        if self._heartbeat.is_alive():
            self._heartbeat.join(DEAD)  # otherwise it might write the lock again after its removal
        if _held.get(self.folder) is self:
            del _held[self.folder]
        if self.is_owner and (_read(self.path) or {}).get("job") == self.job:
            remove(self.path)
        self._leave_folder()

    def check(self) -> None:
        """Raise LockLost if another run has taken over the folder, or may have done so and ended since, or it is gone.

        A lock file that has disappeared is written again (not by a guest) if this process has given its signs of life.
        """
        owner = _read(self.path)
        if owner is None and self.is_guest:
            raise LockLost(f"{self.folder}: the run that this process works for has ended; the same command resumes")
        if owner is None and (silence := time.time() - self.last_sign) > DEAD:
            raise LockLost(
                f"{self.folder}: this process was held up for {silence:.0f} seconds, and its lock is gone: another "
                "run may have written here; the same command resumes"
            )
        if owner is None and self._opened is not None and not is_at(self._opened, self.folder):
            raise LockLost(f"{self.folder}: was removed while this run wrote there; the same command starts anew")
        if owner is None and _create(self.path, self.owner):
            self.is_owner = True
        elif owner is not None and owner.get("job") != self.job:
            raise LockLost(
                f"{self.folder}: {_process_named(owner)} now writes here; this run stops, and the same command "
                "resumes once that process has ended"
            )

    def _take(self) -> None:
        """Create the lock or take it over, or share that of the job; wait up to DEAD seconds for a sign of life."""
        if self.is_guest:
            return self.check()
        first_sign, since = None, 0.0
        while not _create(self.path, self.owner):
            owner, sign = _read(self.path), _sign_of_life(self.path)
            if owner is None:
                continue
            if owner.get("job") == self.job:  # of the process that started this one, or of one of the same launcher
                self.is_owner = owner == self.owner  # a store may have created the file and still reported a failure
                return
            is_gone = _is_gone(owner)
            if is_gone is False or first_sign not in (None, sign):
                raise ValueError(
                    f"{self.folder}: {_process_named(owner)} writes here; wait for it to end, or give another folder"
                )
            if first_sign is None:
                first_sign, since = sign, time.monotonic()
            if is_gone or time.monotonic() - since > DEAD:
                _replace(self.path, self.owner)
                # Others may take the lock over at the same moment: the last one has it.
                time.sleep(0 if is_gone else 1)
                self.check()
                break
            if time.monotonic() - since < 1:
                logger.warning(
                    "%s: waiting up to %g seconds for a sign of life of %s", self.folder, DEAD, _process_named(owner)
                )
            time.sleep(1)
        self.is_owner, self.last_sign = True, time.time()

    def _beat(self) -> None:
        """Give signs of life until the lock is released or lost."""
        while not self._ended.wait(BEAT):
            try:
                if (_read(self.path) or {}).get("job") != self.job:
                    continue  # the lock is lost; `check` raises the error before the next file is written
                if is_remote(self.path):
                    _replace(self.path, {**self.owner, "sign": time.time()})
                else:
                    os.utime(self.path)
                self.last_sign = time.time()
            except OSError as error:  # the next sign of life may succeed
                logger.warning("%s: could not give a sign of life: %s", self.path, error)

    def _open_folder(self) -> None:
        """Create the folder if there is none, and open it, if it is on this machine."""
        if is_remote(self.folder):
            return
        folder = Path(self.folder)
        self.new_folders = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        try:
            os.makedirs(folder, exist_ok=True)
            self._opened = os.open(folder, os.O_RDONLY)
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(f"output {self.folder}: is a file, or lies in one; give another folder") from error

    def _leave_folder(self) -> None:
        """Close the folder, and remove the folders that this lock has created, if they are empty."""
        if self._opened is not None:
            os.close(self._opened)
        with suppress(OSError):
            for folder in self.new_folders:
                folder.rmdir()


def job_of(folder: str | os.PathLike) -> str:
    """The job for which this process has the lock of the folder; "" if it has none."""
    lock = _held.get(plain_path(folder))
    return lock.job if lock else ""


def check_lock(folder: str | os.PathLike) -> None:
    """Raise LockLost if this process had the lock of the folder and another run has it now."""
    if lock := _held.get(plain_path(folder)):
        lock.check()


# ---- the owner of a lock -------------------------------------------------------------------------------------------


@lru_cache
def _machine() -> str:
    """An identity of this machine since its start and of the container in it, in which process numbers are unique."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return socket.gethostname()


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "process": os.getpid(),
        "began": psutil.Process().create_time(),
    }


def _is_gone(owner: dict[str, Any]) -> bool | None:
    """Whether the process that holds a lock has ended; None if it is on another machine."""
    if owner.get("machine") != _machine():
        return None
    try:
        process = psutil.Process(owner["process"])
        return process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - owner["began"]) > 1
    except (psutil.Error, KeyError, TypeError, ValueError):
        return True


def _process_named(owner: dict[str, Any]) -> str:
    return f"process {owner.get('process', 'of unknown number')} on {owner.get('host', 'an unknown host')}"


def _job_of_launcher() -> str:
    """The name that all processes of one launcher share; "" if no launcher has started this process."""
    for count, names in LAUNCHERS.items():
        if os.environ.get(count, "1") != "1":
            parts = [os.environ.get(name, "") for name in (*names, count)]
            if os.environ.get("MASTER_ADDR") in ("127.0.0.1", "localhost", "::1"):
                parts.append(_machine())
            return "-".join(parts)
    return ""


# ---- the lock file -------------------------------------------------------------------------------------------------
# On this machine it is read and written with system calls, so that the heartbeat thread disturbs no other open file.


def _create(path: str, owner: dict[str, Any]) -> bool:
    """Write the lock file if there is none, and return whether it was written.

    Raises NotImplementedError if the store cannot do that.
    """
    data = json.dumps(owner).encode()
    if is_remote(path):
        store = filesystem(path)
        # On the Hub each file would be a commit.
        if path.startswith("hf://") or "mode" not in signature(store._pipe_file).parameters:
            raise NotImplementedError
        try:
            call_store(
                path,
                partial(store.pipe_file, path, data, mode="create"),
                attempts=ATTEMPTS,
                lasting=(FileExistsError,),
            )
            return True
        except FileExistsError:
            return False
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    try:
        os.write(handle, data)
    except BaseException:  # a full disk: other runs would wait for an empty lock file
        os.unlink(path)
        raise
    finally:
        os.close(handle)
    return True


def _replace(path: str, owner: dict[str, Any]) -> None:
    data = json.dumps(owner).encode()
    if is_remote(path):
        call_store(path, partial(filesystem(path).pipe_file, path, data), attempts=ATTEMPTS)
        return
    other = f"{path}.{uuid.uuid4().hex}"
    _create(other, owner)
    os.rename(other, path)


def _read(path: str) -> dict[str, Any] | None:
    """The contents of the lock file; {} if it is not readable, None if there is none."""
    try:
        if is_remote(path):
            data = call_store(
                path, partial(filesystem(path).cat_file, path), attempts=ATTEMPTS, lasting=(FileNotFoundError,)
            )
        else:
            handle = os.open(path, os.O_RDONLY)
            try:
                data = os.read(handle, 1 << 16)
            finally:
                os.close(handle)
        owner = json.loads(data)
        return owner if isinstance(owner, dict) else {}
    except FileNotFoundError:
        return None
    except ValueError:
        return {}


def _sign_of_life(path: str) -> Any:
    file = entry(path)
    return file and dict(file.stamp)
