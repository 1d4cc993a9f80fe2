"""Rows that are conversations about a picture, in the forms of LLaVA, ShareGPT and LLaMA-Factory.

They have a list of turns in the field `conversations` or `messages`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

CHATS = ("conversations", "messages")
ASSISTANTS = ("gpt", "assistant", "model", "bot", "chatgpt")
_MARKS = re.compile(r"<image>|<__dj__\w+>|<\|__dj__\w+\|>")  # the last two are those of data-juicer


def answer_in(row: Mapping[str, Any]) -> list[str]:
    """The answer of a conversation, as a list. A conversation of several answers has none that is surely a caption."""
    answers = [
        text
        for turn in _turns(row)
        if (turn.get("from") or turn.get("role")) in ASSISTANTS
        if (text := without_marks(_text(turn.get("value", turn.get("content")))))
    ]
    return answers if len(answers) == 1 else []


def picture_in(row: Mapping[str, Any]) -> str | None:
    """The picture in a conversation's messages, a path or a data URL; None if there is none, or several."""
    pictures = []
    for turn in _turns(row):
        for part in _parts(turn.get("content")):
            place = part.get("image") or part.get("image_url")
            if part.get("type") == "image":  # as the chat templates of transformers have it
                place = place or part.get("path") or part.get("url")
            place = place.get("url") if isinstance(place, Mapping) else place
            if isinstance(place, str):
                pictures.append(place)
    return pictures[0] if len(pictures) == 1 else None


def without_marks(text: str) -> str:
    """The text without marks that stand for its picture."""
    return _MARKS.sub("", text).strip()


def _turns(row: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for name in CHATS:
        if isinstance(turns := row.get(name), list):
            yield from (turn for turn in turns if isinstance(turn, Mapping))


def _parts(content: Any) -> list[Mapping[str, Any]]:
    return [part for part in content if isinstance(part, Mapping)] if isinstance(content, list) else []


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in _parts(content) if isinstance(part.get("text"), str))
