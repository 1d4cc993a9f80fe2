"""The fields of a request to a server, and the replacements of fields that the server does not support."""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from captioners.base import Request, SamplingConfig

INSTRUCTION = "Describe this picture in one sentence."
# Maximum tokens, start and end included, if the sampling sets no max_length; as for local vision-language models.
MAX_LENGTH = 257
DEFAULTS = SamplingConfig()
JSON_OBJECT = {"type": "json_object"}
GONE = ""  # the replacement of a field that is not sent
# Fields that are replaced if a server does not support them, in the order in which this is tried, and their
# replacements in turn: another name, another value, or nothing. Without response_format and stop, answers are still
# read as JSON and cut at stops, by the client.
REPLACEMENTS: Mapping[str, Sequence[str | dict]] = {
    "response_format": (JSON_OBJECT, GONE),
    "logprobs": (GONE,),
    "n": (GONE,),
    "max_tokens": ("max_completion_tokens",),
    "stop": (GONE,),
    "seed": (GONE,),
    "top_p": (GONE,),
    "temperature": (GONE,),
}
# The fields that are replaced in turn if a server does not say which one it refuses.
UNNAMED = ("response_format", "logprobs", "n", "max_tokens", "stop", "seed")
# Other words by which servers refer to a field.
ALSO_CALLED = {"response_format": ("json_schema", "json_object", "schema", "structured", "grammar")}
# What it means if a field is not sent, for warnings.
LOST = {
    "seed": "the same command may draw other captions",
    "top_p": "captions are sampled from all tokens",
    "temperature": "captions are sampled with the model's default temperature",
}


@dataclass
class Dialect:
    """The fields that a server supports with a sampling. `replaced` maps each unsupported field to its replacement."""

    replaced: dict[str, str | dict] = field(default_factory=dict)

    def translate(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The request with unsupported fields replaced."""
        translated = {}
        for name, value in request.items():
            replacement = self.replaced.get(name, name)
            if isinstance(replacement, dict):
                translated[name] = replacement
            elif replacement != GONE:
                translated[replacement] = value
        return translated

    def give_up(self, request: Mapping[str, Any], sampling: SamplingConfig, *, status: int, words: str) -> str | None:
        """Replace the field that the server seems to refuse, from now on; return its name, or None if there is none.

        Options that the sampling sets explicitly are never given up.
        status, words: of the server's error.
        """
        explicit = set()
        if sampling.strategy == "greedy" or sampling.temperature != DEFAULTS.temperature:
            explicit.add("temperature")
        if sampling.top_p != DEFAULTS.top_p:
            explicit.add("top_p")
        candidates = {}  # field -> replacements that are left
        for name in REPLACEMENTS:
            if name in request and name not in explicit:
                if remaining := self._remaining(name, request[name]):
                    candidates[name] = remaining
        translated = self.translate(request)
        named = [name for name in translated if name not in ("model", "messages") and mentions(words, name)]
        if named:
            possible = named
        elif status in (400, 422):
            possible = UNNAMED
        else:
            possible = ("n",) if status == 200 else ()
        given_up = next((name for name in candidates if name in possible), None)
        if given_up:
            self.replaced[given_up] = candidates[given_up][0]
        return given_up

    def _remaining(self, name: str, value: Any) -> Sequence[str | dict]:
        """The replacements of a field with this value that have not been tried."""
        replacements = REPLACEMENTS[name]
        present = self.replaced.get(name, value)
        return replacements[replacements.index(present) + 1 :] if present in replacements else replacements


def mentions(words: str, name: str) -> bool:
    """Whether a server's error mentions a field."""
    names = "|".join((name, *ALSO_CALLED.get(name, ())))
    return re.search(rf"(?<![\w-])({names})(?![\w-])", words) is not None


def fields_of(
    model: str, sampling: SamplingConfig, request: Request, *, seed: int, more: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields of a request for all captions. Fields that only some servers know are sent only if they are needed.

    more: additional fields; null removes a field.
    """
    content: str | list = request.instruction or INSTRUCTION
    if sampling.answer == "json" and "json" not in content.lower():
        content += "\nAnswer in JSON."  # without the word, OpenAI, DeepSeek and others refuse json_object
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
