"""One run a folder: a lock with a sign of life, which another run takes over where there is none any more."""

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

from imagetext.outputs import remove
from imagetext.stores import ATTEMPTS, call_store, entry, filesystem, is_remote, join, plain_path

logger = logging.getLogger(__name__)

LOCK = ".lock"
BEAT = 10.0  # seconds between signs of life
DEAD = 60.0  # seconds without one, after which the lock may be taken over
JOB = "CAPSMITH_JOB"  # in the environment of processes that share the lock of the one that started them
LAUNCHERS = {  # how many processes they say that there are, and what they call all of them
    "WORLD_SIZE": ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT"),
    "SLURM_STEP_NUM_TASKS": ("SLURM_JOB_ID", "SLURM_STEP_ID"),  # not of a batch script that starts no step
    "OMPI_COMM_WORLD_SIZE": ("PMIX_NAMESPACE", "OMPI_MCA_orte_hnp_uri"),
    "PMI_SIZE": ("PMI_JOBID", "PMI_PORT"),
}

_held: dict[str, "FolderLock"] = {}


class LockLost(OSError):
    """Another run writes in the folder by now: this one must not."""


class FolderLock:
    """The right to write in a folder, as a context manager, for this process and all of its job.

    A lock whose process is gone from this machine is taken over at once; that of another machine after DEAD seconds without a
    sign of life. Where a store cannot create a file only if there is none, a warning says that nothing is locked.
    guest_of: the job of the run that this process works for, as long as that has the lock; it sets none.

    Raises: ValueError where another run has the folder; LockLost where a guest's own has ended.
    """

    def __init__(self, folder: str | os.PathLike, guest_of: str = ""):
        self.folder = plain_path(folder)
        self.path = join(self.folder, LOCK)
        self.is_guest = bool(guest_of)
        self.job = guest_of or os.environ.get(JOB) or _job_of_launcher() or uuid.uuid4().hex
        self.owner = {"job": self.job, "lock": uuid.uuid4().hex, **_here()}
        self.own, self.new_folders = False, []
        self.last_sign = time.time()
        self._over = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        if not is_remote(self.folder):
            folder = Path(self.folder)
            self.new_folders = [parent for parent in (folder, *folder.parents) if not parent.exists()]
            os.makedirs(folder, exist_ok=True)
        try:
            self._take()
        except NotImplementedError:
            logger.warning(
                "%s: this store cannot lock a folder; see that no two commands write there at once", self.folder
            )
            return self
        except BaseException:
            self._tidy()
            raise
        _held.setdefault(self.folder, self)
        if not self.is_guest:
            self._beating.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        if self._beating.is_alive():
            self._beating.join(DEAD)  # or it might write the lock anew that goes now
        if _held.get(self.folder) is self:
            del _held[self.folder]
        if self.own and (_read(self.path) or {}).get("job") == self.job:
            remove(self.path)
        self._tidy()

    def check(self) -> None:
        """Raises LockLost where another run has taken the folder over, or may have done so and be gone again.

        A lock that is gone is set anew where this process has given its signs of life, but by no guest.
        """
        there = _read(self.path)
        if there is None and self.is_guest:
            raise LockLost(f"{self.folder}: the run that this process works for has ended; the same command goes on")
        if there is None and (silent := time.time() - self.last_sign) > DEAD:
            raise LockLost(
                f"{self.folder}: this process was held up for {silent:.0f} seconds, and its lock is gone: another run may have "
                "written here; the same command goes on"
            )
        if there is None and _create(self.path, self.owner):
            self.own = True
        elif there is not None and there.get("job") != self.job:
            raise LockLost(
                f"{self.folder}: {_told(there)} writes here by now; this run stops, and the same command goes on once "
                "that one has ended"
            )

    def _take(self) -> None:
        if self.is_guest:
            return self.check()
        seen, since = None, 0.0
        while not _create(self.path, self.owner):
            there, sign = _read(self.path), _sign_of_life(self.path)
            if there is None:
                continue
            if there.get("job") == self.job:  # of one that started this process, or was started with it
                self.own = there == self.owner  # a store may have written it, and not have said so
                return
            gone = _is_gone(there)
            if gone is False or seen not in (None, sign):
                raise ValueError(
                    f"{self.folder}: {_told(there)} writes here; wait for it to end, or give another folder"
                )
            if seen is None:
                seen, since = sign, time.monotonic()
            if gone or time.monotonic() - since > DEAD:
                _replace(self.path, self.owner)
                time.sleep(0 if gone else 1)  # others may have taken it over at the same moment: the last one has it
                self.check()
                break
            if time.monotonic() - since < 1:
                logger.warning(
                    "%s: waiting up to %g seconds for a sign of life of %s", self.folder, DEAD, _told(there)
                )
            time.sleep(1)
        self.own, self.last_sign = True, time.time()

    def _beat(self) -> None:
        """Gives signs of life, until the lock is left or lost."""
        while not self._over.wait(BEAT):
            try:
                if (_read(self.path) or {}).get("job") != self.job:
                    continue  # which whoever writes is told by `check`
                if is_remote(self.path):
                    _replace(self.path, {**self.owner, "sign": time.time()})
                else:
                    os.utime(self.path)
                self.last_sign = time.time()
            except OSError as error:  # the next one may do
                logger.warning("%s: no sign of life: %s", self.path, error)

    def _tidy(self) -> None:
        """Leaves no folder that was not there before and holds nothing."""
        with suppress(OSError):
            for folder in self.new_folders:
                folder.rmdir()


