"""Bounds for a stranger's model folder: sizes of files, numbers in configs, programs, and paths that stay inside."""

import json
import os
import re
import resource
import signal
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from imagetext.shown import reason

LARGEST = 2**27  # bytes of a file of a tokenizer; the largest that are known have 35 MB
LARGEST_CONFIG = 2**23  # bytes of a config or a chat template
LONGEST_LIST = 1000  # of numbers in a config
# that a program may take, in seconds and bytes; and the bytes of its answer
SECONDS, MEMORY, LONGEST_TEXT = 20, 2**29, 2**16
MEMORY_NOW = Path("/proc/self/statm")  # of this process, in pages, where the system tells it
MODEL = {r"layers|depths?$": 1000, "image_size": 4096, "": 10**8}  # the largest numbers in a config, by their names
PICTURES = {
    "patch|merge": 64,
    "size|edge|height|width|pinpoints|tokens|seq_len": 4096,
    "": 10**8,
}  # and in a processor's
TOKENIZERS = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "added_tokens.json",
)


def attempt(otherwise: str | Path, call: Callable, *args, **options) -> Any:
    """The result of a call; errors of any kind, as libraries raise them, become a ValueError that says what was tried."""
    try:
        return call(*args, **options)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # those of libraries in Rust are no Exceptions
        raise ValueError(f"{otherwise}: {reason(error)}") from error


def in_bounds(call: Callable[[], Any]) -> Any:
    """The result of a call, through JSON; a process of its own makes the call, within bounds of time, memory and length.

    It runs nothing but Python: threads of libraries are not there. Raises ValueError with its error, or where it breaks a bound.
    """
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        _say(call, writes)
    os.close(writes)
    try:
        with open(reads, "rb") as pipe:
            said = pipe.read(LONGEST_TEXT)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    try:
        value, error = json.loads(said)
    except ValueError:
        most = f"{SECONDS} seconds, {MEMORY >> 20} MiB of memory or {LONGEST_TEXT >> 10} KiB of text"
        raise ValueError(f"it takes more than {most}") from None
    if error:
        raise ValueError(error)
    return value


def _say(call: Callable[[], Any], writes: int) -> None:
    """The life of the process within bounds: it writes what the call returns, and its error; nothing where it breaks one."""
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        if MEMORY_NOW.exists():
            most = int(MEMORY_NOW.read_text().split()[0]) * resource.getpagesize() + MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        try:
            said = [call(), None]
        except MemoryError:
            raise
        except Exception as error:
            said = [None, reason(error)]
        with open(writes, "wb") as pipe:
            pipe.write(json.dumps(said).encode())
    finally:
        os._exit(0)  # nothing of the parent's is tidied up here


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model; ValueError where there is none, or it is too large or too deep."""
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
    """Refuses a config by whose numbers building a model, or making its pictures, would take memory or time without end.

    limits: the largest number by a pattern of names, of which the first that fits counts.
    """
    problems: list[str] = []
    waiting: list[tuple[str, Any]] = [("", config)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [(f"{name}.{key}".lstrip("."), part) for key, part in value.items()]
        elif isinstance(value, list):
            if len(value) > LONGEST_LIST and not isinstance(value[0], str):
                problems.append(f"{name} has {len(value):,} entries, at most {LONGEST_LIST:,} can be")
            waiting += [(name, part) for part in value]
        elif isinstance(value, int | float):
            most = next(most for pattern, most in limits.items() if re.search(pattern, name))
            if not -most <= value <= most:
                problems.append(f"{name} is {value}, at most {most:,} can be")
    if problems:
        raise ValueError(f"{where}: " + "; ".join(problems[:5]))


def check_size(model: Any, weights: Iterable[Path], where: str | Path) -> None:
    """Refuses a torch model, made without memory, of more weights than the files hold in four bits each."""
    asked = sum(parameter.numel() for parameter in model.parameters())
    held = 2 * sum(path.stat().st_size for path in weights)
    if 0 < held < asked:
        raise ValueError(
            f"{where}: its config asks for {asked:,} weights, and its files can hold no more than {held:,}"
        )


def check_folder(folder: Path) -> None:
    """Refuses a model's folder with a config, a chat template or a tokenizer's file that is too large to be read; names all."""
    problems = []
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".jinja", ".txt", ".model") and path.is_file():
            size, most = (
                path.stat().st_size,
                LARGEST if path.name in TOKENIZERS or path.suffix == ".txt" else LARGEST_CONFIG,
            )
            problems += [f"{path.name} has {size:,} bytes, at most {most:,} are read"] if size > most else []
    if problems:
        raise ValueError(f"{folder}: " + "; ".join(problems))


def check_inside(folder: Path | None, options: Mapping[str, Any], where: str) -> None:
    """Refuses options of a tokenizer that ask for code to be run, or name a file outside the model's folder."""
    problems = []
    if "trust_remote_code" in options:
        problems.append("its tokenizer_kwargs ask for code to be run, by trust_remote_code, which is never done")
    for name, value in options.items():
        if isinstance(value, str) and (name.endswith(("_path", "_file")) or "/" in value or "\\" in value):
            if folder is None or not (folder / value).resolve().is_relative_to(folder.resolve()):
                problems.append(f"its tokenizer_kwargs.{name} is {value!r}, which is outside the model's folder")
    if problems:
        raise ValueError(f"{where}: " + "; ".join(problems))
