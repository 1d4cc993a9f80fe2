"""Run as a script: `generate` from one bucket to another on a local S3 server that fails for a while.

The server is a fork of this process, as every run is.
"""

import json
import logging
import os
import random
import signal
import socket
import struct
import sys
import time
import traceback
from contextlib import suppress
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import boto3  # noqa: F401  (imported here once, instead of in each fork)
import moments
import runs
import s3fs
from campaign import different, vouched_for
from commands import make_pictures
from faults import signalling
from moments import Moment

from imagetext import stores

KIND, FIRST, COUNT, SEEN = range(4)
KINDS = ("", "500", "503", "slow", "reset", "cut")
FAULTS = (*KINDS[1:], "killed", "killed by the clock")
FLAGS = [
    "--model",
    "fake",
    "--batch-size",
    "2",
    "--num-captions",
    "3",
    "--redraws",
    "2",
    "--max-error-rate",
    "1",
    "--device",
    "cpu",
    "--num-workers",
    "0",
]


def serve(control: Any, listening: socket.socket) -> None:
    """Answer requests for ever; COUNT requests from number FIRST on fail."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    server = DomainDispatcherApplication(create_backend_app)
    logging.disable()

    class Quiet(WSGIRequestHandler):
        def log(self, *_):
            pass

    def spoilt(environ, start_response):
        control[SEEN] += 1
        kind = KINDS[control[KIND]] if control[FIRST] <= control[SEEN] < control[FIRST] + control[COUNT] else ""
        if kind in ("500", "503"):
            start_response(f"{kind} fault", [("Content-Length", "0"), ("Connection", "close")])
            return [b""]
        if kind == "slow":
            time.sleep(0.5)
        if kind in ("reset", "cut"):
            connection = environ["werkzeug.socket"]
            if kind == "cut":
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nhalf")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.shutdown(socket.SHUT_RD)
            connection.close()
        return server(environ, start_response)

    make_server("127.0.0.1", 0, spoilt, threaded=True, request_handler=Quiet, fd=listening.fileno()).serve_forever()


class Bucket:
    """The server and its bucket."""

    def __init__(self, folder: Path):
        self.folder, self.control, listening = folder, RawArray("i", 4), socket.create_server(("127.0.0.1", 0))
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{listening.getsockname()[1]}",
            "AWS_ACCESS_KEY_ID": "mine",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        stores.FIRST_WAIT, s3fs.S3FileSystem.read_timeout = 0.01, 3
        self.process = os.fork()
        if not self.process:
            os.dup2(os.open(folder / "server.log", os.O_CREAT | os.O_WRONLY), 2)
            try:
                serve(self.control, listening)
            finally:
                os._exit(1)

        with suppress(HTTPError):
            urlopen(os.environ["AWS_ENDPOINT_URL"], timeout=runs.LATE).read()  # once it has begun

    def run_in_fork(self, action: Any) -> None:
        """Run the action in a forked process, because the stores' libraries start threads."""
        child = os.fork()
        if not child:
            try:
                action(stores.filesystem("s3://"))
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        if os.waitpid(child, 0)[1]:
            raise SystemExit("the server on this machine does not answer")

    def spoil(self, kind: str, first: int = 0, count: int = 0) -> None:
        self.control[:] = [KINDS.index(kind), first, count, 0]

    def copy(self, name: str) -> Path:
        """Copy a folder of the bucket to this machine; return its path there."""
        place = self.folder / f"copy-{time.monotonic_ns()}"
        place.mkdir()

        def get(store):
            for path in store.find(f"bucket/{name}"):
                (place / path.removeprefix(f"bucket/{name}/")).write_bytes(store.cat_file(path))

        self.run_in_fork(get)
        return place


def disturb(
    bucket: Bucket, reference: Path, number: int, units: dict[str, float], draw: random.Random
) -> dict[str, Any]:
    """Disturb a run, perhaps twice, by a failing store or process; resume it, and report the result."""
    output, log, problems = f"{number}/out", bucket.folder / "log", []
    argv = ["generate", "--input", "s3://bucket/in/*.tar", "--output", f"s3://bucket/{output}", *FLAGS]
    faults = draw.sample(FAULTS, draw.choice([1, 1, 2]))
    for fault in faults:
        moment, before = Moment(), lambda: None
        if fault == "killed":
            kind = draw.choice(["step", "batch", "picture"])
            moment = Moment(kind, draw.randint(1, units[kind]), signalling(signal.SIGKILL))
        elif fault == "killed by the clock":
            before = runs.alarm(draw.uniform(0.01, units["seconds"]))
        else:
            bucket.spoil(fault, draw.randint(1, units["requests"]), draw.choice([1, 3, 8, 30]))
        code = runs.end_of(runs.start(argv, moment, log, before=before))
        if (
            code not in ((-signal.SIGKILL, -signal.SIGALRM, 0) if "killed" in fault else (0, 1))
            or "Traceback" in log.read_text()
        ):
            problems.append(f"{fault}: exit code {code}: {log.read_text()[-2000:]}")
        bucket.spoil("")
        copy = bucket.copy(output)
        problems += [
            f"{fault}: {name} is vouched for and wrong" for name in different(vouched_for(copy), copy, reference)
        ]
    if code := runs.end_of(runs.start(argv, Moment(), log)):
        problems.append(f"resumed: exit code {code}: {log.read_text()[-2000:]}")
    copy = bucket.copy(output)
    names = {path.name for folder in (copy, reference) for path in folder.iterdir()}
    problems += [f"resumed: {name} differs" for name in different(names, copy, reference)]
    return {"number": number, "faults": faults, "problems": problems}


if __name__ == "__main__":
    folder, seed, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    moments.hit = folder / "hit"
    make_pictures(folder / "in")
    report = folder / "report.json"
    bucket = Bucket(folder)
    try:

        def put(store):
            store.mkdir("bucket")
            for path in (folder / "in").iterdir():
                store.pipe_file(f"bucket/in/{path.name}", path.read_bytes())

        bucket.run_in_fork(put)
        bucket.spoil("")
        start = time.monotonic()
        argv = ["generate", "--input", "s3://bucket/in/*.tar", "--output", "s3://bucket/first/out", *FLAGS]
        if runs.end_of(runs.start(argv, Moment(), folder / "log", report=report)):
            raise SystemExit(f"the undisturbed run failed: {(folder / 'log').read_text()}")
        reference = bucket.copy("first/out")
        units = json.loads(report.read_text())["units"] | {
            "seconds": time.monotonic() - start,
            "requests": bucket.control[SEEN],
        }
        for number in range(count):
            print(json.dumps(disturb(bucket, reference, number, units, random.Random(f"{seed} {number}"))), flush=True)
    finally:
        with suppress(ProcessLookupError):
            os.kill(bucket.process, signal.SIGKILL)
