"""The Ray engine: real clusters on this machine, whose workers and nodes are killed; and parts without a cluster."""

import errno
import json
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray import cloudpickle
from ray.cluster_utils import Cluster

import capsmith
import generate.captions.run
import generate.reinforce.run
from captioners.ranks import processes_here
from captioners.server.load import Spent
from generate.captions.config import GenerateConfig
from generate.captions.run import Captioning
from generate.captions.run import run as caption
from generate.reinforce.config import ReinforceConfig
from generate.reinforce.run import run as reinforce
from generate.runs import ray_engine as scale_out
from generate.runs.manifest import RUN, write_run
from generate.runs.ray_engine import ClusterHead, Place, Worker, _log, connect, plan
from generate.runs.ray_tally import Tally
from imagetext.lock import LockLost
from imagetext.shards import read_markers
from imagetext.sources import read_samples

ROOT = Path(capsmith.__file__).parent
ASKED = {
    "input": ["scenes:val,n=4", "scenes:test,n=3", "scenes:train,n=2"],
    "columns": [
        {"model": "coca_tiny"},
        {"model": "rules:negatives", "column": "neg_text_rules", "instruction": "{{ syn_text_coca_tiny }}"},
    ],
    "num_captions": 2,
    "max_length": 12,
    "batch_size": 2,
    "device": "cpu",
    "num_workers": 0,
    "redraws": 0,
    "on_degenerate": "keep",
}
ON_RAY = {"engine": "ray", "concurrency": 2, "gpus_per_worker": 0}

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers have no tests


# --- samples that do something to the worker that reads them ---------------------------------------------------------


@dataclass(frozen=True)
class Deadly:
    """Samples that kill the process that reads them, at the second sample, the first few times."""

    samples: Iterable
    times: int
    log: Path

    def __iter__(self):
        with self.log.open("a") as log:
            log.write(f"{os.getpid()}\n")
        for number, sample in enumerate(self.samples):
            if number == 1 and len(self.log.read_text().splitlines()) <= self.times:
                os.kill(os.getpid(), signal.SIGKILL)
            yield sample


@dataclass(frozen=True)
class Held:
    """Samples that block their reader: for ever on the node to be killed, elsewhere until that node has a shard."""

    samples: Iterable
    node: str
    log: Path

    def __iter__(self):
        first, *others = self.samples
        yield first
        if ray.get_runtime_context().get_node_id() == self.node:
            self.log.touch()
            time.sleep(600)
        wait_until(self.log.exists)
        yield from others


@dataclass(frozen=True)
class Slow:
    """Samples that are read slowly."""

    samples: Iterable

    def __iter__(self):
        for sample in self.samples:
            yield sample
            time.sleep(2)


@dataclass(frozen=True)
class Crowded:
    """Samples that wait until two processes have read a shard; the last waits until only its own process is left."""

    samples: Iterable
    folder: Path
    last: bool

    def __iter__(self):
        (self.folder / str(os.getpid())).touch()
        wait_until(lambda: len(self.there()) == 2)
        wait_until(
            lambda: (
                not self.last
                or not any(Path("/proc", pid).exists() for pid in self.there() if pid != str(os.getpid()))
            )
        )
        yield from self.samples

    def there(self) -> list[str]:
        return os.listdir(self.folder)


class Failing:
    def __iter__(self):
        raise OSError("injected")


