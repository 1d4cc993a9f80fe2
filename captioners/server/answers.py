"""Answers of servers, in their many forms: choices, log-probabilities, errors, times to wait."""

import json
import re
import time
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from captioners.base import Caption, SamplingConfig, up_to_stop
from captioners.replies import clean_reply, read_reply, sound
from imagetext.shown import SECRET_LENGTH, masked, on_line, reason

LONGEST_RETRY_AFTER = 600.0  # seconds
LARGEST_LOGPROB = 1e300  # integers in JSON may be longer than any float
USUAL = ("stop", "length")  # reasons to end, which need no look at what they may hold
CUT_BY_LENGTH = ("length", "max_tokens", "model_length")
SHOWN, LOOKED_AT = 200, 2000  # characters of what a server says
PATIENCE = re.compile(
    r"(?:retry|try again|reset)[^\d]{1,20}(?:(\d{1,3})m)?(\d{1,6}(?:\.\d{1,9})?)\s*(ms|s|sec|seconds?)\b",
    re.IGNORECASE,
)


class Choice(NamedTuple):
    """A caption as a server gave it: cleaned, its log-probability where known, why it ended, and all that was said, where more."""

    text: str
    logprob: float | None
    reason: str
    whole: str = ""

    @property
    def is_cut(self) -> bool:
        return self.reason.lower() in CUT_BY_LENGTH

    def caption(self, sampling: SamplingConfig) -> Caption:
        """The caption up to the sampling's stops; lines and JSON are as they came, for a reader that knows what was asked."""
        said = self.text if sampling.answer == "text" else self.whole or self.text
        text = up_to_stop(said, sampling.stop)
        cut = read_reply(self.whole).cut if self.whole and said != self.whole else ()
        return Caption(text, self.logprob, self.is_cut and text == said, cut=cut)


def read_json(body: bytes) -> Any:
    """The JSON of an answer; ValueError where it is none, or none that anybody needs."""
    try:
        return json.loads(body.decode("utf-8-sig", "replace"))
    except RecursionError:
        raise ValueError("nested too deep") from None


