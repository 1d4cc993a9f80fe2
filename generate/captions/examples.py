"""Pairs of a caption and the same caption in other words, which instructions show to language models as examples."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, permutations
from pathlib import Path
from typing import Any, NamedTuple

from imagetext import limits
from imagetext.fields import json_object, lines_of, readable
from imagetext.hashes import name_hash
from imagetext.problems import one_error
from imagetext.sources import read_samples
from imagetext.stores import entry, open_file, read_bytes

SHIPPED = {path.stem: path for path in sorted((Path(__file__).parent / "recipes").glob("*.txt"))}
ARROW = "=>"
FORMS = (
    f"pairs are in a .txt file with lines source {ARROW} target, or in a .jsonl file with source and target; "
    f"{' and '.join(SHIPPED)} come with capsmith"
)
MOST_PAIRS = 100_000  # pairs that are taken of a set of captions, from its beginning


class Pair(NamedTuple):
    """A caption, and the same caption in other words."""

    source: str
    target: str


def read_pairs(name: str) -> list[Pair]:
    """Return the pairs of a file, of a shipped file (by its name in `SHIPPED`), or of a set of captions (SPEC).

    A file of pairs has lines of `source => target` (.txt), or JSON with `source` and `target` in each line (.jsonl).
    Of a set, any two different captions of one picture are a pair; the first MOST_PAIRS are taken.
    Raises: ValueError that names every line that is no pair, and where there is no pair at all.
    """
    path = str(SHIPPED.get(name, name))
    parse_line = None  # the input is a set of captions
    if _has_json_pairs(path):
        parse_line = _parse_json
    elif path.endswith(".txt"):
        parse_line = _parse_text
    try:
        pairs = _pairs_in_file(path, parse_line) if parse_line else list(islice(_pairs_of_set(path), MOST_PAIRS))
    except (ValueError, OSError) as error:
        raise ValueError(f"examples: {error}{'' if parse_line else f'; {FORMS}'}") from error
    if not pairs:
        raise ValueError(
            f"examples: {name}: {'holds no pairs' if parse_line else 'no picture has two different captions'}"
        )
    return pairs


def draw_pairs(pairs: Sequence[Pair], count: int, name: str, *, seed: int) -> list[Pair]:
    """Draw `count` different pairs, or all of them in a drawn order where there are no more.

    The result depends only on the pairs, the name and the seed.
    """
    # A Fisher-Yates shuffle of the indices, of which only the entries that have moved are stored.
    moved: dict[int, int] = {}
    result = []
    for i in range(min(count, len(pairs))):
        j = i + name_hash(f"{i}\n{name}", "example", seed=seed) % (len(pairs) - i)
        result.append(pairs[moved.get(j, j)])
        moved[j] = moved.get(i, i)
    return result


def hash_of_pairs(pairs: Sequence[Pair]) -> str:
    """Return the SHA-256 of the texts of the pairs, whatever file they were read from."""
    return hashlib.sha256(json.dumps(pairs, ensure_ascii=False).encode("utf-8", "replace")).hexdigest()


def _has_json_pairs(path: str) -> bool:
    """Return whether a .jsonl file has rows of pairs; if not, its rows are pictures."""
    if not path.endswith(".jsonl") or not entry(path):
        return False
    with open_file(path) as file:
        first_line = file.readline(limits.TEXT)
    return b'"source"' in first_line and b'"target"' in first_line


def _pairs_in_file(path: str, parse_line: Callable[[str], tuple[Any, Any]]) -> list[Pair]:
    pairs, problems = [], []
    for number, line in enumerate(lines_of(readable(read_bytes(path, limits.TEXT), path)), 1):
        if not line.strip():
            continue
        try:
            source, target = parse_line(line)
            if not isinstance(source, str) or not isinstance(target, str) or not source.strip() or not target.strip():
                raise ValueError("a pair is two texts that are not empty")
            pairs.append(Pair(source.strip(), target.strip()))
        except KeyError as error:
            problems.append(f"{path}: line {number}: no {error}")
        except ValueError as error:
            problems.append(f"{path}: line {number}: {error}")
    if problems:
        raise one_error(problems)
    return pairs


def _parse_text(line: str) -> tuple[str, str]:
    source, *targets = line.split(ARROW)
    if len(targets) != 1:
        raise ValueError(f"is not of the form source {ARROW} target")
    return source, targets[0]


def _parse_json(line: str) -> tuple[Any, Any]:
    row = json_object(line)
    return row["source"], row["target"]


def _pairs_of_set(spec: str) -> Iterator[Pair]:
    """Yield any two captions of a picture, in both orders, as LaCLIP takes them from MSCOCO (arXiv 2305.20088)."""
    for shard in read_samples(spec, distinct=False, needs=("captions",), check=False):
        for record in shard:
            texts = (text.strip() for text in record.captions if len(text) <= limits.INSTRUCTION)
            captions = dict.fromkeys(filter(None, texts))
            yield from (Pair(source, target) for source, target in permutations(captions, 2))