@pytest.fixture
def with_samples(monkeypatch):
    """Make a command read other samples: `with_samples(module, function of a shard's number and samples)`."""

    def patch(command, change):
        def read(*args, **options):
            return [
                replace(shard, samples=change(number, shard.samples))
                for number, shard in enumerate(read_samples(*args, **options))
            ]

        monkeypatch.setattr(command, "read_samples", read)

    return patch


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU each, and this process connected to them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}.items():
            patch.setenv(name, value)
        node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 10**8}
        cluster = Cluster(initialize_head=True, head_node_args=node)
        try:
            cluster.second = cluster.add_node(**node)
            connect(cluster.address)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The files that the embedded engine writes."""
    folder = tmp_path_factory.mktemp("alone") / "out"
    assert caption(GenerateConfig(**ASKED, output=folder)) == 0
    assert all(marker["captions"]["neg_text_rules"] for marker in read_markers(folder).values())
    return folder


# --- on a cluster ----------------------------------------------------------------------------------------------------


def test_a_dry_run_tells_what_the_cluster_has_and_writes_nothing(cluster, tmp_path, capsys):
    assert caption(GenerateConfig(**ASKED, **ON_RAY, dry_run=True, output=tmp_path / "out")) == 0
    printed = capsys.readouterr().out
    assert (
        "cluster: 2 nodes with 2 CPUs and 0 GPUs; 2 workers, each with 1 CPU and 0 GPUs" in printed
        and "architecture:" in printed
    )
    assert (
        "9 pictures in 3 shards; 3 of 3 shards to do; nothing was written" in printed
        and not (tmp_path / "out").exists()
    )


def test_deadly_shards_are_tried_again_and_then_set_aside_and_the_other_engine_resumes(
    cluster, alone, tmp_path, files, with_samples, caplog, capsys
):
    logs = [tmp_path / "always", tmp_path / "once"]
    with_samples(
        generate.captions.run,
        lambda number, samples: [Deadly(samples, 99, logs[0]), Deadly(samples, 1, logs[1]), Failing()][number],
    )
    assert caption(GenerateConfig(**ASKED, **ON_RAY, output=tmp_path / "out")) == 1
    assert [len(log.read_text().splitlines()) for log in logs] == [3, 2]
    assert (
        "shard scenes-val2-00000" in caplog.text
        and "set aside: 3 workers died on it, killed or out of memory: process " in caplog.text
    )
    assert (
        "shard scenes-train2-00000 of scenes:train,n=2 failed: injected" in caplog.text
        and "Traceback" not in caplog.text
    )
    assert "2 of 3 shards failed: scenes-val2-00000, scenes-train2-00000; the same command" in capsys.readouterr().out
    done = {name: data for name, data in files(alone).items() if "test2" in name or name == RUN}
    assert {name: data for name, data in files(tmp_path / "out").items() if not name.endswith(".tmp")} == done
    with_samples(generate.captions.run, lambda number, samples: samples)
    assert caption(GenerateConfig(**ASKED, output=tmp_path / "out")) == 0
    assert files(tmp_path / "out") == files(alone)


def test_the_pool_grows_while_shards_wait_and_shrinks_when_none_are_left(
    cluster, alone, tmp_path, files, with_samples
):
    (tmp_path / "there").mkdir()
    with_samples(generate.captions.run, lambda number, samples: Crowded(samples, tmp_path / "there", number == 2))
    assert caption(GenerateConfig(**ASKED, **{**ON_RAY, "concurrency": "1,2"}, output=tmp_path / "out")) == 0
    assert files(tmp_path / "out") == files(alone)


def test_interrupted_the_workers_leave_no_half_shard(cluster, tmp_path, files, with_samples, monkeypatch):
    with_samples(generate.captions.run, lambda number, samples: Slow(samples))

    def interrupted(ends):  # as by Ctrl-C while the driver waits; a real signal might meet the suite instead
        wait_until(lambda: len(list((tmp_path / "out").glob("*.tmp"))) == 2)
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(scale_out, "_until_none", interrupted)
    with pytest.raises(KeyboardInterrupt):
        caption(GenerateConfig(**ASKED, **ON_RAY, output=tmp_path / "out"))
    assert list(files(tmp_path / "out")) == [RUN]


def test_a_worker_with_other_weights_ends_the_run(cluster, tmp_path, files, monkeypatch):
    """The worker finds other weights in `run.json` than it has loaded and than were settled."""

    def begin(folder, prepared, rank, *, on_begun):
        prepared.fingerprint["columns"]["syn_text_coca_tiny"]["weights_sha256"] = "other"
        write_run(folder, prepared.fingerprint)

    monkeypatch.setattr(generate.captions.run, "begin", begin)
    with pytest.raises(
        ValueError,
        match="process [0-9]+ on .* has loaded other models, .*:\n"
        "  columns.syn_text_coca_tiny.weights_sha256: 'other' there",
    ):
        caption(GenerateConfig(**ASKED, **ON_RAY, output=tmp_path / "out"))
    assert list(files(tmp_path / "out")) == [RUN]


def test_a_run_that_loses_a_node_equals_one_that_does_not(cluster, alone, tmp_path, files, with_samples):
    options = {
        "input": [str(alone / "*.tar")],
        "teacher": ["coca_tiny"],
        "views": 2,
        "device": "cpu",
        "num_workers": 0,
        "batch_size": 4,
    }
    assert reinforce(ReinforceConfig(**options, output=tmp_path / "undisturbed")) == 0
    begun = tmp_path / "begun"
    with_samples(generate.reinforce.run, lambda number, samples: Held(samples, cluster.second.node_id, begun))

    def kill() -> None:
        wait_until(begun.exists)
        cluster.remove_node(cluster.second, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    assert reinforce(ReinforceConfig(**options, **ON_RAY, output=tmp_path / "out")) == 0
    killer.join()
    assert begun.exists() and files(tmp_path / "out") == files(tmp_path / "undisturbed")


def wait_until(condition) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


# --- without one -----------------------------------------------------------------------------------------------------


def node(cpus: float, gpus: float = 0, alive: bool = True) -> dict:
    return {"Alive": alive, "Resources": {"CPU": cpus, "GPU": gpus, "memory": 1e9}}


@pytest.mark.parametrize(
    "options, nodes, expected",
    [
        ({}, [node(4), node(2), node(8, alive=False)], (0, 6, 6, 4)),
        ({"concurrency": "2,50"}, [node(4)], (0, 2, 50, 4)),
        ({}, [node(8, gpus=2), node(4)], (1, 2, 2, 2)),
        ({"gpus_per_worker": 0.5}, [node(8, gpus=2)], (0.5, 4, 4, 4)),
        ({"gpus_per_worker": 0.3}, [node(8, gpus=2)], (0.3, 6, 6, 6)),
        ({"gpus_per_worker": 2}, [node(8, gpus=3), node(8, gpus=1)], (2, 1, 1, 1)),
        ({"gpus_per_worker": 0, "concurrency": "3"}, [node(8, gpus=2)], (0, 3, 3, 3)),
    ],
)
def test_workers_are_as_many_as_the_nodes_hold(options, nodes, expected):
    place, least, most = plan(GenerateConfig(**ASKED, output="out", engine="ray", **options), nodes)
    assert (place.gpus, least, most, place.workers_on_node) == expected


@pytest.mark.parametrize(
    "options, nodes, message",
    [
        (
            {"concurrency": 3},
            [node(1), node(1)],
            "3 workers, each with 1 CPU and 0 GPUs, would wait for ever: the cluster has 2 nodes with "
            "2 CPUs and 0 GPUs, room for 2; use --concurrency 2",
        ),
        ({"gpus_per_worker": 1}, [node(2)], "room for 0; use --gpus-per-worker 0"),
        ({"gpus_per_worker": 2}, [node(8, gpus=1), node(8, gpus=1)], "room for 0; use --gpus-per-worker 0"),
        ({}, [node(0)], "room for 0; add nodes"),
    ],
)
def test_workers_that_would_wait_for_ever_are_refused(options, nodes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        plan(GenerateConfig(**ASKED, output="out", engine="ray", **options), nodes)


def test_a_worker_knows_how_many_share_its_nodes_memory(monkeypatch, tmp_path):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # is set back afterwards
    work = SimpleNamespace(config=GenerateConfig(**ASKED, output=tmp_path), load=lambda *_: processes_here())
    assert Place(0, os.getcwd(), workers_on_node=6).load(work, {}) == 6


def test_a_worker_with_other_weights_or_without_the_folder_is_refused(alone, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # is set back afterwards
    shutil.copytree(alone, tmp_path / "out")
    worker = Worker(Captioning(GenerateConfig(**ASKED, output=tmp_path / "out")), Place(0, os.getcwd()), None)
    worker.load()
    run = tmp_path / "out" / RUN
    settled = json.loads(run.read_text())
    settled["fingerprint"]["columns"]["syn_text_coca_tiny"]["weights_sha256"] = "other"
    run.write_text(json.dumps(settled))
    worker.is_loaded = False
    with pytest.raises(
        ValueError,
        match=r"has loaded other models, .*:\n"
        r"  columns.syn_text_coca_tiny.weights_sha256: 'other' there, '[0-9a-f]+' now$",
    ):
        worker.load()
    worker = Worker(Captioning(GenerateConfig(**ASKED, output=tmp_path / "elsewhere")), Place(0, os.getcwd()), None)
    with pytest.raises(ValueError, match="finds no run in .*elsewhere, which all nodes must see"):
        worker.load()


@pytest.mark.parametrize(
    "error, how",
    [
        (OSError(errno.ENOSPC, "No space left on device", "x.tar.tmp"), "over"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "over"),
        (LockLost("another writes here"), "over"),
        (Spent("--max-requests 5 are made"), "over"),
        (OSError(errno.EIO, "damaged"), "failed"),
    ],
)
def test_what_no_other_shard_would_escape_ends_the_run(monkeypatch, caplog, error, how):
    class Work:
        config = GenerateConfig(**ASKED, output="out")

        def write(self, shard, pace):
            raise error

    monkeypatch.setattr(scale_out.ray, "get", lambda answer: answer)
    tally = SimpleNamespace(**{name: SimpleNamespace(remote=getattr(Tally(), name)) for name in ("begin", "end")})
    worker = Worker(Work(), Place(0, os.getcwd()), tally)
    worker.is_loaded = True
    shard = read_samples("scenes:val,n=1")[0]
    assert worker.write(shard) == (how, str(error))
    end = {"shard": shard.name, "path": shard.path, "how": how, "why": str(error), "warnings": ""}
    with pytest.raises(OSError, match=re.escape(str(error))) if how == "over" else nullcontext():
        _log(end)
    assert f"shard scenes-val2-00000 of scenes:val,n=1 failed: {error}" in caplog.text


def test_a_head_that_has_gone_is_told_before_ray_ends_the_process(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(scale_out.time, "monotonic", lambda: clock[0])
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        head.listen()
        address = f"127.0.0.1:{head.getsockname()[1]}"
        monkeypatch.setattr(scale_out.ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address=address))
        cluster_head = ClusterHead()
        clock[0] = 100.0
        assert cluster_head.check()
        cluster_head.wait_for_answer()
    clock[0] = 129.0
    assert not cluster_head.check()  # a new head may come
    monkeypatch.setattr(scale_out.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    with pytest.raises(ConnectionError, match="has gone"):
        cluster_head.wait_for_answer()
    assert clock[0] == 130.0
    with pytest.raises(
        ConnectionError, match=f"the head of the Ray cluster, {address}, has gone: .*refused.*; what is done stays"
    ):
        cluster_head.check()


def test_a_tally_knows_who_died_at_what_and_counts_nothing_twice():
    tally = Tally()
    assert tally.total() == [] and tally.begin("a", "one") == [] and tally.begin("b", "two") == []
    assert tally.count("a", (5, 10)) is tally.count("b", (1, 2)) is False
    assert tally.total() == [6, 12] and tally.begin("a", "three") == ["one"]  # worker "one" never ended the shard
    tally.count("a", (2, 4))
    assert tally.total() == [3, 6] and tally.begin("a", "four") == ["one", "three"] and tally.busy()
    tally.end("a", (7, 14))
    assert tally.begin("a", "five") == ["one", "three"]
    tally.stop()
    assert tally.begin("c", "six") is None and tally.count("b", (1, 2)) is True
    tally.end("a", (7, 14))
    tally.end("b", (1, 2))
    assert tally.total() == [8, 16] and not tally.busy()


@pytest.mark.parametrize(
    "options, messages",
    [
        (
            {"engine": "ray", "num_processes": 2, "limit": 5},
            ["--num-processes: is for --engine embedded", "--limit: works in one process"],
        ),
        (
            {"concurrency": "2", "ray_address": "auto"},
            ["--ray-address: auto is for --engine ray", "--concurrency: 2 is for --engine ray"],
        ),
        (
            {"engine": "ray", "concurrency": "8,2", "ray_address": "here"},
            ["MIN is 8, which is more than MAX, 2", "is neither host:port nor auto"],
        ),
        (
            {"engine": "ray", "concurrency": "0", "gpus_per_worker": 1.5},
            ["neither a number of workers nor MIN,MAX", "neither a whole number of GPUs nor a share"],
        ),
    ],
)
def test_what_does_not_go_with_an_engine_is_told_at_once(options, messages):
    with pytest.raises(ValueError) as error:
        GenerateConfig(**ASKED, output="out", **options)
    assert all(problem in str(error.value) for problem in messages)


def test_the_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "generate.runs.ray_engine", raising=False)
    with pytest.raises(ValueError, match=r"--engine ray: is not installed; run pip install 'capsmith\[ray\]'"):
        caption(GenerateConfig(**ASKED, engine="ray", output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_connection_that_fails_says_how_a_cluster_is_begun_and_asks_for_its_token():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"  # bound, but nobody listens
        with pytest.raises(ValueError, match=f"--ray-address: {address}: .*refused") as caught:
            connect(address)
    assert "ray start --head" in str(caught.value) and "RAY_AUTH_MODE=token" in str(caught.value)
