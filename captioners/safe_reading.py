"""Bounds for model folders that are not trusted: sizes of files, numbers in configs, programs, and paths."""

import json
import os
import re
import resource
import signal
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from imagetext.shown import reason

LARGEST = 2**27  # bytes of a tokenizer's file; the largest in use have 35 MB
LARGEST_CONFIG = 2**23  # bytes of a config or a chat template
LONGEST_LIST = 1000  # entries of a list of numbers in a config
# Seconds and bytes of memory that a call in a child process may take, and bytes of its result as JSON.
SECONDS, MEMORY, LONGEST_TEXT = 20, 2**29, 2**16
MEMORY_NOW = Path("/proc/self/statm")  # this process's memory in pages, on Linux
# The largest numbers in a model's config, by a pattern of their names.
MODEL = {r"layers|depths?$": 1000, "image_size": 4096, "": 10**8}
# The largest numbers in the config of a picture processor.
PICTURES = {"patch|merge": 64, "size|edge|height|width|pinpoints|tokens|seq_len": 4096, "": 10**8}
TOKENIZERS = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "added_tokens.json",
)


def attempt(failure: str | Path, call: Callable, *args, **options) -> Any:
    """Return the result of a call; turn an error of any type into a ValueError that begins with `failure`."""
    try:
        return call(*args, **options)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # panics in libraries written in Rust are not Exceptions
        raise ValueError(f"{failure}: {reason(error)}") from error


def in_bounds(call: Callable[[], Any]) -> Any:
    """Return the result of a call, made in a child process within bounds of time, memory and length of the result.

    The result passes through JSON. The call must be pure Python, because threads of libraries do not survive the fork.
    Raises ValueError with the call's error, or if the call exceeds a bound.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        _run_in_child(call, write_end)
    os.close(write_end)
    try:
        with open(read_end, "rb") as pipe:
            answer = pipe.read(LONGEST_TEXT)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    try:
        value, error = json.loads(answer)
    except ValueError:
        bounds = f"{SECONDS} seconds, {MEMORY >> 20} MiB of memory or {LONGEST_TEXT >> 10} KiB of text"
        raise ValueError(f"it takes more than {bounds}") from None
    if error:
        raise ValueError(error)
    return value


def _run_in_child(call: Callable[[], Any], write_end: int) -> None:
    """Make the call, write [result, error] as JSON, and exit; write nothing if the call exceeds a bound."""
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        if MEMORY_NOW.exists():
            limit = int(MEMORY_NOW.read_text().split()[0]) * resource.getpagesize() + MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            answer = [call(), None]
        except MemoryError:
            raise
        except Exception as error:
            answer = [None, reason(error)]
        with open(write_end, "wb") as pipe:
            pipe.write(json.dumps(answer).encode())
    finally:
        os._exit(0)  # the parent's exit handlers must not run in the child


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a model.

    Raises ValueError if the file holds no JSON object, or is too large or nested too deeply.
    """
    if (size := path.stat().st_size) > LARGEST_CONFIG:
        raise ValueError(f"{path}: has {size:,} bytes, at most {LARGEST_CONFIG:,} are read")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {reason(error)}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a JSON object")
    return value


def check_numbers(config: Mapping[str, Any], where: str | Path, limits: Mapping[str, int] = MODEL) -> None:
    """Raise ValueError if a config has numbers so large that using it could take unbounded memory or time.

    limits: maps a pattern of names to the largest allowed number; the first pattern that matches counts.
    """
    problems: list[str] = []
    waiting: list[tuple[str, Any]] = [("", config)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [(f"{name}.{key}".lstrip("."), part) for key, part in value.items()]
        elif isinstance(value, list | tuple):
            if len(value) > LONGEST_LIST and not isinstance(value[0], str):
                problems.append(f"{name} has {len(value):,} entries, at most {LONGEST_LIST:,} are allowed")
            waiting += [(name, part) for part in value]
        elif isinstance(value, int | float):
            limit = next(limit for pattern, limit in limits.items() if re.search(pattern, name))
            if not -limit <= value <= limit:
                problems.append(f"{name} is {value}, at most {limit:,} is allowed")
    if problems:
        raise ValueError(f"{where}: " + "; ".join(problems[:5]))


def check_size(model: Any, weights: Iterable[Path], where: str | Path) -> None:
    """Raise ValueError if a torch model has more weights than its files can hold at four bits each.

    model: built on the meta device, so that it takes no memory.
    """
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    capacity = 2 * sum(path.stat().st_size for path in weights)
    if 0 < capacity < num_weights:
        raise ValueError(
            f"{where}: its config asks for {num_weights:,} weights, but its files can hold no more than {capacity:,}"
        )


def check_folder(folder: Path) -> None:
    """Raise ValueError if configs, chat templates or tokenizer files in a model's folder are too large to be read."""
    problems = []
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".jinja", ".txt", ".model") and path.is_file():
            size = path.stat().st_size
            limit = LARGEST if path.name in TOKENIZERS or path.suffix == ".txt" else LARGEST_CONFIG
            if size > limit:
                problems.append(f"{path.name} has {size:,} bytes, at most {limit:,} are read")
    if problems:
        raise ValueError(f"{folder}: " + "; ".join(problems))


def check_inside(folder: Path | None, options: Mapping[str, Any], where: str) -> None:
    """Raise ValueError if a tokenizer's options ask for code to be run, or name a file outside the model's folder."""
    problems = []
    if "trust_remote_code" in options:
        problems.append("its tokenizer_kwargs ask for code to be run, by trust_remote_code, which is never done")
    for name, value in options.items():
        if isinstance(value, str) and (name.endswith(("_path", "_file")) or "/" in value or "\\" in value):
            if folder is None or not (folder / value).resolve().is_relative_to(folder.resolve()):
                problems.append(f"its tokenizer_kwargs.{name} is {value!r}, which is outside the model's folder")
    if problems:
        raise ValueError(f"{where}: " + "; ".join(problems))