def choices_of(said: Any) -> list[Choice]:
    """The choices of a chat completion, in the order of their index where all have one; ValueError where it has none."""
    choices = said.get("choices") if isinstance(said, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise ValueError("no chat completion")
    if any(choice.get("error") for choice in choices):
        raise ValueError("a choice is an error")
    indices = [choice.get("index") for choice in choices]
    if all(type(index) is int for index in indices):
        choices = sorted(choices, key=lambda choice: choice["index"])
    return [_choice(choice) for choice in choices]


def _choice(choice: Mapping[str, Any]) -> Choice:
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    whole = sound(_text(message.get("content"))).strip()
    reason = str(choice.get("finish_reason") or "none")
    reason = reason if reason in USUAL else _shown(reason, 40)
    text = clean_reply(whole)
    return Choice(text, _logprob(choice.get("logprobs")), reason, "" if whole == text else whole)


def _text(content: Any) -> str:
    """The words of a message, which may stand in parts; its thoughts are other parts."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _logprob(logprobs: Any) -> float | None:
    """The sum over tokens, as chat completions, older completions or bare lists have them; None where any is no number."""
    if isinstance(logprobs, dict):
        logprobs = logprobs.get("content") or logprobs.get("token_logprobs")
    if not isinstance(logprobs, list) or not logprobs:
        return None
    values: list[Any] = [token.get("logprob") if isinstance(token, dict) else token for token in logprobs]
    if not all(isinstance(value, (int, float)) and abs(value) < LARGEST_LOGPROB for value in values):
        return None
    return float(sum(values))


def models_of(body: bytes) -> list[str]:
    """The models that an answer lists, none where it is no list of models."""
    try:
        said = read_json(body)
    except ValueError:
        return []
    listed = (said.get("data") or said.get("models")) if isinstance(said, dict) else said
    if not isinstance(listed, list):
        return []
    names = [model.get("id") or model.get("name") for model in listed if isinstance(model, dict)]
    return [_shown(name, 100) for name in names if isinstance(name, str)]


# errors


class Error(NamedTuple):
    """A server's error; `code`: its own word for it."""

    status: int
    words: str
    code: str = ""

    def __str__(self) -> str:
        # it may repeat the request, picture and all
        return f"{self.status} {reason(self.words[:LOOKED_AT], SHOWN)}".strip()


def error_of(status: int, body: bytes) -> Error:
    """An error in the forms of OpenAI, FastAPI and others, nested or plain; one under 200 has the status that it names."""
    try:
        said = read_json(body)
    except ValueError:
        return Error(status, _plain(body))
    if isinstance(said, dict) and isinstance(said.get("choices"), list):
        errors = [choice["error"] for choice in said["choices"] if isinstance(choice, dict) and choice.get("error")]
        said = errors[0] if errors else "no chat completion came"
    error = said[0] if isinstance(said, list) and said else said
    error = error.get("error") if isinstance(error, dict) and isinstance(error.get("error"), dict) else error
    code = str(error.get("code") or error.get("type") or "") if isinstance(error, dict) else ""
    if status == 200 and re.fullmatch(r"[45]\d\d", code):
        status = int(code)
    return Error(status, in_words(said) or _plain(body), code)


def in_words(said: Any, depth: int = 6) -> str:
    """The message in an error's body, wherever it stands."""
    if not depth:
        return ""
    if isinstance(said, str):
        if said.lstrip().startswith(("{", "[")):
            try:
                return in_words(json.loads(said), depth - 1) or said[:LOOKED_AT]
            except (ValueError, RecursionError):
                pass
        return said[:LOOKED_AT]
    if isinstance(said, list):
        return "; ".join(filter(None, (in_words(part, depth - 1) for part in said[:3])))
    if not isinstance(said, dict):
        return "" if said is None else str(said)[:LOOKED_AT]
    message = next(
        (
            words
            for name in ("error", "message", "detail", "msg", "errors")
            if (words := in_words(said.get(name), depth - 1))
        ),
        "",
    )
    where = ".".join(map(str, said["loc"]))[:SHOWN] if isinstance(said.get("loc"), list) else ""
    if isinstance(said.get("metadata"), dict):  # what another server said, behind this one
        where = in_words(said["metadata"].get("raw") or said["metadata"].get("reasons"), depth - 1)
    return f"{message} ({where})" if message and where else message


def _plain(body: bytes) -> str:
    """A body that is no JSON, in a line; of a page its title."""
    text = body[:LOOKED_AT].decode("utf-8", "replace").strip()
    if text.startswith("<"):
        title = re.search(r"<title[^>]{0,100}>([^<]{1,200})", text, re.IGNORECASE)
        return "a web page came" + (f": {' '.join(title[1].split())}" if title else "")
    return text or "nothing came"


def _shown(text: str, most: int) -> str:
    """The text on a line, cut."""
    text = " ".join(on_line(text[:LOOKED_AT]).split())
    return text[:most] + ("…" if len(text) > most else "")


def hide(text: str, secrets: Iterable[str]) -> str:
    """The text without the secrets; a word too short to be one, such as EMPTY, stays."""
    for secret in secrets:
        if len(secret) >= SECRET_LENGTH:
            text = text.replace(secret, "***")
    return text


def hide_all(text: str, secrets: Iterable[str]) -> str:
    """An error's text without the secrets, and without what looks like one of somebody else's."""
    # in a server's words, any such word may be a key
    return re.sub(r"(?<!\w)sk-[\w*-]{6,}", "***", masked(hide(text, secrets)))


# time


def seconds_to_wait(headers: Mapping[str, str], words: str) -> float:
    """Seconds that a server asks to be left alone, by a header, which may have a date, or in words; 0 where it does not."""
    header = headers.get("Retry-After", "")
    for value, unit in ((headers.get("retry-after-ms", ""), 1e-3), (header, 1.0)):
        try:
            return _bounded(float(value) * unit)
        except ValueError:
            pass
    try:
        return _bounded(parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError):
        pass
    if match := PATIENCE.search(words):
        return _bounded((60 * int(match[1] or 0) + float(match[2])) * (1e-3 if match[3].lower() == "ms" else 1))
    return 0.0


def _bounded(seconds: float) -> float:
    return min(LONGEST_RETRY_AFTER, max(0.0, seconds))
