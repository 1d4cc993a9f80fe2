"""What a stranger's model folder may do here: small files of bounded size, paths that stay inside."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imagetext.shown import reason

LARGEST = 2**27         # bytes of a file of a tokenizer; the largest that are known have 35 MB
LARGEST_CONFIG = 2**23  # bytes of a config or a chat template
MOST_LAYERS = 1000
MOST = 10**8            # of any other number in a config: of tokens, positions, widths
TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "added_tokens.json")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model; ValueError where there is none, or it is too large or too deep."""
    if (size := path.stat().st_size) > LARGEST_CONFIG:
        raise ValueError(f"{path}: has {size:,} bytes, at most {LARGEST_CONFIG:,} are read")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {reason(error)}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: not a JSON object")
    return found


def check_numbers(config: Mapping[str, Any], where: str | Path) -> None:
    """Refuses a model's config by whose numbers building it would take memory or time without end."""
    problems, waiting = [], [("", config)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [(f"{name}.{key}".lstrip("."), one) for key, one in value.items()]
        elif isinstance(value, list):
            waiting += [(name, one) for one in value]
        elif isinstance(value, int | float):
            most = MOST_LAYERS if re.search(r"layers|depths?$", name) else MOST
            if not -most <= value <= most:
                problems.append(f"{name} is {value}, at most {most:,} can be")
    if problems:
        raise ValueError(f"{where}: " + "; ".join(problems[:5]))


def check_folder(folder: Path) -> None:
    """Refuses a model's folder with a config, a chat template or a tokenizer's file that is too large to be read; names all."""
    problems = []
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".jinja", ".txt", ".model") and path.is_file():
            size, most = path.stat().st_size, LARGEST if path.name in TOKENIZERS or path.suffix == ".txt" else LARGEST_CONFIG
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
