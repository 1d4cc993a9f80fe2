"""Every line of the documents that starts several processes runs as written, by the launchers of launchers.py."""

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from imagetext.scenes.draw import SceneSpec, scene_sample
from imagetext.shards import ShardWriter
from imagetext.sources import read_records

from .launchers import SOCKET, WORLDS, make_programs

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LAUNCHES = r"\b(torchrun|accelerate launch|srun|mpirun|ray) |--num-processes|--engine ray"
SIZES = r"(?:--num-processes|--num_processes|--nproc-per-node|--nnodes|--ntasks|-n) (\d+)"


def launches(text: str) -> list[tuple[str, str]]:
    """The commands in the text's blocks that start several processes, each with the `export` lines before it."""
    commands = []
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        before = ""
        for line in block.replace("\\\n", " ").splitlines():
            if re.search(LAUNCHES, line):
                commands.append((before, line))
            elif line.startswith("export"):
                before += line + "\n"
    return commands


FORMS = list(dict.fromkeys(launch for document in DOCUMENTS for launch in launches(document.read_text())))


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return str(listener.getsockname()[1])


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The environment in which the cheap launchers are found, while they are served."""
    folder = tmp_path_factory.mktemp("programs") / "bin"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **make_programs(folder)}
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.launchers", environment[SOCKET]],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
        start_new_session=True,
    )
    assert server.stdout.readline() == "ready\n"
    yield environment
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def make_shards(folder: Path) -> None:
    """Write four drawn pictures with captions, in two shards."""
    folder.mkdir(parents=True)
    for shard in range(2):
        with ShardWriter(folder, f"{shard:05d}", columns=["syn_text_a"]) as writer:
            for record in (scene_sample(SceneSpec("train", 4), number) for number in (2 * shard, 2 * shard + 1)):
                writer.write(replace(record, columns={"syn_text_a": record.captions[:1]}))


@pytest.mark.parametrize("before, line", FORMS, ids=[line.split("#")[0].strip()[:60] for _, line in FORMS])
def test_a_launch_forms_one_world_of_its_size(before, line, programs, tmp_path):
    """Only places in the line are changed: the bucket becomes a folder, and ports become free ones."""
    script = (before + line).replace("s3://bucket", str(tmp_path / "bucket")).replace("29500", free_port())
    script = script.replace("29400", free_port())
    script = script.replace("accelerate launch", f"accelerate launch --main_process_port {free_port()}")
    if shards := re.search(r"--input '(\S+)/\*\.tar'", script):
        make_shards(tmp_path / shards[1])
    machines = int(match[1]) if (match := re.search(r"--nnodes (\d+)", line)) else 1
    environment = {**programs, WORLDS: str(tmp_path / "worlds")}
    runs = [
        subprocess.Popen(
            ["bash", "-euc", script],
            cwd=tmp_path,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for _ in range(machines)
    ]
    for run in runs:
        output_text = run.communicate(timeout=120)[0]
        assert run.returncode == 0, output_text
    worlds = (
        sorted(map(json.loads, (tmp_path / "worlds").read_text().splitlines()))
        if (tmp_path / "worlds").exists()
        else []
    )
    if line.startswith("ray"):
        assert worlds == []
    elif "--engine ray" in line:
        assert worlds == [[*re.search(r"--ray-address (\S+) .*--concurrency (\S+)", line).groups()]]
    else:
        size = math.prod(
            map(int, re.findall(SIZES, line.partition("capsmith finetune")[0] if "torchrun" in line else line))
        )
        assert worlds == [[number, size] for number in range(size)], output_text
    if (output := re.search(r"capsmith (?:generate|reinforce) .*--output (\S+)", script)) and "--dry-run" not in line:
        assert sorted(path.name for path in (tmp_path / output[1]).glob("*.tar")) == ["00000.tar", "00001.tar"]
        assert len(list(read_records(str(tmp_path / output[1])))) == 4
        assert (
            "reinforce" in line or (tmp_path / output[1] / "README.md").exists()
        )  # the last process found the set complete and wrote the card


def test_a_mistake_that_a_rank_finds_is_the_commands_and_ends_all(programs, tmp_path):
    def run(command):
        return subprocess.run(
            ["bash", "-c", f"capsmith {command} --num-processes 2"],
            cwd=tmp_path,
            text=True,
            capture_output=True,
            env={**programs, WORLDS: str(tmp_path / "worlds")},
        )

    done = run("finetune --input pictures/ --model runs/docci --output mistake")
    assert done.returncode == 2 and "found by a rank" in done.stderr
    make_shards(tmp_path / "shards")
    assert run("generate --input 'shards/*.tar' --model a --output captioned").returncode == 0
    before = {path: path.read_bytes() for path in (tmp_path / "captioned").iterdir()}
    done = run("generate --input 'shards/*.tar' --model a --output captioned --seed 1")
    assert done.returncode == 2 and done.stderr.count("seed") == done.stderr.count("error:") == 1
    assert {path: path.read_bytes() for path in (tmp_path / "captioned").iterdir()} == before


def test_every_form_is_among_them():
    lines = "\n".join(line for _, line in FORMS)
    for launcher in ("torchrun", "accelerate launch", "srun", "mpirun"):
        assert re.search(rf"^{launcher} ", lines, re.MULTILINE), launcher
    for command in ("finetune", "train-student", "generate", "reinforce"):
        assert f"capsmith {command} " in lines
