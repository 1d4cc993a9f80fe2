"""Requests to an OpenAI-compatible server: their answers, checked, and another try where that may help."""

import asyncio
import atexit
import contextlib
import json
import math
import os
import random
import threading
import time
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
from pydantic import BaseModel, ValidationError

from captioners.base import Caption

KEY = "OPENAI_API_KEY"
TIMEOUT = aiohttp.ClientTimeout(total=300, sock_connect=30)  # seconds, of one try
RETRIES, FIRST_WAIT, LONGEST_WAIT, LONGEST_RETRY_AFTER = 8, 0.5, 30.0, 600.0  # seconds
REFUSED = (400, 413, 415, 422)


# What servers answer, as far as it is looked at


class Message(BaseModel):
    content: str | None = None


class Token(BaseModel):
    logprob: float


class Logprobs(BaseModel):
    content: list[Token] | None = None


class Choice(BaseModel):
    index: int = 0
    message: Message
    finish_reason: str | None = None
    logprobs: Logprobs | None = None

    def caption(self) -> Caption:
        logprob = sum(token.logprob for token in self.logprobs.content) if self.logprobs and self.logprobs.content else math.nan
        return Caption((self.message.content or "").strip(), logprob if math.isfinite(logprob) else None,
                       self.finish_reason == "length")


class Completion(BaseModel):
    choices: list[Choice]


class Model(BaseModel):
    id: str


class Models(BaseModel):
    data: list[Model]


class Refusal(Exception):
    """What a server says where it will not do what one request asks."""


class Connection:
    """A `with` block of requests to a server, on an event loop in a thread of its own; those in flight at its end are dropped."""

    def __init__(self, url: str):
        self.url = url

    def __enter__(self) -> "Connection":
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._session = self.submit(self._open()).result()
        atexit.register(self.close)  # of iterators that nobody closes: a thread that is at work while Python ends can abort it
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Drops what is in flight and ends the thread; done once."""
        atexit.unregister(self.close)
        if self._loop.is_closed():
            return
        self.submit(self._close()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def submit(self, coroutine: Coroutine) -> Future:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def _open(self) -> aiohttp.ClientSession:
        key = os.environ.get(KEY, "").strip()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        return aiohttp.ClientSession(headers=headers, timeout=TIMEOUT, connector=aiohttp.TCPConnector(limit=0))

    async def _close(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._session.close()

    async def models(self) -> list[str]:
        """The models that the server names, none where it does not; ValueError where it cannot be had."""
        try:
            async with self._session.get(f"{self.url}/models") as response:
                answer = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ValueError(f"model: no server answers at {self.url}: {error or type(error).__name__}") from error
        if response.status in (401, 403):
            raise ValueError(f"model: the server at {self.url} does not take the key in {KEY}: {_told(response.status, answer)}")
        with contextlib.suppress(ValidationError):
            return [model.id for model in Models.model_validate_json(answer).data]
        return []

    async def complete(self, request: Mapping[str, Any]) -> list[Choice]:
        """The captions that come for a request, in their order; it is made again where another try may help.

        Raises Refusal where the server refuses the request or fails at it, ConnectionError where the server is at fault.
        """
        data = json.dumps(request).encode()
        for attempt in range(RETRIES + 1):
            status, told, asked_to_wait = 0, "", 0.0
            try:
                async with self._session.post(f"{self.url}/chat/completions", data=data) as response:
                    status, answer = response.status, await response.read()
            except (aiohttp.ClientError, TimeoutError) as error:
                told = f"{type(error).__name__} {error}".strip()
            else:
                if status == 200:
                    try:
                        return sorted(Completion.model_validate_json(answer).choices, key=lambda choice: choice.index)
                    except ValidationError as error:
                        raise ConnectionError(f"{self.url}: no chat completion came: {_told(status, answer)}") from error
                told, asked_to_wait = _told(status, answer), _retry_after(response.headers.get("Retry-After", ""))
                if status in REFUSED:
                    raise Refusal(told)
                if status < 500 and status not in (408, 425, 429):
                    break
            if attempt < RETRIES:
                await asyncio.sleep(asked_to_wait + random.uniform(0.5, 1) * min(LONGEST_WAIT, FIRST_WAIT * 2**attempt))
        if status == 500:
            raise Refusal(told)
        raise ConnectionError(f"{self.url}: {told}")


def _told(status: int, answer: bytes) -> str:
    """The status and the server's own words, on a line and cut: it may repeat the request, picture and all."""
    text = answer[:10_000].decode("utf-8", "replace")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        said = json.loads(answer)
        said = said.get("error", said)  # OpenAI's form, FastAPI's and others'
        text = said if isinstance(said, str) else str(said.get("message") or said.get("detail") or said)
    text = " ".join(text.split())
    return f"{status} {text[:200]}{'…' if len(text) > 200 else ''}".strip()


def _retry_after(header: str) -> float:
    """Seconds to wait, of a header that has them or a date; 0 where it is neither."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError):
            return 0.0
    return min(LONGEST_RETRY_AFTER, max(0.0, seconds))
