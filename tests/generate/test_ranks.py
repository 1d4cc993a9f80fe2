"""Several processes on one run: real ones, with the shipped captioner, killed and interrupted."""

import importlib
import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

import capsmith
from captioners.ranks import LAUNCHERS, Rank
from generate.captions.config import GenerateConfig
from generate.captions.run import run

ROOT = Path(capsmith.__file__).parent
ASKED = {
    "input": ["scenes:val,n=6", "scenes:test,n=45", "scenes:train,n=4"],
    "model": "coca_tiny",
    "num_captions": 2,
    "max_length": 12,
    "batch_size": 4,
    "device": "cpu",
    "num_workers": 0,
    "redraws": 1,
    "on_degenerate": "keep",
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The files that one process writes."""
    folder = tmp_path_factory.mktemp("alone") / "out"
    assert run(GenerateConfig(**ASKED, output=folder)) == 0
    return folder


def start(folder: Path, *argv: str) -> subprocess.Popen:
    recipe = folder.with_suffix(".yaml")
    recipe.write_text(json.dumps(ASKED))
    return subprocess.Popen(
        [sys.executable, "-m", "capsmith", "generate", "--config", str(recipe), "--output", str(folder), *argv],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ranks(process: subprocess.Popen) -> list[psutil.Process]:
    """Return its ranks in their order; process ids may wrap around, so they give no order."""
    children = sorted(psutil.Process(process.pid).children(), key=psutil.Process.create_time)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def waits(process: psutil.Process) -> bool:
    """Return whether the process uses no processor time for a second."""
    before = process.cpu_times()
    time.sleep(1)
    return process.cpu_times() == before


def written_since(folder: Path, moment: float) -> list[Path]:
    """Return the unfinished files that were written after `moment`; killed processes leave older ones behind."""
    paths = []
    for path in folder.glob("*.tmp"):
        with suppress(FileNotFoundError):  # it has just been finished
            paths += [path] if path.stat().st_mtime > moment else []
    return paths


def wait_until(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_processes_give_the_bytes_of_one_though_killed_and_interrupted(alone, tmp_path, files, capsys):
    folder = tmp_path / "out"
    process = start(folder, "--num-processes", "2")
    wait_until(lambda: len(ranks(process)) == 2)
    first, second = ranks(process)
    first.suspend()
    wait_until(lambda: waits(second))  # it has imported its libraries, and waits until the first has begun the run
    second.kill()
    first.resume()
    printed, error_text = process.communicate(timeout=120)
    assert process.returncode == 1, error_text
    assert "1 of 3 shards failed: scenes-test2-00000; the same command tries them again" in printed

    before = time.time()
    process = start(folder, "--num-processes", "2")
    wait_until(lambda: written_since(folder, before))  # the remaining shard has been begun
    process.send_signal(signal.SIGINT)
    printed, error_text = process.communicate(timeout=120)
    assert (
        process.returncode == 130
        and "interrupted; the same command resumes" in error_text
        and "Traceback" not in error_text
    )
    assert not list(folder.glob("*.tmp"))

    assert run(GenerateConfig(**ASKED, output=folder)) == 0  # one process resumes what several began
    assert files(folder) == files(alone)
    assert "of 55 pictures" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["captions", "reinforce", "select"])
def test_the_others_wait_for_the_run_before_they_look_into_the_folder(command, tmp_path, monkeypatch):
    """The first process writes other files before `run.json`, which without it would be taken for somebody else's."""

    class Waits(Exception):
        pass

    def wait(folder, seconds=0):
        raise Waits

    (tmp_path / "config.json").write_text("{}")
    module = importlib.import_module(f"generate.{command}.run")
    monkeypatch.setattr(module, "wait_for_run", wait)
    with pytest.raises(Waits):
        module.run(SimpleNamespace(output=str(tmp_path), dry_run=False, settles=False), Rank(1, 2, 1))


def test_the_others_wait_until_the_first_has_begun_the_run_anew(alone, tmp_path, files):
    folder = tmp_path / "out"
    assert run(GenerateConfig(**ASKED | {"num_captions": 1}, output=folder)) == 0
    process = start(folder, "--num-processes", "2", "--overwrite")
    _, error_text = process.communicate(timeout=120)
    assert process.returncode == 0, error_text
    assert files(folder) == files(alone)


@pytest.mark.parametrize(
    "environment, rank",
    [
        ({}, Rank(0, 1, 0)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Rank(5, 8, 1)),
        ({"RANK": "5"}, Rank()),
        ({"RANK": "", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Rank()),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "3", "SLURM_NTASKS": "4"}, Rank(3, 4, 3)),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}, Rank(1, 2, 0)),
        ({"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1"}, Rank(1, 2, 1)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}, Rank()),
    ],
)  # a batch script without srun is alone
def test_a_process_finds_its_place(monkeypatch, environment, rank):
    for name in {name for launcher in LAUNCHERS for name in launcher}:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Rank.of_this_process() == rank


def test_every_shard_is_one_ranks():
    shares = [Rank(number, 3).share(range(8)) for number in range(3)]
    assert (
        sorted(shard for share in shares for shard in share) == list(range(8))
        and max(map(len, shares)) - min(map(len, shares)) == 1
    )


def test_a_process_of_a_launcher_neither_begins_anew_nor_starts_others(
    captioner, make_tar, pictures, configure, monkeypatch
):
    make_tar("00000", pictures(1))
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    for wrong in ({"overwrite": True}, {"num_processes": 2}):
        with pytest.raises(ValueError, match="which has started this process as number 0 of 2"):
            run(configure(**wrong))
