"""Run as a script: kill the head, workers or driver of a local Ray cluster during `generate`, and resume the command.

The cluster has one node, its head. After its head was killed, a new cluster is started. Moments are drawn from the
seconds that the undisturbed run took.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from campaign import different, files, vouched_for
from ray.cluster_utils import Cluster

FAULTS = ("head killed", "worker killed", "driver killed", "driver terminated", "driver interrupted")
SIGNALS = {"driver killed": signal.SIGKILL, "driver terminated": signal.SIGTERM, "driver interrupted": signal.SIGINT}
CODES = {  # 0: the run was done before, or Ray has replaced the worker; a shard is set aside that kills three
    "head killed": (1, 0),
    "worker killed": (1, 0),
    "driver killed": (-signal.SIGKILL, 0),
    "driver terminated": (128 + signal.SIGTERM, 0),
    "driver interrupted": (128 + signal.SIGINT, 0),
}
LATE = 300  # seconds after which a run counts as hanging
WORKERS = 2
INPUTS = ("scenes:val,n=12", "scenes:test,n=8", "scenes:train,n=6")
FLAGS = ["--model", "coca_tiny", "--num-captions", "3", "--redraws", "1", "--max-error-rate", "1"]
FLAGS += ["--batch-size", "2", "--max-length", "16", "--num-workers", "0", "--device", "cpu"]


class Campaign:
    def __init__(self, folder: Path):
        self.folder, self.log, self.cluster = folder, folder / "log", None
        self.argv = [sys.executable, "-m", "capsmith", "generate", *FLAGS]
        self.argv += [word for place in INPUTS for word in ("--input", place)]
        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}

    def start(self, output: Path, engine: str) -> subprocess.Popen:
        flags = ["--output", str(output), "--engine", engine]
        if engine == "ray":
            flags += ["--ray-address", self.address(), "--concurrency", str(WORKERS), "--gpus-per-worker", "0"]
        with self.log.open("w") as log:
            return subprocess.Popen([*self.argv, *flags], stdout=log, stderr=log)

    def address(self) -> str:
        if self.cluster is None:
            node = {"num_cpus": WORKERS, "include_dashboard": False, "object_store_memory": 10**8}
            self.cluster = Cluster(initialize_head=True, head_node_args=node)
        return self.cluster.address

    def workers(self) -> list[psutil.Process]:
        """The processes that caption, in the order in which they started."""
        raylets = self.cluster.head_node.all_processes["raylet"]
        begun = [child for raylet in raylets for child in psutil.Process(raylet.process.pid).children(recursive=True)]
        return [child for child in begun if any(word.startswith("ray::") for word in child.cmdline())]

    def kill_head(self) -> None:
        self.cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
        self.cluster = None

    def close(self) -> None:
        if self.cluster:
            self.cluster.shutdown()


def disturb(campaign: Campaign, reference: Path, seconds: float, number: int, draw: random.Random) -> dict[str, Any]:
    """Disturb a run on Ray by one fault, resume it by one of the engines, and report the result."""
    output, problems = campaign.folder / str(number), []
    fault, engine = FAULTS[number % len(FAULTS)], draw.choice(["ray", "embedded"])
    campaign.address()
    run = campaign.start(output, "ray")
    time.sleep(draw.uniform(0, seconds))
    if fault == "head killed":
        campaign.kill_head()
    elif fault == "worker killed":
        for worker in campaign.workers()[-1:]:
            worker.kill()
    else:
        run.send_signal(SIGNALS[fault])
    code = run.wait(LATE)
    printed = campaign.log.read_text(errors="replace")
    if code not in CODES[fault] or "Traceback" in printed:
        problems.append(f"{fault}: exit code {code}: {printed[-2000:]}")
    if wrong := different(vouched_for(output), output, reference):
        problems.append(f"{fault}: vouched for and wrong: {wrong}")
    if code := campaign.start(output, engine).wait(LATE):
        problems.append(f"resumed on {engine}: exit code {code}: {campaign.log.read_text(errors='replace')[-2000:]}")
    if wrong := different(files(output) | files(reference), output, reference):
        problems.append(f"resumed on {engine}: different: {wrong}")
    shutil.rmtree(output, ignore_errors=True)
    return {"number": number, "fault": fault, "resumed": engine, "problems": problems}


if __name__ == "__main__":
    folder, seed, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    campaign, reference = Campaign(folder), folder / "reference"
    try:
        if campaign.start(reference, "embedded").wait(LATE):
            raise SystemExit(f"the undisturbed run failed: {campaign.log.read_text()}")
        campaign.address()
        begun = time.monotonic()
        if campaign.start(folder / "on-ray", "ray").wait(LATE):
            raise SystemExit(f"the undisturbed run on Ray failed: {campaign.log.read_text()}")
        seconds = time.monotonic() - begun
        assert not different(files(reference) | files(folder / "on-ray"), folder / "on-ray", reference)
        for number in range(count):
            draw = random.Random(f"{seed} {number}")
            print(json.dumps(disturb(campaign, reference, seconds, number, draw)), flush=True)
    finally:
        with suppress(Exception):
            campaign.close()
