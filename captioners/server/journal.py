"""Keep a server's answers for a shard until the shard is complete.

A shard that fails is started again, and answers that were paid for should not be requested twice.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from captioners.server.answers import Choice

LARGEST = 256 << 20  # bytes of a journal; answers beyond them are not kept
FOLDER = ".answers"


class Journal:
    """A file of answers, by the keys of their requests. Each answer is appended as a line as soon as it comes."""

    def __init__(self, path: Path):
        self.path = path
        self._answers = dict(_read_lines(path))
        self._file = None
        self._size = path.stat().st_size if path.exists() else 0

    def get(self, request: str) -> list[Choice] | None:
        """The answer to the request with this key, or None if it is not in the journal."""
        return self._answers.get(request)

    def put(self, request: str, choices: list[Choice]) -> None:
        """Add the answer to the request with this key, if the journal is not full."""
        line = json.dumps([request, choices]).encode() + b"\n"
        if self._size + len(line) > LARGEST:
            return
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab")
            self._file.write(b"\n" if self._size else b"")  # the last line of a killed process may be incomplete
        self._file.write(line)
        self._file.flush()
        self._size += len(line)
        self._answers[request] = choices

    def close(self) -> None:
        """Close the file; a later `put` opens it again."""
        if self._file is not None:
            self._file.close()
        self._file = None

    def remove(self) -> None:
        """Delete the file, because the shard is complete."""
        self.close()
        self.path.unlink(missing_ok=True)
        try:
            self.path.parent.rmdir()
        except OSError:  # other journals are in the folder, or it does not exist
            pass


def request_key(request: dict, draw: tuple) -> str:
    """The key of a request for a draw.

    The draw is part of the key, because the requests of different draws are equal if a server takes no seed. The
    server's address is not.
    """
    return hashlib.blake2b(json.dumps([request, draw], sort_keys=True).encode(), digest_size=16).hexdigest()


def _read_lines(path: Path) -> Iterator[tuple[str, list[Choice]]]:
    """Yield the complete answers in a file, with the keys of their requests."""
    try:
        with open(path, "rb") as file:
            lines = file.read(LARGEST).splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            request, choices = json.loads(line)
            yield str(request), [_read_choice(*choice) for choice in choices]
        except (ValueError, TypeError, RecursionError):
            pass


def _read_choice(text: Any, logprob: Any, reason: Any, uncleaned: Any = "", *_: Any) -> Choice:
    return Choice(str(text), None if logprob is None else float(logprob), str(reason), uncleaned=str(uncleaned))


class KeepsAnswers(Protocol):
    """A captioner that keeps answers in a journal, if it has one."""

    journal: Journal | None


@contextmanager
def answers_kept(captioners: Sequence[KeepsAnswers], output: str, shard: str) -> Iterator[None]:
    """A context in which a shard is made, and the captioners keep their servers' answers.

    If the shard fails, the answers are used when it is made again; once it is complete, they are deleted. They are
    kept in the output folder or, for an output in a store, in the user's cache on this machine, if there is one.
    """
    folder = answers_folder(output) if captioners else None
    if folder is None:
        yield
        return
    journal = Journal(folder / f"{shard}.jsonl")
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
    """Delete the answers that an earlier run has kept for an output."""
    if folder := answers_folder(output):
        shutil.rmtree(folder, ignore_errors=True)


def answers_folder(output: str) -> Path | None:
    """The folder in which the answers for an output's unfinished shards are kept.

    None for an output in a store if this user has no cache that can be written, as often in containers.
    """
    if "://" not in output:
        return Path(output) / FOLDER
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "capsmith", "answers")
    if not cache.is_absolute():  # this user has no home
        return None
    with suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
    return cache / hashlib.sha256(output.encode()).hexdigest()[:16] if os.access(cache, os.W_OK) else None
