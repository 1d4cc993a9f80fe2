"""One run for each folder: who may write, who may take over, and what remains."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest

from imagetext import lock, outputs
from imagetext.lock import LOCK, FolderLock, LockLost, check_lock
from imagetext.outputs import UNFINISHED, Output, whole_file
from imagetext.sample import Record
from imagetext.shards import ShardWriter, read_marker

GOOD = Record("a", None, columns={"syn_text_x": ("one",)}, error="broken")


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock, "DEAD", 0.5)
    monkeypatch.setattr(outputs, "PATIENCE", 0.2)
    for name in (lock.JOB, "RANK", "WORLD_SIZE", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)


def owner(path) -> dict:
    return json.loads((path / LOCK).read_text())


def leave(path, **changes) -> None:
    """Write the lock of another run."""
    with FolderLock(path):
        holder = owner(path)
    path.mkdir(exist_ok=True)
    (path / LOCK).write_text(json.dumps({**holder, "job": "other", **changes}))


def ended() -> int:
    """Return the number of a process that has ended."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_the_lock_says_whose_it_is_and_goes_with_the_folders_that_it_made(tmp_path):
    with FolderLock(tmp_path / "a" / "b") as lock_a:
        holder = owner(tmp_path / "a" / "b")
        assert (
            holder["job"] == lock_a.job and holder["process"] == os.getpid() and holder["host"] and holder["machine"]
        )
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyError), FolderLock(tmp_path / "a"):
        (tmp_path / "a" / "kept").write_text("")
        raise KeyError
    assert os.listdir(tmp_path / "a") == ["kept"]


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_a_file_is_no_folder(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=f"output {tmp_path / place}: is a file, or lies in one"):
        FolderLock(tmp_path / place).__enter__()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch, number):
    def refuse(path, *_):  # root may write everywhere
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(lock, "_create", refuse)
    with pytest.raises(ValueError, match=f"output {tmp_path}/run: cannot be written: {os.strerror(number)}; give"):
        FolderLock(tmp_path / "run").__enter__()
    assert not (tmp_path / "run").exists()


def test_a_second_run_of_the_machine_is_refused_and_a_process_of_the_job_is_not(tmp_path):
    with FolderLock(tmp_path) as first:
        with pytest.raises(ValueError, match=f"process {os.getpid()} on .* writes here; wait for it to end"):
            FolderLock(tmp_path).__enter__()
        with FolderLock(tmp_path, guest_of=first.job):
            check_lock(str(tmp_path))
        assert owner(tmp_path)["job"] == first.job
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_no_lock_that_names_nobody(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"), FolderLock(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("changes", [{}, {"process": 1}])
def test_the_lock_of_a_process_that_has_ended_is_taken_over_at_once(tmp_path, changes):
    leave(tmp_path, **({"process": ended()} | changes))  # or of a process whose number belongs to another one now
    start = time.monotonic()
    with FolderLock(tmp_path) as first:
        assert owner(tmp_path)["job"] == first.job and time.monotonic() - start < 0.4


@pytest.mark.parametrize("text", ["", "{", "[]", None])
def test_the_lock_of_another_machine_is_taken_over_once_it_gives_no_sign_of_life(tmp_path, text, caplog):
    leave(tmp_path, machine="another", host="other-host")
    if text is not None:
        (tmp_path / LOCK).write_text(text)
    start = time.monotonic()
    with FolderLock(tmp_path) as first:
        assert owner(tmp_path)["job"] == first.job and time.monotonic() - start > 0.5
    assert "waiting up to 0.5 seconds for a sign of life of process" in caplog.text


def test_the_lock_of_another_machine_that_lives_is_respected(tmp_path):
    leave(tmp_path, machine="another", host="other-host")
    timer = threading.Timer(0.2, lambda: os.utime(tmp_path / LOCK))
    timer.start()
    with pytest.raises(ValueError, match="on other-host writes here"):
        FolderLock(tmp_path).__enter__()
    timer.join()


def test_signs_of_life_are_given(tmp_path):
    with FolderLock(tmp_path):
        os.utime(tmp_path / LOCK, ns=(1, 1))
        deadline = time.monotonic() + 10
        while os.stat(tmp_path / LOCK).st_mtime_ns == 1:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_sign_of_life_on_its_way_does_not_bring_the_lock_back(s3, monkeypatch):
    folder, replace, begun = f"{s3.root}/out", lock._replace, threading.Event()

    def slow(path, owner):
        begun.set()
        time.sleep(0.2)
        replace(path, owner)

    monkeypatch.setattr(lock, "_replace", slow)
    with FolderLock(folder):
        assert begun.wait(10)
    assert lock._read(f"{folder}/{LOCK}") is None


def test_who_has_lost_the_lock_writes_no_marker_and_leaves_the_others_shard(tmp_path):
    with pytest.raises(LockLost, match="other-host now writes here"), FolderLock(tmp_path):
        with ShardWriter(tmp_path, "00000") as writer:
            writer.write(GOOD)
        before = read_marker(tmp_path, "00000")
        with ShardWriter(tmp_path, "00000") as writer:
            writer.write(GOOD)
            writer.write(GOOD)
            (tmp_path / LOCK).write_text(json.dumps({"job": "other", "process": 7, "host": "other-host"}))
    assert read_marker(tmp_path, "00000") == before and sorted(os.listdir(tmp_path)) == [
        LOCK,
        "00000.done.json",
        "00000.tar",
    ]


def test_a_lock_that_is_gone_is_set_anew_before_a_marker(tmp_path):
    with FolderLock(tmp_path) as first:
        os.unlink(tmp_path / LOCK)  # as if a process of the job had ended
        with ShardWriter(tmp_path, "00000") as writer:
            writer.write(GOOD)
        assert owner(tmp_path)["job"] == first.job
    assert LOCK not in os.listdir(tmp_path)


def test_a_run_whose_folder_was_removed_ends_and_leaves_nothing(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(LockLost, match=f"{folder}: was removed while this run wrote there"), FolderLock(folder):
        (folder / "run.json").touch()
        shutil.rmtree(folder)
        with ShardWriter(folder, "00000") as writer:  # which makes the folder again
            writer.write(GOOD)
    assert not folder.exists()


def test_a_guest_of_a_run_that_has_ended_sets_no_lock_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_held", {})  # as in a process of its own
    (tmp_path / LOCK).write_text(json.dumps({"job": "run"}))
    with FolderLock(tmp_path, guest_of="run"):
        with pytest.raises(LockLost, match="has ended"), ShardWriter(tmp_path, "00000") as writer:
            writer.write(GOOD)
            os.unlink(tmp_path / LOCK)
    assert os.listdir(tmp_path) == []
    with pytest.raises(OSError, match="has ended"):
        FolderLock(tmp_path, guest_of="run").__enter__()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "environment, same",
    [
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "node1", "MASTER_PORT": "1"}, True),
        ({"RANK": "0", "WORLD_SIZE": "2"}, True),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, False),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": "5", "SLURM_STEP_ID": "0"}, True),
    ],
)
def test_the_processes_of_a_launcher_share_a_job(tmp_path, monkeypatch, environment, same):
    assert FolderLock(tmp_path).job != FolderLock(tmp_path).job
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    job = FolderLock(tmp_path).job
    assert job == FolderLock(tmp_path).job
    monkeypatch.setattr(lock, "_machine", lambda: "another node")
    assert (FolderLock(tmp_path).job == job) == same


