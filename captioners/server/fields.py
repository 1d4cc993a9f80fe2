"""The fields of a request, and what becomes of those that a server does not take."""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from captioners.base import Request, SamplingConfig

INSTRUCTION = "Describe this picture in one sentence."
MAX_LENGTH = (
    257  # tokens, start and end included, where the sampling names none: as of embedded vision-language models
)
DEFAULTS = SamplingConfig()
# What is given up where a server does not take it, in this order, and what stands in its place.
MAY_GO = {"logprobs": "", "n": "", "max_tokens": "max_completion_tokens", "seed": "", "top_p": "", "temperature": ""}
UNNAMED = (
    "logprobs",
    "n",
    "max_tokens",
    "seed",
)  # those that are tried in turn where a server does not say what it refuses
LOST = {
    "seed": "the same command may draw other captions",
    "top_p": "captions are drawn from all tokens",
    "temperature": "captions are drawn as the model does by itself",
}


@dataclass
class Dialect:
    """Which fields a server takes with a sampling: `instead` has another name for those it does not, "" where it has none."""

    instead: dict[str, str] = field(default_factory=dict)

    def spoken(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The request in the server's fields."""
        return {self.instead.get(name, name): value for name, value in request.items() if self.instead.get(name, name)}

    def give_up(self, request: Mapping[str, Any], sampling: SamplingConfig, status: int, words: str) -> str | None:
        """The field that the server refuses, as far as that can be told, done without from now on; None where there is none.

        What a sampling asks for is never given up.
        """
        asked = (
            {"temperature"} if sampling.strategy == "greedy" or sampling.temperature != DEFAULTS.temperature else set()
        )
        asked |= {"top_p"} if sampling.top_p != DEFAULTS.top_p else set()
        left = [name for name in MAY_GO if name in request and name not in self.instead and name not in asked]
        named = [name for name in self.spoken(request) if name not in ("model", "messages") and mentions(words, name)]
        if named:
            found = next((name for name in left if name in named), None)
        else:
            unnamed = UNNAMED if status in (400, 422) else ("n",) if status == 200 else ()
            found = next((name for name in left if name in unnamed), None)
        if found:
            self.instead[found] = MAY_GO[found]
        return found


def mentions(words: str, name: str) -> bool:
    return re.search(rf"(?<![\w-]){name}(?![\w-])", words) is not None


def fields_of(
    model: str, sampling: SamplingConfig, request: Request, seed: int, more: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields that ask for all captions of a request; what only some servers know is named only where it is asked for.

    `more`: fields that come to it, or go where they are null.
    """
    content: str | list = request.instruction or sampling.prompt or INSTRUCTION
    if request.picture is not None:
        url = "data:image/jpeg;base64," + base64.b64encode(request.picture.numpy()).decode("ascii")
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
    if sampling.min_length > DEFAULTS.min_length:
        fields["min_tokens"] = sampling.min_length - 1
    return {name: value for name, value in (fields | dict(more)).items() if value is not None}
