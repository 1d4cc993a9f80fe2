"""Read the answers of servers, in all their forms: choices, log-probabilities, errors, waiting times."""

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
LARGEST_LOGPROB = 1e300  # an integer in JSON may be too large for a float
USUAL = ("stop", "length")  # finish reasons that are safe to show
CUT_BY_LENGTH = ("length", "max_tokens", "model_length")  # finish reasons for a caption at the length limit
ERROR_CHARACTERS = 200  # characters of a server's error that are shown
READ_CHARACTERS = 2000  # characters of a server's error that are read
RETRY_IN_WORDS = re.compile(
    r"(?:retry|try again|reset)[^\d]{1,20}(?:(\d{1,3})m)?(\d{1,6}(?:\.\d{1,9})?)\s*(ms|s|sec|seconds?)\b",
    re.IGNORECASE,
)


class Choice(NamedTuple):
    """One of the captions in a server's answer."""

    text: str  # cleaned by `clean_reply`
    logprob: float | None  # None if the server returns none
    reason: str  # why the caption ended
    uncleaned: str = ""  # the reply before cleaning, if cleaning changed it

    @property
    def is_cut(self) -> bool:
        """Whether the length limit ended the caption."""
        return self.reason.lower() in CUT_BY_LENGTH

    def caption(self, sampling: SamplingConfig) -> Caption:
        """The caption up to the sampling's stops.

        For answers that are lines or JSON, the text is not cleaned, because their reader does that.
        """
        reply = self.text if sampling.answer == "text" else self.uncleaned or self.text
        text = up_to_stop(reply, sampling.stop)
        cut = read_reply(self.uncleaned).cut if self.uncleaned and reply != self.uncleaned else ()
        return Caption(text, self.logprob, truncated=self.is_cut and text == reply, cut=cut)


def read_json(body: bytes) -> Any:
    """Parse the JSON of an answer; ValueError if it is not JSON or nested too deeply."""
    try:
        return json.loads(body.decode("utf-8-sig", "replace"))
    except RecursionError:
        raise ValueError("nested too deep") from None


def choices_of(answer: Any) -> list[Choice]:
    """The choices of a chat completion, in the order of their indices if all have one; ValueError if it has none."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
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
    reply = sound(_text(message.get("content"))).strip()
    reason = str(choice.get("finish_reason") or "none")
    reason = reason if reason in USUAL else _shorten(reason, 40)
    text = clean_reply(reply)
    uncleaned = "" if reply == text else reply
    return Choice(text, _logprob(choice.get("logprobs")), reason, uncleaned=uncleaned)


def _text(content: Any) -> str:
    """The text of a message, which may consist of parts; parts with thoughts have no `text`."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _logprob(logprobs: Any) -> float | None:
    """The sum over tokens, in the form of chat completions, older completions or plain lists.

    None if there are none or any is not a number.
    """
    if isinstance(logprobs, dict):
        logprobs = logprobs.get("content") or logprobs.get("token_logprobs")
    if not isinstance(logprobs, list) or not logprobs:
        return None
    values: list[Any] = [token.get("logprob") if isinstance(token, dict) else token for token in logprobs]
    if not all(isinstance(value, (int, float)) and abs(value) < LARGEST_LOGPROB for value in values):
        return None
    return float(sum(values))


def models_of(body: bytes) -> list[str]:
    """The names of the models that an answer lists; [] if it is not a list of models."""
    try:
        answer = read_json(body)
    except ValueError:
        return []
    models = (answer.get("data") or answer.get("models")) if isinstance(answer, dict) else answer
    if not isinstance(models, list):
        return []
    names = [model.get("id") or model.get("name") for model in models if isinstance(model, dict)]
    return [_shorten(name, 100) for name in names if isinstance(name, str)]


# errors


class Error(NamedTuple):
    """A server's error."""

    status: int  # of HTTP
    words: str  # the message
    code: str = ""  # the server's code or type of the error

    def __str__(self) -> str:
        # shortened, because it may repeat the request, with its picture
        return f"{self.status} {reason(self.words[:READ_CHARACTERS], ERROR_CHARACTERS)}".strip()


