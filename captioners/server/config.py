"""The options of a server; this file imports no torch, so that --help is quick."""

import json
import os
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

OURS = ("messages", "model", "n", "stream")  # fields of a request that answers are read by
HEADER = re.compile(r"([A-Za-z0-9-]+):[ \t]*([^\x00-\x1f\x7f]*\S)\s*")
OUR_HEADERS = ("accept-encoding", "content-length", "content-type", "host", "transfer-encoding")
FOR_KEYS = re.compile("authorization|cookie|key|token|secret", re.IGNORECASE)
VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


def _check_header(text: str) -> str:
    match = HEADER.fullmatch(text)
    if not match:
        raise ValueError("is not NAME: VALUE")
    if match[1].lower() in OUR_HEADERS:
        raise ValueError("is for the client to set")
    return text


def _as_text(body: Any) -> Any:
    """A YAML file has the object itself."""
    return json.dumps(body, sort_keys=True) if isinstance(body, dict) else body


def _check_body(text: str) -> str:
    try:
        body = json.loads(text or "{}")
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise ValueError('is no JSON object, such as {"reasoning_effort": "low"}')
    if set_by_us := [name for name in OURS if name in body]:
        raise ValueError(f"sets {', '.join(set_by_us)}, by which answers are read")
    return json.dumps(body, sort_keys=True) if body else ""


class ServerConfig(BaseModel):
    """How a server is asked for captions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    header: list[Annotated[str, AfterValidator(_check_header)]] = Field(
        default=[],
        description="NAME: VALUE, sent to a server with each request; '$NAME' in single quotes is the environment's, so "
        "that no key stands in the command",
    )
    extra_body: Annotated[str, BeforeValidator(_as_text), AfterValidator(_check_body)] = Field(
        default="",
        description="more fields of each request to a server, as a JSON object; null leaves one of ours out",
    )
    requests_per_minute: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="requests to a server at most, of each process"
    )
    max_requests: int | None = Field(
        default=None,
        gt=0,
        description="requests to a server in all, of each process and model: then the "
        "shards that are left fail, and the same command with more of them goes on",
    )

    @property
    def headers(self) -> dict[str, str]:
        """The headers with the environment's values; ValueError names each variable that is not set."""
        missing = [
            name for text in self.header for name in map("".join, VARIABLE.findall(text)) if name not in os.environ
        ]
        if missing:
            raise ValueError(f"header: the environment has no {', '.join(missing)}")
        headers = {}
        for text in self.header:
            if header := HEADER.fullmatch(text):
                headers[header[1]] = VARIABLE.sub(lambda name: os.environ[name[1] or name[2]].strip(), header[2])
        return headers

    @property
    def secrets(self) -> set[str]:
        """Texts that are never shown: all that `headers` take from the environment, and the values of headers that hold keys."""
        values = {os.environ[name].strip() for text in self.header for name in map("".join, VARIABLE.findall(text))}
        for value in (value for name, value in self.headers.items() if FOR_KEYS.search(name)):
            values |= {
                value,
                *re.split(r"[\s;,]+", value),
                *re.findall(r"=([^\s;,]+)", value),
            }  # also without Bearer, session=
        return values - {""}

    @property
    def more_fields(self) -> dict[str, Any]:
        """`extra_body` as fields."""
        return json.loads(self.extra_body or "{}")