def job_of(folder: str | os.PathLike) -> str:
    """The job for which this process has the lock of the folder; none where it has not."""
    lock = _held.get(plain_path(folder))
    return lock.job if lock else ""


def check_lock(folder: str | os.PathLike) -> None:
    """Raises LockLost where this process had the lock of the folder, and another run has it by now."""
    if lock := _held.get(plain_path(folder)):
        lock.check()


# ---- who holds it --------------------------------------------------------------------------------------------------------


@lru_cache
def _machine() -> str:
    """This machine since it was started, or the container in it: numbers of processes mean something within it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return socket.gethostname()


def _here() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "process": os.getpid(),
        "began": psutil.Process().create_time(),
    }


def _is_gone(owner: dict[str, Any]) -> bool | None:
    """Whether the process that holds a lock has ended; None where that cannot be seen from here."""
    if owner.get("machine") != _machine():
        return None
    try:
        process = psutil.Process(owner["process"])
        return process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - owner["began"]) > 1
    except (psutil.Error, KeyError, TypeError, ValueError):
        return True


def _told(owner: dict[str, Any]) -> str:
    return f"process {owner.get('process', 'of unknown number')} on {owner.get('host', 'an unknown host')}"


def _job_of_launcher() -> str:
    """The mark that all processes of one launcher share; "" where no launcher has started this process."""
    for count, names in LAUNCHERS.items():
        if os.environ.get(count, "1") != "1":
            alone = os.environ.get("MASTER_ADDR") in ("127.0.0.1", "localhost", "::1")
            return "-".join(
                [*(os.environ.get(name, "") for name in (*names, count)), *([_machine()] if alone else [])]
            )
    return ""


# ---- the file ------------------------------------------------------------------------------------------------------------
# On this machine by the system's own calls: what a thread does on the side disturbs no other file.


def _create(path: str, owner: dict[str, Any]) -> bool:
    """Writes the lock if there is none. Raises: NotImplementedError where the store cannot do that."""
    data = json.dumps(owner).encode()
    if is_remote(path):
        store = filesystem(path)
        if (
            path.startswith("hf://") or "mode" not in signature(store._pipe_file).parameters
        ):  # the Hub makes a commit of each file
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
    except BaseException:  # a full disk: a lock that names nobody would be waited for
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
    """The contents of the lock; {} where it cannot be read, None where there is no lock."""
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
    there = entry(path)
    return there and dict(there.stamp)
