"""How an answer is read: as a text, as its first line, or as JSON whose fields go to columns."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from captioners.replies import CUTS, bare_reply, read_reply
from imagetext import limits
from imagetext.columns import is_tags

_STRING = r'"(?:[^"\\]|\\.?)*+(?:"|\Z)'  # an unfinished one reaches to the end, so that it is looked at once
_BRACKET = re.compile(rf"{_STRING}|[{{}}\[\]]", re.DOTALL)
_LAST_COMMA = re.compile(rf"({_STRING})|,(?=\s*+[}}\]])", re.DOTALL)
_NUMBER = re.compile(r"\A\d{1,3}[.)]\s+")
_BETWEEN_TAGS = re.compile(r"[,;、，；|\n]")

Object = tuple[tuple[str, Any], ...]  # of JSON, with fields that stand twice


@dataclass(frozen=True)
class Answer:
    """What an answer says, for each of its columns ("" where it has but one), and which of `replies.CUTS` were cut off it.

    finished: whether something followed it, so that it is whole even where the length limit ended the answer.
    """

    texts: dict[str, tuple[str, ...]]
    cut: tuple[str, ...] = ()
    finished: bool = False


def read_answer(text: str, answer: Literal["text", "line", "json"], fields: Mapping[str, str]) -> Answer:
    """The answer without what a model wraps round it; `fields`: which of its JSON fields goes to which column.

    A field has a text, or a list of texts; one of a column of tags may have them with commas between, and none is no fault.
    JSON may stand in a fence or among words; where several objects have all the fields and differ, none is taken.

    Raises: ValueError, which says why, where the answer is asked for as JSON and is none that has the fields.
    """
    if answer == "json":
        return _read_json(text, fields)
    reply = read_reply(text, line=answer == "line")
    return Answer({"": (reply.text,)}, reply.cut, finished="rest" in reply.cut)


def _read_json(text: str, fields: Mapping[str, str]) -> Answer:
    if len(text) > limits.TEXT:
        raise ValueError(f"an answer of more than {limits.TEXT:,} characters")
    text, thoughts = bare_reply(text)
    start, end, whole = _only_one(text, fields)
    before, after = (bool(part.strip("`[] \n")) for part in (text[:start].replace("```json", ""), text[end:]))
    cut = {*thoughts, *["fence"] * ("```" in text), *["preamble"] * before, *["rest"] * after}
    texts = {}
    for field, column in fields.items():
        replies = [read_reply(one) for one in _texts(field, whole[field], tags=is_tags(column))]
        cut.update(*(reply.cut for reply in replies))
        reply_texts = [reply.text for reply in replies]
        texts[column] = _tags(reply_texts) if is_tags(column) else tuple(reply_texts)
    return Answer(texts, tuple(name for name in CUTS if name in cut), finished=True)


def _only_one(text: str, fields: Mapping[str, str]) -> tuple[int, int, dict[str, Any]]:
    """Where the one object with all the fields stands, and these; names may have other capitals, and blanks or dashes for `_`."""
    wanted = {_plain(field): field for field in fields}
    whole: list[tuple[int, int, dict[str, Any]]] = []
    problem = "no finished JSON object"
    for start, end, pairs in _objects(text):
        named = [(wanted[name], value) for given, value in pairs if (name := _plain(given)) in wanted]
        values = dict(named)
        twice = sorted({name for name, value in named if value != values[name]})
        missing = [name for name in fields if name not in values]
        if twice or missing:
            problem = f"twice: {', '.join(twice)}" if twice else f"missing: {', '.join(missing)}"
        elif values not in [others for *_, others in whole]:
            whole.append((start, end, values))
    if len(whole) > 1:
        raise ValueError(f"{len(whole)} JSON objects that differ")
    if not whole:
        raise ValueError(problem)
    return whole[0]


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _objects(text: str) -> Iterator[tuple[int, int, Object]]:
    """The JSON objects in a text, with where they start and end; none within others, nor what is unfinished or nested too deep."""
    start = text.find("{")
    while start >= 0 and (end := _end(text, start)) is not None:
        try:
            yield start, end, _loaded(text[start:end])
        except ValueError:
            pass  # braces in the words round it
        start = text.find("{", end)


def _end(text: str, start: int) -> int | None:
    """Where the brace that opens at the start is closed; None where it is not, or is too deep."""
    depth = 0
    for bracket in _BRACKET.finditer(text, start):
        if bracket[0] in "{[":
            depth += 1
            if depth > limits.DEPTH:
                return None
        elif bracket[0] in "}]":
            depth -= 1
            if not depth:
                return bracket.end()
    return None


def _loaded(text: str) -> Object:
    """The object that a text is; line feeds may stand in its strings, and commas after the last of its fields."""
    try:
        return json.loads(text, strict=False, object_pairs_hook=tuple)
    except ValueError:
        return json.loads(_LAST_COMMA.sub(lambda found: found[1] or "", text), strict=False, object_pairs_hook=tuple)


def _texts(field: str, value: Any, *, tags: bool) -> Sequence[str]:
    """The texts of a field; ValueError where it has another type."""
    if isinstance(value, str):
        return _BETWEEN_TAGS.split(value) if tags else [value]
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{field}: expected texts, got {json.dumps(value)[:40]}")
    if not value and not tags:
        raise ValueError(f"{field}: an empty list")
    return value


def _tags(texts: Iterable[str]) -> tuple[str, ...]:
    """The tags, each once, as it was first written."""
    tags: dict[str, str] = {}
    for text in texts:
        if tag := _NUMBER.sub("", text).strip(" .#,"):
            tags.setdefault(tag.casefold(), tag)
    return tuple(tags.values())
