"""A training run takes its rank and world from the launcher; no model is loaded."""

import os
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from pydantic import ValidationError
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from captioners.ranks import LAUNCHERS
from finetune.captioner.config import FinetuneConfig
from finetune.launch import launch, run_in_ranks
from finetune.student.config import StudentConfig

SETTINGS = {
    "finetune": (FinetuneConfig, {"input": ["scenes:train,n=2"], "model": "coca_tiny"}),
    "train-student": (StudentConfig, {"input": ["reinforced/*.tar"], "student": "ViT-B-32"}),
}


@pytest.fixture(params=SETTINGS)
def configure(request, tmp_path):
    config, needed = SETTINGS[request.param]
    return lambda **changes: config(**{**needed, "output": tmp_path / "run", **changes})


@pytest.fixture
def started(monkeypatch):
    """Set the environment as a launcher with these variables does for process 1 of 2."""
    monkeypatch.setattr(os, "environ", os.environ.copy())  # a run changes the variables that torch reads

    def start(names, **more):
        for name in {name for launcher in LAUNCHERS for name in launcher} | {"MASTER_ADDR", "MASTER_PORT"}:
            monkeypatch.delenv(name, raising=False)
        for name, value in zip(names, ("1", "2", "1")):
            monkeypatch.setenv(name, value)
        for name, value in more.items():
            monkeypatch.setenv(name, value)

    return start


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=lambda names: names[0])
def test_processes_that_cannot_find_each_other_do_not_train_by_themselves(configure, started, launcher):
    started(launcher)
    with pytest.raises(ValueError, match="as number 1 of 2, but MASTER_ADDR and MASTER_PORT are not set"):
        run_in_ranks(configure(device="cpu"), None)
    assert not configure().output.exists()


def test_a_world_that_is_not_the_one_asked_for_is_refused_before_any_work(configure, started, monkeypatch):
    together = {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    started(LAUNCHERS[0], **together)
    with pytest.raises(ValueError, match="--num-processes 3: the launcher started 2"):
        run_in_ranks(configure(device="cpu", num_processes=3), None)
    monkeypatch.setattr("finetune.launch.PartialState", lambda **_: SimpleNamespace(num_processes=1))
    with pytest.raises(ValueError, match="the launcher started 2 processes, but only 1 of them found each other"):
        run_in_ranks(configure(device="cpu"), None)
    assert not configure().output.exists()


def test_a_seed_that_torch_cannot_take_for_each_step_is_refused(configure):
    assert configure(seed=2**32 - 1)
    with pytest.raises(ValidationError, match="less than 4294967296"):
        configure(seed=2**32)


def test_fp16_on_a_cpu_is_refused_before_any_work(configure):
    with pytest.raises(ValueError, match="--dtype fp16: needs a GPU; a CPU trains in fp32 or bf16"):
        run_in_ranks(configure(device="cpu", dtype="fp16"), None)
    assert not configure().output.exists()


def test_one_process_has_no_parts_to_shard(tmp_path, started):
    started(())
    config, needed = SETTINGS["finetune"]
    with pytest.raises(ValueError, match="--shard: needs at least two processes, and there is one"):
        run_in_ranks(config(**needed, output=tmp_path / "run", device="cpu", shard=True), None)


def test_a_world_that_slurm_started_is_the_one_that_torch_sees(configure, started, monkeypatch):
    started(("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"), MASTER_ADDR="localhost", MASTER_PORT="1")
    states = {}

    def state(**_):
        states.update({name: os.environ[name] for name in LAUNCHERS[0]})
        return SimpleNamespace(num_processes=2, main_process_first=nullcontext)

    monkeypatch.setattr("finetune.launch.PartialState", state)
    assert run_in_ranks(configure(device="cpu"), lambda config, state: None) == 0
    assert states == {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), OSError),
        (RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:544] Connection closed by peer"), OSError),
        (RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback"), RuntimeError),
    ],
)
def test_a_process_that_dies_in_training_is_told_in_a_sentence_and_a_mistake_of_ours_is_not(configure, error, told):
    def train(config, state):
        raise error

    with pytest.raises(told, match=r"\w; the same command resumes" if told is OSError else "Original Traceback"):
        run_in_ranks(configure(device="cpu"), train)


def test_a_rank_that_dies_is_named_with_the_way_on(configure, monkeypatch, capsys):
    failure = ProcessFailure(local_rank=1, pid=1, exitcode=-9, error_file="")

    def die(_):
        raise ChildFailedError("capsmith", {1: failure})

    monkeypatch.setattr("torch.distributed.run.run", die)
    assert launch(configure(num_processes=2, batch_size=8)) == 1
    assert (
        "process 1 of 2 was ended by signal 9" in (message := capsys.readouterr().err)
        and "the same command resumes" in message
    )
