"""Rows that are conversations about a picture, in the forms of LLaVA, ShareGPT, LLaMA-Factory and The Cauldron.

They have a list of turns in the field `conversations`, `messages` or `texts`. A table may have it in a cell, as JSON
or as Python or NumPy prints it.
"""

import ast
import re
from collections.abc import Mapping
from typing import Any

from imagetext import limits
from imagetext.fields import CAPTION_COLUMNS, captions_in, json_value

CHATS = ("conversations", "messages", "texts")
ASSISTANTS = ("gpt", "assistant", "model", "bot", "chatgpt")
_MARKS = re.compile(r"<image>|<__dj__\w+>|<\|__dj__\w+\|>")  # the last two are those of data-juicer


def answer_in(row: Mapping[str, Any]) -> list[str]:
    """The answer of a conversation, as a list. A conversation of several answers has none that is surely a caption."""
    answers = [answer for name in CHATS for answer in answers_of(row.get(name))]
    return answers if len(answers) == 1 else []


def answer_in_fields(fields: Mapping[str, Any]) -> list[str]:
    """The answer of a conversation in a sample's metadata, as a list, if no field has captions.

    A list of turns may also be all of its `json`, as Megatron's tools write LLaVA's sets.
    """
    if any(captions_in(fields.get(name)) for name in CAPTION_COLUMNS):
        return []
    return answer_in({"messages": fields["json"]} if is_chat(fields.get("json")) else fields)


def answers_of(turns: Any) -> list[str]:
    """All answers in a list of turns; [] for any other value."""
    texts = [
        turn.get("value", turn.get("content")) if _speaker(turn) in ASSISTANTS else turn.get("assistant")
        for turn in _mappings(turns)
    ]
    return [text for text in map(without_marks, map(_text, texts)) if text]


def is_chat(value: Any) -> bool:
    """Whether a value is a list of turns."""
    return any(_speaker(turn) or "assistant" in turn for turn in _mappings(value))


def picture_in(row: Mapping[str, Any]) -> str | None:
    """The picture in a conversation's messages, a path or a data URL; None if there is none, or several."""
    pictures = []
    for turn in (turn for name in CHATS for turn in _mappings(row.get(name))):
        for part in _mappings(turn.get("content")):
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


def _speaker(turn: Mapping[str, Any]) -> Any:
    return turn.get("from") or turn.get("role")


def _mappings(items: Any) -> list[Mapping[str, Any]]:
    """The mappings in a list, which may be written as text; [] for any other value."""
    if isinstance(items, str) and items.startswith("[{"):
        try:
            items = json_value(items)
        except ValueError:
            items = _printed(items)
    return [item for item in items if isinstance(item, Mapping)] if isinstance(items, list) else []


def _printed(text: str) -> Any:
    """The list that Python or NumPy prints as this text; None for any other text.

    NumPy writes no commas between dictionaries.
    """
    if len(text) > limits.PRINTED:
        return None
    try:
        return ast.literal_eval(re.sub(r"\}\s+(?=\{')", "}, ", text))
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # the last two: too deep
        return None


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in _mappings(content) if isinstance(part.get("text"), str))
