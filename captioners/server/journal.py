"""Answers for a shard, kept until the shard is whole: they are paid for, and a shard that fails is begun anew."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from captioners.server.answers import Choice

MOST = 256 << 20  # bytes; answers beyond them are asked for again
FOLDER = ".answers"


class Journal:
    """A file of answers, each a line that stands there once it came, by the request that it answers."""

    def __init__(self, path: Path):
        self.path = path
        self._known = dict(_lines(path))
        self._file = None
        self._size = path.stat().st_size if path.exists() else 0

    def get(self, request: str) -> list[Choice] | None:
        """The answer of an earlier try."""
        return self._known.get(request)

    def put(self, request: str, choices: list[Choice]) -> None:
        line = json.dumps([request, choices]).encode() + b"\n"
        if self._size + len(line) > MOST:
            return
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab")
            self._file.write(b"\n" if self._size else b"")  # what a killed process has left may end anywhere
        self._file.write(line)
        self._file.flush()
        self._size += len(line)
        self._known[request] = choices

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None

    def remove(self) -> None:
        """The shard is whole."""
        self.close()
        self.path.unlink(missing_ok=True)
        try:
            self.path.parent.rmdir()
        except OSError:  # others stand there, or none ever did
            pass


def request_key(request: dict, draw: tuple) -> str:
    """The key of a request for a draw, of any server; where a server takes no seed, many draws make the same request."""
    return hashlib.blake2b(json.dumps([request, draw], sort_keys=True).encode(), digest_size=16).hexdigest()


def _lines(path: Path) -> Iterator[tuple[str, list[Choice]]]:
    """The answers of a file, as far as they are whole."""
    try:
        with open(path, "rb") as file:
            for line in file.read(MOST).splitlines():
                try:
                    request, choices = json.loads(line)
                    yield (
                        str(request),
                        [
                            Choice(
                                str(text),
                                None if logprob is None else float(logprob),
                                str(reason),
                                *map(str, whole[:1]),
                            )
                            for text, logprob, reason, *whole in choices
                        ],
                    )
                except (ValueError, TypeError, RecursionError):
                    pass
    except FileNotFoundError:
        pass


class Keeps(Protocol):
    """A captioner that keeps answers where it is told to."""

    journal: Journal | None


@contextmanager
def answers_kept(captioners: Sequence[Keeps], output: str, shard: str) -> Iterator[None]:
    """A block that makes a shard: what servers answered in it is kept where it fails, used when it is made again, and goes then.

    It is kept in the output folder; for one in a store, in the user's cache on this machine.
    """
    if not captioners:
        yield
        return
    journal = Journal(answers_folder(output) / f"{shard}.jsonl")
    for captioner in captioners:
        captioner.journal = journal
    try:
        yield
        journal.remove()
    finally:
        journal.close()
        for captioner in captioners:
            captioner.journal = None


def forget_answers(output: str) -> None:
    """A run begins anew: what servers answered in an earlier one goes."""
    shutil.rmtree(answers_folder(output), ignore_errors=True)


def answers_folder(output: str) -> Path:
    """Where the answers of an output's unfinished shards are kept."""
    if "://" not in output:
        return Path(output) / FOLDER
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "capsmith" / "answers" / hashlib.sha256(output.encode()).hexdigest()[:16]
