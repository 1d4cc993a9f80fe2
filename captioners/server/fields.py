"""The fields of a request, and what becomes of those that a server does not take."""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from captioners.base import Request, SamplingConfig

INSTRUCTION = "Describe this picture in one sentence."
# tokens, start and end included, where the sampling names none: as of embedded vision-language models
MAX_LENGTH = 257
DEFAULTS = SamplingConfig()
JSON_OBJECT = {"type": "json_object"}
GONE = ""
# What is given up where a server does not take it, in this order, and what stands in its place, in turn: the field by another
# name, with another value, or nothing. An answer in JSON is read without any help, and one is cut at its stops here.
MAY_GO: Mapping[str, Sequence[str | dict]] = {
    "response_format": (JSON_OBJECT, GONE),
    "logprobs": (GONE,),
    "n": (GONE,),
    "max_tokens": ("max_completion_tokens",),
    "stop": (GONE,),
    "seed": (GONE,),
    "top_p": (GONE,),
    "temperature": (GONE,),
}
# those that are tried in turn where a server does not say what it refuses
UNNAMED = ("response_format", "logprobs", "n", "max_tokens", "stop", "seed")
# what servers call a field beside its name
ALSO_CALLED = {"response_format": ("json_schema", "json_object", "schema", "structured", "grammar")}
LOST = {
    "seed": "the same command may draw other captions",
    "top_p": "captions are drawn from all tokens",
    "temperature": "captions are drawn as the model does by itself",
}


@dataclass
class Dialect:
    """Which fields a server takes with a sampling: `instead` has what stands in the place of those it does not, as MAY_GO."""

    instead: dict[str, str | dict] = field(default_factory=dict)

    def spoken(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The request in the server's fields."""
        spoken = {}
        for name, value in request.items():
            instead = self.instead.get(name, name)
            if isinstance(instead, dict):
                spoken[name] = instead
            elif instead != GONE:
                spoken[instead] = value
        return spoken

    def give_up(self, request: Mapping[str, Any], sampling: SamplingConfig, status: int, words: str) -> str | None:
        """The field that the server refuses, as far as that can be told, done without from now on; None where there is none.

        What a sampling asks for is never given up.
        """
        asked = (
            {"temperature"} if sampling.strategy == "greedy" or sampling.temperature != DEFAULTS.temperature else set()
        )
        asked |= {"top_p"} if sampling.top_p != DEFAULTS.top_p else set()
        spoken = self.spoken(request)
        forms = {
            name: self._forms_left(name, request[name]) for name in MAY_GO if name in request and name not in asked
        }
        left = [name for name, values in forms.items() if values]
        named = [name for name in spoken if name not in ("model", "messages") and mentions(words, name)]
        if named:
            given_up = next((name for name in left if name in named), None)
        else:
            unnamed = UNNAMED if status in (400, 422) else ("n",) if status == 200 else ()
            given_up = next((name for name in left if name in unnamed), None)
        if given_up:
            self.instead[given_up] = forms[given_up][0]
        return given_up

    def _forms_left(self, name: str, value: Any) -> Sequence[str | dict]:
        """The forms that may still take the place of a field with this value."""
        now = self.instead.get(name, value)
        return MAY_GO[name][MAY_GO[name].index(now) + 1 :] if now in MAY_GO[name] else MAY_GO[name]


def mentions(words: str, name: str) -> bool:
    names = "|".join((name, *ALSO_CALLED.get(name, ())))
    return re.search(rf"(?<![\w-])({names})(?![\w-])", words) is not None


def fields_of(
    model: str, sampling: SamplingConfig, request: Request, seed: int, more: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields that ask for all captions of a request; what only some servers know is named only where it is asked for.

    `more`: fields that come to it, or go where they are null.
    """
    content: str | list = request.instruction or INSTRUCTION
    if request.picture is not None:
        url = "data:image/jpeg;base64," + base64.b64encode(request.picture.numpy().tobytes()).decode("ascii")
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": content}]
    fields = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": (sampling.max_length or MAX_LENGTH) - 2,
        "temperature": 0.0,
        "logprobs": True,
    }
    if sampling.num_captions > 1:
        fields["n"] = sampling.num_captions
    if sampling.strategy == "sample":
        fields |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": seed}
        if sampling.top_k is not None:
            fields["top_k"] = sampling.top_k
    if sampling.repetition_penalty != DEFAULTS.repetition_penalty:
        fields["repetition_penalty"] = sampling.repetition_penalty
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    if sampling.json_schema:
        schema = {"name": "answer", "strict": True, "schema": json.loads(sampling.json_schema)}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif sampling.answer == "json":
        fields["response_format"] = JSON_OBJECT
    if sampling.min_length > DEFAULTS.min_length:
        fields["min_tokens"] = sampling.min_length - 1
    return {name: value for name, value in (fields | dict(more)).items() if value is not None}