def test_a_store_is_locked_too(s3, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 10)
    folder = f"{s3.root}/out"
    with FolderLock(folder) as first:
        with pytest.raises(ValueError, match="writes here"):
            FolderLock(folder).__enter__()
        with FolderLock(folder, guest_of=first.job):
            check_lock(folder)
    with FolderLock(folder):
        pass


# --- temporary names ------------------------------------------------------------------------------------------------


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    """The second one leaves nothing, and the first commits what it has written, or nothing."""
    path = str(tmp_path / "x.tar")
    first = Output(path)
    first.write(b"first")
    with pytest.raises(OSError, match="another process writes this file"):
        Output(path)
    with pytest.raises(OSError, match="another process writes this file"), whole_file(path):
        pass
    first.commit()
    assert open(path, "rb").read() == b"first"
    first = Output(path)
    first.write(b"first again")
    os.unlink(path + UNFINISHED)  # by a program that ignores locks
    with open(path + UNFINISHED, "wb") as file:
        file.write(b"first again")
    with pytest.raises(OSError, match="another process has written it, too"):
        first.commit()
    first.discard()
    assert open(path, "rb").read() == b"first" and open(path + UNFINISHED, "rb").read() == b"first again"


def test_a_run_that_was_held_up_does_not_go_on_where_another_may_have_come_and_gone(tmp_path, monkeypatch):
    """Its lock is gone, and it has given no sign of life for as long as others wait."""
    monkeypatch.setattr(lock, "BEAT", 10)
    with FolderLock(tmp_path / "x") as folder_lock:
        os.unlink(tmp_path / "x" / LOCK)
        check_lock(tmp_path / "x")  # deleted by mistake: it is written again
        assert owner(tmp_path / "x")["job"] == folder_lock.job
        folder_lock.last_sign -= 1
        check_lock(tmp_path / "x")  # held up, but no other run has come
        os.unlink(tmp_path / "x" / LOCK)
        with pytest.raises(
            LockLost, match="held up for 1 seconds, and its lock is gone: another run may have written"
        ):
            check_lock(tmp_path / "x")


def test_a_users_own_file_that_ends_in_tmp_stays(tmp_path):
    path = tmp_path / "x.tar.tmp"
    path.write_bytes(b"notes")
    with whole_file(tmp_path / "x.tar") as temporary:
        temporary.write_bytes(b"whole")
    output = Output(str(tmp_path / "x.tar"))
    output.write(b"again")
    output.commit()
    assert path.read_bytes() == b"notes" and (tmp_path / "x.tar").read_bytes() == b"again"


def test_what_a_killed_process_has_left_is_no_hindrance(tmp_path):
    code = (
        "import os, sys; from imagetext.outputs import Output; "
        "Output(sys.argv[1]).write(bytes(9)); os.kill(os.getpid(), 9)"
    )
    path = str(tmp_path / "x.tar")
    subprocess.run(
        [sys.executable, "-c", code, path],
        env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(lock.__file__))},
    )
    (tmp_path / f"x.tar{UNFINISHED}").write_bytes(b"half")
    os.chmod(tmp_path / f"x.tar{UNFINISHED}", 0o600)
    output = Output(path)
    output.write(b"whole")
    output.commit()
    assert (
        open(path, "rb").read() == b"whole"
        and os.stat(path).st_mode & 0o777 == 0o644
        and os.listdir(tmp_path) == ["x.tar"]
    )