def error_of(status: int, body: bytes) -> Error:
    """Read an error in the forms of OpenAI, FastAPI and others, nested or plain.

    An error with HTTP status 200 gets the status in its code, if there is one.
    """
    try:
        answer = read_json(body)
    except ValueError:
        return Error(status, _body_as_text(body))
    if isinstance(answer, dict) and isinstance(answer.get("choices"), list):
        errors = [choice["error"] for choice in answer["choices"] if isinstance(choice, dict) and choice.get("error")]
        answer = errors[0] if errors else "no chat completion came"
    error = answer[0] if isinstance(answer, list) and answer else answer
    error = error.get("error") if isinstance(error, dict) and isinstance(error.get("error"), dict) else error
    code = str(error.get("code") or error.get("type") or "") if isinstance(error, dict) else ""
    if status == 200 and re.fullmatch(r"[45]\d\d", code):
        status = int(code)
    return Error(status, find_message(answer) or _body_as_text(body), code)


def find_message(value: Any, depth: int = 6) -> str:
    """The message in an error's JSON, at any place up to this depth."""
    if not depth:
        return ""
    if isinstance(value, str):
        if value.lstrip().startswith(("{", "[")):
            try:
                return find_message(json.loads(value), depth - 1) or value[:READ_CHARACTERS]
            except (ValueError, RecursionError):
                pass
        return value[:READ_CHARACTERS]
    if isinstance(value, list):
        return "; ".join(filter(None, (find_message(part, depth - 1) for part in value[:3])))
    if not isinstance(value, dict):
        return "" if value is None else str(value)[:READ_CHARACTERS]
    message = ""
    for name in ("error", "message", "detail", "msg", "errors"):
        if message := find_message(value.get(name), depth - 1):
            break
    details = ".".join(map(str, value["loc"]))[:ERROR_CHARACTERS] if isinstance(value.get("loc"), list) else ""
    if isinstance(value.get("metadata"), dict):  # the error of another server, to which this one forwards requests
        details = find_message(value["metadata"].get("raw") or value["metadata"].get("reasons"), depth - 1)
    return f"{message} ({details})" if message and details else message


def _body_as_text(body: bytes) -> str:
    """A body that is not JSON, on one line; the title if it is a web page."""
    text = body[:READ_CHARACTERS].decode("utf-8", "replace").strip()
    if text.startswith("<"):
        title = re.search(r"<title[^>]{0,100}>([^<]{1,200})", text, re.IGNORECASE)
        return "a web page came" + (f": {' '.join(title[1].split())}" if title else "")
    return text or "nothing came"


def _shorten(text: str, limit: int) -> str:
    """The text on one line, shortened to a number of characters."""
    text = " ".join(on_line(text[:READ_CHARACTERS]).split())
    return text[:limit] + ("…" if len(text) > limit else "")


def hide(text: str, secrets: Iterable[str]) -> str:
    """Replace the secrets in a text by ***, except those too short to be secrets, such as EMPTY."""
    for secret in secrets:
        if len(secret) >= SECRET_LENGTH:
            text = text.replace(secret, "***")
    return text


def hide_all(text: str, secrets: Iterable[str]) -> str:
    """Replace in an error's text the secrets, and everything that looks like a secret, by ***."""
    # in a server's message, any word of this form may be a key
    return re.sub(r"(?<!\w)sk-[\w*-]{6,}", "***", masked(hide(text, secrets)))


# time


def seconds_to_wait(headers: Mapping[str, str], words: str) -> float:
    """The seconds for which a server wants no requests, from a header or from its message; 0 if it names none."""
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
    if match := RETRY_IN_WORDS.search(words):
        unit = 1e-3 if match[3].lower() == "ms" else 1
        return _bounded((60 * int(match[1] or 0) + float(match[2])) * unit)
    return 0.0


def _bounded(seconds: float) -> float:
    return min(LONGEST_RETRY_AFTER, max(0.0, seconds))
