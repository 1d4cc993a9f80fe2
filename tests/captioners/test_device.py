"""A command uses the requested device or refuses it before any work; processes share several GPUs."""

import os
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from capsmith import main
from captioners.device import check_device, choose_device
from captioners.load import load_captioner
from captioners.machine import free_cores, free_memory, triton_lacks
from captioners.ranks import Rank
from finetune.captioner.config import FinetuneConfig
from finetune.launch import check_devices, run_in_ranks
from generate.captions.config import GenerateConfig
from generate.runs.protocol import Embedded


@pytest.fixture
def gpus(monkeypatch):
    """A machine with two GPUs, as far as torch reports; yields the list of devices that were made the current one."""
    current = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    plans = torch.backends.cuda.cudnn_sdp_enabled()
    yield current
    torch.backends.cuda.enable_cudnn_sdp(plans)


def test_what_is_asked_for_is_what_is_given(gpus):
    assert [check_device(requested, 1) for requested in (None, "cuda", "cuda:0", "cuda:1", "cpu")] == [
        "cuda:1",
        "cuda:1",
        "cuda:0",
        "cuda:1",
        "cpu",
    ]
    assert [check_device("cuda", rank) for rank in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert gpus == []  # to look changes nothing


@pytest.mark.parametrize("requested", ["cuda:2", "banana", "meta", "cuda:x", "CPU"])
def test_what_is_not_there_is_refused_in_a_sentence(gpus, requested):
    with pytest.raises(
        ValueError, match=f"^--device '{requested}': there is no such device; torch finds cpu, cuda:0, cuda:1$"
    ):
        check_device(requested)


def test_without_a_gpu_the_cpu_is_the_best_and_cuda_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device(None) == "cpu"
    for requested in ("cuda", "cuda:1"):
        with pytest.raises(ValueError, match=f"^--device '{requested}': there is no such device; torch finds cpu"):
            choose_device(requested)


def test_with_slurm_the_refusal_says_how_processes_see_all_gpus(gpus, monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    with pytest.raises(ValueError, match="torch finds 2; with Slurm, use --gpus-per-node or --gpu-bind=none"):
        check_devices(settings(tmp_path, num_processes=3))


def test_a_gpu_that_is_not_the_current_one_is_refused(gpus, monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with pytest.raises(ValueError, match=r"^device 'cuda:1' is not the current GPU: call torch.cuda.set_device"):
        load_captioner("coca_tiny", device="cuda:1")


def test_each_process_loads_and_computes_on_its_own_gpu_as_the_current_one(gpus):
    """If the GPU were not the current device, graphs would be captured on a stream of GPU 0, and be empty."""
    devices = []

    class Work:
        config = GenerateConfig(input=["scenes:val,n=1"], model="coca_tiny", output="unused")

        def load(self, device, settled):
            devices.append((device, gpus[-1]))

    for number in range(2):
        Embedded(Rank(number, 2, number)).load(Work(), {})
    assert devices == [("cuda:0", "cuda:0"), ("cuda:1", "cuda:1")]
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_training_begins_with_its_own_gpu_as_the_current_one(gpus, monkeypatch, tmp_path):
    devices = []

    def state(cpu, timeout):  # of accelerate, which takes the current GPU
        devices.append("cpu" if cpu else gpus[-1])
        return SimpleNamespace(main_process_first=nullcontext, num_processes=int(os.environ.get("WORLD_SIZE", 1)))

    monkeypatch.setattr("finetune.launch.PartialState", state)
    for device in ("cuda:1", None, "cpu"):
        run_in_ranks(settings(tmp_path, device=device), lambda config, state: None)
    for name, value in {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    run_in_ranks(settings(tmp_path), lambda config, state: None)
    assert devices == ["cuda:1", "cuda:0", "cpu", "cuda:1"]


def settings(folder, **changes):
    return FinetuneConfig(
        **{"input": ["x"], "model": "coca_tiny", "output": folder / "run", "device": "cuda"} | changes
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"device": "cuda:1", "num_processes": 2},
            "--device 'cuda:1': is one GPU, and each of 2 processes needs its own; use --device cuda",
        ),
        ({"num_processes": 3}, "--num-processes 3: each process needs a GPU of its own, and torch finds 2"),
    ],
)
def test_processes_that_train_have_a_gpu_each(gpus, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        check_devices(settings(tmp_path, **changes))
    check_devices(settings(tmp_path, num_processes=2))
    check_devices(settings(tmp_path, num_processes=3, device="cpu"))


COMMANDS = {
    "generate": ["--model", "coca_tiny", "--input"],
    "reinforce": ["--teacher", "coca_tiny", "--input"],
    "finetune": ["--model", "coca_tiny", "--input"],
    "train-student": ["--student", "ViT-B-32", "--input"],
    "diversity": ["--embedder", "none", "--input"],
    "quickstart": ["--samples-seen"],
}


@pytest.mark.parametrize("requested", ["cuda:1", "cuda", "banana"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_before_any_work(command, requested, monkeypatch, tmp_path, capsys):
    """The input does not exist, which would be the next error; nothing is written."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    what = "9" if command == "quickstart" else str(tmp_path / "none.tar")
    assert main([command, *COMMANDS[command], what, "--output", str(tmp_path / "out"), "--device", requested]) == 2
    message = capsys.readouterr().err
    assert (
        f"--device '{requested}': there is no such device; torch finds cpu" in message and "Traceback" not in message
    )
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    "group, files, expected",
    [
        ("0::/", {"cpu.max": "max 100000"}, 8),
        ("0::/", {"cpu.max": "200000 100000"}, 2),
        ("0::/", {"cpu.max": "150000 100000"}, 2),
        ("0::/", {"cpu.max": "5000 100000"}, 1),
        ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),  # a limit of the group above
        ("0::/outside/the/container", {"cpu.max": "400000 100000"}, 4),
        ("4:memory:/x\n1:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "25000"}, 2),
        ("1:cpu:/\n0::/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ("1:cpuset:/", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "25000"}, 8),
        ("0::/", {"cpu.max": "nonsense"}, 8),
        ("", {}, 8),
        (None, {}, 8),  # not Linux
    ],
)
def test_cores_that_a_container_may_not_use_are_not_free(tmp_path, monkeypatch, group, files, expected):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(8))
    write_control_groups(tmp_path, group, files)
    assert free_cores(tmp_path) == expected


@pytest.mark.parametrize(
    "group, files, expected",
    [
        ("0::/", {"memory.max": "max", "memory.current": "100", "memory.stat": "inactive_file 0"}, 5000),
        ("0::/", {"memory.max": "4000", "memory.current": "3500", "memory.stat": "anon 3000\ninactive_file 300"}, 800),
        ("0::/", {"memory.max": "4000", "memory.current": "4100", "memory.stat": "inactive_file 0"}, 0),
        (
            "0::/a/b",
            {
                "a/memory.max": "2000",
                "a/memory.current": "400",
                "a/memory.stat": "inactive_file 0",
                "a/b/memory.max": "max",
                "a/b/memory.current": "100",
                "a/b/memory.stat": "inactive_file 0",
            },
            1600,
        ),
        (
            "4:memory:/x\n1:cpu:/",
            {
                "memory/x/memory.limit_in_bytes": "3000",
                "memory/x/memory.usage_in_bytes": "1000",
                "memory/x/memory.stat": "inactive_file 1\ntotal_inactive_file 200",
            },
            2200,
        ),
        ("0::/", {"memory.max": "3000"}, 5000),
        ("", {}, 5000),
        (None, {}, 5000),  # not Linux
    ],
)
def test_memory_that_a_container_may_not_use_is_not_free(tmp_path, monkeypatch, group, files, expected):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=5000))
    write_control_groups(tmp_path, group, files)
    assert free_memory(tmp_path) == expected


def write_control_groups(root, group, files):
    """Write what /proc and /sys say of the control groups of a process."""
    if group is not None:
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/cgroup").write_text(group + "\n" if group else "")
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")


@pytest.mark.parametrize(
    "lack, words",
    [("triton", "not installed"), ("gcc", "no C compiler"), ("Python.h", "headers are missing"), (None, "")],
)
def test_what_triton_lacks_is_told(monkeypatch, tmp_path, lack, words):
    (tmp_path / "Python.h").touch()
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if lack == "triton" else name)
    monkeypatch.setattr("shutil.which", lambda name: None if lack == "gcc" else f"/bin/{name}")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / ("none" if lack == "Python.h" else "")))
    assert words in triton_lacks() and bool(triton_lacks()) == bool(words)


def test_without_a_compiler_captions_are_drawn_without_kernels(tmp_path):
    """Triton would fail at the first kernel on a GPU, and with it every shard."""
    check = (
        "from captioners.coca.blocks import kernels; from captioners.decoding.batch import choose_by_kernel as chosen"
    )
    script = f"{check}; assert kernels is None and chosen is None"
    without = {name: value for name, value in os.environ.items() if name != "CC"} | {"PATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], check=True, env=without)


def test_a_captioner_without_kernels_says_why_it_is_slow(monkeypatch, caplog):
    monkeypatch.setattr("captioners.load.triton_lacks", lambda: "there is no C compiler such as gcc")
    with pytest.raises(ValueError, match="none-such"):
        load_captioner("none-such", device="cuda")
    assert "no C compiler" in caplog.text and "times as long" in caplog.text


@pytest.mark.parametrize("threads, cores, expected", [(64, 2, [2]), (2, 2, []), (1, 8, [])])
def test_torch_gets_no_more_threads_than_there_are_free_cores(monkeypatch, threads, cores, expected):
    """The number that a launcher or the user has set stays if it is smaller."""
    chosen = []
    monkeypatch.setattr("captioners.device.free_cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    choose_device("cpu")
    assert chosen == expected
