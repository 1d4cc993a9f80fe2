"""Reads an answer as a text, as one line, or as JSON whose fields go to columns."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from captioners.replies import CUTS, bare_reply, read_reply
from imagetext import limits
from imagetext.columns import is_tags

_STRING = r'"(?:[^"\\]|\\.?)*+(?:"|\Z)'  # an unfinished string reaches to the end, so that no character is read twice
_BRACKET = re.compile(rf"{_STRING}|[{{}}\[\]]", re.DOTALL)
_LAST_COMMA = re.compile(rf"({_STRING})|,(?=\s*+[}}\]])", re.DOTALL)
_NUMBER = re.compile(r"\A\d{1,3}[.)]\s+")
_BETWEEN_TAGS = re.compile(r"[,;、，；|\n]")

Object = tuple[tuple[str, Any], ...]  # a JSON object as (field, value) pairs; a field may occur twice


@dataclass(frozen=True)
class Answer:
    """The texts of an answer, by column ("" where there is only one column).

    cut: which of `replies.CUTS` were removed from the answer.
    finished: whether the texts are whole even if the length limit ended the answer, because something follows them.
    """

    texts: dict[str, tuple[str, ...]]
    cut: tuple[str, ...] = ()
    finished: bool = False


def read_answer(text: str, answer: Literal["text", "line", "json"], fields: Mapping[str, str]) -> Answer:
    """Return the texts of an answer, without what a model wraps round them.

    fields: the column of each field of a JSON answer. A field is a text or a list of texts. For a column of tags, one
    text may hold several tags with commas between them, and an empty list is allowed.
    JSON may be in a code fence or between other words. If several objects have all the fields, they must be equal.

    Raises: ValueError, with the reason, where JSON is expected and the answer has no such object.
    """
    if answer == "json":
        return _read_json(text, fields)
    reply = read_reply(text, line=answer == "line")
    return Answer({"": (reply.text,)}, reply.cut, finished="rest" in reply.cut)


def _read_json(text: str, fields: Mapping[str, str]) -> Answer:
    if len(text) > limits.TEXT:
        raise ValueError(f"an answer of more than {limits.TEXT:,} characters")
    text, thoughts = bare_reply(text)
    start, end, values = _find_object(text, fields)
    around = {
        "fence": "```" in text,
        "preamble": text[:start].replace("```json", "").strip("`[] \n"),
        "rest": text[end:].strip("`[] \n"),
    }
    cut = {*thoughts, *(name for name, is_there in around.items() if is_there)}
    texts = {}
    for field, column in fields.items():
        replies = [read_reply(value) for value in _texts_of_field(field, values[field], tags=is_tags(column))]
        cut.update(*(reply.cut for reply in replies))
        reply_texts = [reply.text for reply in replies]
        texts[column] = _tags(reply_texts) if is_tags(column) else tuple(reply_texts)
    return Answer(texts, tuple(name for name in CUTS if name in cut), finished=True)


def _find_object(text: str, fields: Mapping[str, str]) -> tuple[int, int, dict[str, Any]]:
    """Return start and end of the JSON object that has all the fields, and the values of these fields.

    Names of fields match whatever their capitals, and with blanks or dashes for `_`.
    Raises: ValueError where no object has all the fields, or several objects have them and differ.
    """
    field_of = {_normalized(field): field for field in fields}
    complete: list[tuple[int, int, dict[str, Any]]] = []
    problem = "no finished JSON object"
    for start, end, pairs in _objects(text):
        known_fields = [(field_of[_normalized(name)], value) for name, value in pairs if _normalized(name) in field_of]
        values = dict(known_fields)
        contradicted = sorted({name for name, value in known_fields if value != values[name]})
        missing = [name for name in fields if name not in values]
        if contradicted:
            problem = f"twice: {', '.join(contradicted)}"
        elif missing:
            problem = f"missing: {', '.join(missing)}"
        elif values not in [other_values for *_, other_values in complete]:
            complete.append((start, end, values))
    if len(complete) > 1:
        raise ValueError(f"{len(complete)} JSON objects that differ")
    if not complete:
        raise ValueError(problem)
    return complete[0]


def _normalized(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _objects(text: str) -> Iterator[tuple[int, int, Object]]:
    """Yield the JSON objects in a text, with their start and end.

    Objects within other objects are left out, and so is all from an object on that is unfinished or nested too deep.
    """
    start = text.find("{")
    while start >= 0 and (end := _closing_brace(text, start)) is not None:
        try:
            yield start, end, _parse_object(text[start:end])
        except ValueError:
            pass  # braces between other words
        start = text.find("{", end)


def _closing_brace(text: str, start: int) -> int | None:
    """Return the end of the object whose brace is at `start`; None if it is unfinished or nested too deep."""
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


def _parse_object(text: str) -> Object:
    """Parse a JSON object that may have line feeds in its strings and a comma after its last field."""
    try:
        return json.loads(text, strict=False, object_pairs_hook=tuple)
    except ValueError:
        without_last_commas = _LAST_COMMA.sub(lambda match: match[1] or "", text)
        return json.loads(without_last_commas, strict=False, object_pairs_hook=tuple)


def _texts_of_field(field: str, value: Any, *, tags: bool) -> Sequence[str]:
    """Return the texts of a field. Raises: ValueError where its value is neither a text nor a list of texts."""
    if isinstance(value, str):
        return _BETWEEN_TAGS.split(value) if tags else [value]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{field}: expected texts, got {json.dumps(value)[:40]}")
    if not value and not tags:
        raise ValueError(f"{field}: an empty list")
    return value


def _tags(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the tags, each once, in the capitals of its first occurrence."""
    tags: dict[str, str] = {}
    for text in texts:
        if tag := _NUMBER.sub("", text).strip(" .#,"):
            tags.setdefault(tag.casefold(), tag)
    return tuple(tags.values())
