"""The options of a server. This file does not import torch, so that --help is quick."""

import json
import os
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

# Fields that --extra-body must not set, because reading the answers needs their values.
OURS = ("messages", "model", "n", "stream")
HEADER = re.compile(r"([A-Za-z0-9-]+):[ \t]*([^\x00-\x1f\x7f]*\S)\s*")
OUR_HEADERS = ("accept-encoding", "content-length", "content-type", "host", "transfer-encoding")
FOR_KEYS = re.compile("authorization|cookie|key|token|secret", re.IGNORECASE)  # in names of headers with secret values
VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")  # $NAME or ${NAME}


def _check_header(text: str) -> str:
    match = HEADER.fullmatch(text)
    if not match:
        raise ValueError("is not NAME: VALUE")
    if match[1].lower() in OUR_HEADERS:
        raise ValueError("is set by the client itself")
    return text


def _as_text(body: Any) -> Any:
    """The JSON text of an extra_body, which a YAML file may contain as an object."""
    return json.dumps(body, sort_keys=True) if isinstance(body, dict) else body


def _check_body(text: str) -> str:
    try:
        body = json.loads(text or "{}")
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise ValueError('is not a JSON object, such as {"reasoning_effort": "low"}')
    if reserved := [name for name in OURS if name in body]:
        raise ValueError(f"sets {', '.join(reserved)}, which capsmith sets itself to read the answers")
    return json.dumps(body, sort_keys=True) if body else ""


class ServerConfig(BaseModel):
    """The options of requests to a server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    header: list[Annotated[str, AfterValidator(_check_header)]] = Field(
        default=[],
        description="NAME: VALUE, a header of each request to a server; '$NAME' in single quotes stands for a "
        "variable of the environment, so that the command contains no key",
    )
    extra_body: Annotated[str, BeforeValidator(_as_text), AfterValidator(_check_body)] = Field(
        default="",
        description="additional fields of each request to a server, as a JSON object; null omits a field that is "
        "otherwise sent",
    )
    requests_per_minute: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="maximum requests per minute to a server, for each process (default: no limit)",
    )
    max_requests: int | None = Field(
        default=None,
        gt=0,
        description="maximum requests to a server in total, for each process and model (default: no limit); after "
        "them, the remaining shards fail, and the same command with a higher number continues",
    )

    @property
    def headers(self) -> dict[str, str]:
        """The headers, with the values of variables; ValueError names each variable that is not set."""
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
        """Texts that must never be shown: values of variables in headers, and values of headers for keys."""
        values = {os.environ[name].strip() for text in self.header for name in map("".join, VARIABLE.findall(text))}
        for name, value in self.headers.items():
            if FOR_KEYS.search(name):
                # the whole value, and its parts: the key in "Bearer KEY" and in "session=KEY"
                values |= {value, *re.split(r"[\s;,]+", value), *re.findall(r"=([^\s;,]+)", value)}
        return values - {""}

    @property
    def more_fields(self) -> dict[str, Any]:
        """`extra_body` as a dictionary."""
        return json.loads(self.extra_body or "{}")
