"""Pairs of a caption and how else it may be said, for the instructions of language models."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, permutations
from pathlib import Path
from typing import Any, NamedTuple

from imagetext import limits
from imagetext.fields import json_object, readable
from imagetext.hashes import name_hash
from imagetext.picture_files import one_error
from imagetext.sources import read_samples
from imagetext.stores import entry, open_file, read_bytes

SHIPPED = {path.stem: path for path in sorted((Path(__file__).parent / "recipes").glob("*.txt"))}
ARROW = "=>"
FORMS = (
    f"pairs stand in a .txt file, source {ARROW} target in a line, or in a .jsonl file with source and target; shipped are "
    + " and ".join(SHIPPED)
)
MOST_PAIRS = 100_000  # of a set of captions, the first that there are


class Pair(NamedTuple):
    """A caption, and the same said in other words."""

    source: str
    target: str


def read_pairs(place: str) -> list[Pair]:
    """The pairs of a file, of one that is shipped (`SHIPPED`), or any two captions of a picture of a SPEC, the first MOST_PAIRS.

    A file of pairs has lines of `source => target` (.txt), or of JSON with `source` and `target` (.jsonl).
    Raises: ValueError that names every line that is no pair, or where there is no pair at all.
    """
    path = str(SHIPPED.get(place, place))
    of_line = _of_json if _has_json_pairs(path) else _of_text if path.endswith(".txt") else None
    try:
        pairs = _pairs_in(path, of_line) if of_line else list(islice(_pairs_of_set(path), MOST_PAIRS))
    except (ValueError, OSError) as error:
        raise ValueError(f"examples: {error}{'' if of_line else f'; {FORMS}'}") from error
    if not pairs:
        raise ValueError(
            f"examples: {place}: {'holds no pairs' if of_line else 'no picture has two different captions'}"
        )
    return pairs


def draw_pairs(pairs: Sequence[Pair], count: int, name: str, seed: int) -> list[Pair]:
    """So many different pairs, or all in another order where there are no more; a function of name and seed."""
    places: dict[int, int] = {}  # of a shuffled list, those that are not their own
    drawn = []
    for i in range(min(count, len(pairs))):
        j = i + name_hash(f"{i}\n{name}", "example", seed=seed) % (len(pairs) - i)
        drawn.append(pairs[places.get(j, j)])
        places[j] = places.get(i, i)
    return drawn


def hash_of_pairs(pairs: Sequence[Pair]) -> str:
    """The SHA-256 of what they say, wherever they come from."""
    return hashlib.sha256(json.dumps(pairs, ensure_ascii=False).encode("utf-8", "replace")).hexdigest()


def _has_json_pairs(path: str) -> bool:
    """Whether a file has rows of pairs; others of its name have rows of pictures."""
    if not path.endswith(".jsonl") or not entry(path):
        return False
    with open_file(path) as file:
        first = file.readline(limits.TEXT)
    return b'"source"' in first and b'"target"' in first


def _pairs_in(path: str, of_line: Callable[[str], tuple[Any, Any]]) -> list[Pair]:
    found, problems = [], []
    for number, line in enumerate(readable(read_bytes(path, limits.TEXT), path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            source, target = of_line(line)
            if not isinstance(source, str) or not isinstance(target, str) or not source.strip() or not target.strip():
                raise ValueError("a pair is two texts that say something")
            found.append(Pair(source.strip(), target.strip()))
        except (ValueError, KeyError) as error:
            problems.append(f"{path}: line {number}: {str(error) if isinstance(error, ValueError) else f'no {error}'}")
    if problems:
        raise one_error(problems)
    return found


def _of_text(line: str) -> tuple[str, str]:
    source, *target = line.split(ARROW)
    if len(target) != 1:
        raise ValueError(f"is not of the form source {ARROW} target")
    return source, target[0]


def _of_json(line: str) -> tuple[Any, Any]:
    row = json_object(line)
    return row["source"], row["target"]


def _pairs_of_set(spec: str) -> Iterator[Pair]:
    """Any two captions of a picture, in both orders, as LaCLIP takes them of MSCOCO (arXiv 2305.20088)."""
    for shard in read_samples(spec, distinct=False, needs=("captions",), check=False):
        for record in shard:
            texts = (text.strip() for text in record.captions if len(text) <= limits.INSTRUCTION)
            captions = dict.fromkeys(filter(None, texts))
            yield from (Pair(source, target) for source, target in permutations(captions, 2))
