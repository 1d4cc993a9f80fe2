"""Cheap launchers: programs on PATH, each of which is run by a fork of one process that has imported everything.

`make_programs(FOLDER)` writes the programs, and `python -m tests.launchers SOCKET` serves them. torchrun, accelerate
and capsmith are the real ones, but training and loading are stubs: each process of a run writes its number and the
number of processes to the file WORLDS. srun and mpirun set the environment as the real ones do, and start the given
number of processes. For Ray, only the flags are read.
"""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

PROGRAMS = ("capsmith", "python", "torchrun", "accelerate", "srun", "mpirun", "scontrol", "ray")
SOCKET, WORLDS = "LAUNCHERS_SOCKET", "LAUNCHERS_WORLDS"
CLIENT = f"""#!{sys.executable} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect(os.environ["{SOCKET}"])
    asked = [os.path.basename(sys.argv[0]), sys.argv[1:], dict(os.environ), os.getcwd()]
    socket.send_fds(server, [json.dumps(asked).encode()], [1, 2])
    sys.exit(int(server.recv(8) or 1))
"""
RANKS = {  # the environment that a launcher gives process `number` of `count`
    "srun": {
        "SLURM_PROCID": "{number}",
        "SLURM_LOCALID": "{number}",
        "SLURM_NTASKS": "{count}",
        "SLURM_STEP_NUM_TASKS": "{count}",
        "SLURM_STEP_TASKS_PER_NODE": "{count}",
    },
    "mpirun": {
        "OMPI_COMM_WORLD_RANK": "{number}",
        "OMPI_COMM_WORLD_LOCAL_RANK": "{number}",
        "OMPI_COMM_WORLD_SIZE": "{count}",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "{count}",
    },
}
VALUES = {"srun": {"--ntasks", "-n"}, "mpirun": {"-n", "-x"}}  # the options that take a value


def make_programs(folder: Path) -> dict[str, str]:
    """Write the programs; return the environment in which they are found."""
    folder.mkdir()
    for name in PROGRAMS:
        (folder / name).write_text(CLIENT)
        (folder / name).chmod(0o755)
    return {
        "PATH": f"{folder}:{os.environ['PATH']}",
        SOCKET: str(folder / "socket"),
        "PYTHON_EXEC": str(folder / "python"),
        "CUDA_VISIBLE_DEVICES": "",
        "SLURM_JOB_NODELIST": "localhost",
    }


def serve(path: str) -> None:
    """Run each requested program in a fork of this process."""
    prepare()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                code = 1
                try:
                    code = run(connection)
                finally:
                    sys.stdout.flush(), sys.stderr.flush()
                    connection.sendall(str(code).encode())
                    os._exit(0)
            connection.close()


def prepare() -> None:
    """Import the modules that the programs use, and replace training and loading by stubs."""
    import accelerate.commands.accelerate_cli  # noqa: F401
    import ray.scripts.scripts  # noqa: F401
    import torch.distributed.run  # noqa: F401

    import finetune.captioner.run
    import finetune.student.run

    sys.path.insert(0, str(Path(__file__).parent / "generate"))
    import killed_runs  # noqa: F401  (it stubs captioners and teachers)

    import generate.captions.run
    import generate.reinforce.run
    import generate.runs.processes
    from generate.runs.protocol import Embedded

    finetune.captioner.run.train = finetune.student.run.train = train
    generate.runs.processes.multiprocessing = SimpleNamespace(
        get_context=lambda _: multiprocessing.get_context("fork"), parent_process=multiprocessing.parent_process
    )

    class Cluster:
        def __init__(self, config):
            note(config.ray_address, config.concurrency)

        def __enter__(self):
            return Embedded(generate.captions.run.Rank())

        def __exit__(self, *_):
            pass

    def engine_of(config, rank, engine_of=generate.captions.run.engine_of):
        if config.engine == "embedded":
            note(rank.number, rank.count)
        return engine_of(config, rank)

    sys.modules["generate.runs.ray_engine"] = SimpleNamespace(Cluster=Cluster)
    generate.captions.run.engine_of = generate.reinforce.run.engine_of = engine_of


def train(config, state) -> None:
    """Take the place of training: each process notes its number among those connected. `mistake` raises an error."""
    if config.output.name == "mistake":
        raise ValueError("found by a rank")
    from accelerate.utils import gather_object

    ranks = gather_object([state.process_index])
    note(state.process_index, len(ranks))
    state.destroy_process_group()


def note(*what) -> None:
    with open(os.environ[WORLDS], "a") as file:
        file.write(json.dumps(what) + "\n")


def run(connection: socket.socket) -> int:
    """Run one program with the words, environment, folder and files of the request; return its exit code."""
    request, files, *_ = socket.recv_fds(connection, 1 << 18, 2)
    program, words, environment, folder = json.loads(request)
    for descriptor, file in enumerate(files, 1):
        os.dup2(file, descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = [program, *words]
    try:
        return globals().get(f"as_{program}", as_launcher)(words) or 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)


def as_capsmith(words: list[str]) -> int:
    import capsmith

    return capsmith.main([*words, *(["--num-workers", "0"] if words[0] in ("generate", "reinforce") else [])])


def as_python(words: list[str]) -> int:
    assert words[:3] == ["-u", "-m", "capsmith"]
    return as_capsmith(words[3:])


def as_torchrun(words: list[str]) -> None:
    import torch.distributed.run

    torch.distributed.run.main(words)


def as_accelerate(words: list[str]) -> None:
    import accelerate.commands.accelerate_cli

    accelerate.commands.accelerate_cli.main()


def as_scontrol(words: list[str]) -> None:
    assert words[:2] == ["show", "hostnames"]
    print(words[2])


def as_ray(words: list[str]) -> None:
    """Read the flags as Ray does, without starting anything."""
    from ray.scripts.scripts import cli

    name, command, words_left = cli.resolve_command(cli.make_context("ray", list(words)), list(words))
    command.make_context(name, words_left)


def as_launcher(words: list[str]) -> int:
    """Act as srun or mpirun: read its options, then run the program."""
    launcher, options = os.path.basename(sys.argv[0]), []
    while words[0].startswith("-"):
        options.append((words[0], words[1]))
        assert words[0] in VALUES[launcher], words[0]
        words = words[2:]
    count = next(int(value) for name, value in options if name in ("--ntasks", "-n"))
    ranks = [
        subprocess.Popen(
            words,
            env={
                **os.environ,
                **{name: value.format(number=number, count=count) for name, value in RANKS[launcher].items()},
            },
        )
        for number in range(count)
    ]
    return max(rank.wait() for rank in ranks)


if __name__ == "__main__":
    serve(sys.argv[1])
