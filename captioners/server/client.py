"""Send requests to an OpenAI-compatible server, check the answers within bounds, and retry if that may help."""

import asyncio
import atexit
import json
import os
import re
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from captioners.server import load
from captioners.server.address import Address
from captioners.server.answers import (
    Choice,
    Error,
    choices_of,
    error_of,
    hide,
    hide_all,
    models_of,
    read_json,
    seconds_to_wait,
)
from captioners.server.config import ServerConfig

KEY = "OPENAI_API_KEY"
HAS_KEY = re.compile("authorization|(.*-)?api-key", re.IGNORECASE)  # headers that replace the key of OPENAI_API_KEY
CONNECT = 30  # seconds
LONGEST_ANSWER = 8 << 20  # bytes, enough for a hundred captions with the log-probabilities of their tokens
# HTTP statuses of a busy server; a picture is never the reason.
BUSY = (425, 429, 503, 529)
# HTTP statuses of an answer that took too long.
LATE = (408, 504, 522, 524)
# Error codes with status 429 for which waiting is useless.
SPENT = ("insufficient_quota", "billing_not_active", "billing_hard_limit_reached")
# Words with status 429 about a request that alone exceeds a limit per minute, so that waiting is useless.
TOO_LARGE = re.compile("request too large", re.IGNORECASE)
# How often a request is repeated, by the kind of trouble: the server is busy or cannot be reached; the connection or
# the server breaks; no answer comes in time; the answer has no captions; the server refuses the request.
RETRIES = {"busy": 8, "broken": 8, "late": 2, "odd": 2, "refused": 0}
# The same for a probe, which finds out what the server supports.
FEW_RETRIES = {"busy": 8, "broken": 2, "late": 0, "odd": 0, "refused": 0}


class Refusal(Exception):
    """A request was not served, even after retries.

    status, words: of the server's error; status 0 if no answer came.
    """

    def __init__(self, message: str, status: int, words: str = ""):
        super().__init__(message)
        self.status, self.words = status, words


class Response(NamedTuple):
    """A server's answer to an HTTP request."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    is_complete: bool = True  # False if it was cut at LONGEST_ANSWER


class Trouble(NamedTuple):
    """Why a request was not served."""

    kind: str  # a key of RETRIES
    error: Error
    retry_after: float = 0.0  # seconds for which the server wants no requests


class Connection:
    """A `with` block of requests to a server, on an event loop in its own thread; nested blocks share it.

    Redirects are not followed, so that neither key nor pictures go to another host.

    made: number of requests sent. prompt_tokens: those of the last answered request, 0 if the server does not tell.
    """

    def __init__(self, address: Address, config: ServerConfig = ServerConfig()):
        self.address, self.config = address, config
        self.load = load.Load(address.base, config.requests_per_minute)
        self.made = self.prompt_tokens = self._users = 0
        key, headers = os.environ.get(KEY, "").strip(), config.headers
        self.sends_key = bool(key) and not any(HAS_KEY.fullmatch(name) for name in headers)
        self.headers = {
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
            **({"Authorization": f"Bearer {key}"} if self.sends_key else {}),
            **headers,
        }
        self.secrets = sorted({key, *config.secrets} - {""}, key=len, reverse=True)

    def __enter__(self) -> "Connection":
        if not self._users:
            self.loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
            self._thread.start()
            self.submit(self._open()).result()
            # for iterators that are never closed: a thread that works while Python exits can make it abort
            atexit.register(self._end)
        self._users += 1
        self.load.fault = None
        return self

    def __exit__(self, *_: object) -> None:
        self._users -= 1
        if not self._users:
            self._end()

    def _end(self) -> None:
        """Cancel all requests and end the thread; further calls do nothing."""
        atexit.unregister(self._end)
        if self.loop.is_closed():
            return
        self.submit(self._close()).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def submit(self, coroutine: Coroutine) -> Future:
        """Run a coroutine on the event loop; return the future of its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    async def _open(self) -> None:
        self.load.open()
        self._proxy = proxy_of(self.address)
        self.check_lock = asyncio.Lock()  # so that one probe at a time checks whether the server works
        self._session = aiohttp.ClientSession(
            headers=self.headers,
            timeout=aiohttp.ClientTimeout(None, sock_connect=CONNECT),
            connector=aiohttp.TCPConnector(limit=0),
            auto_decompress=False,
        )

    async def _close(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._session.close()

    async def send(self, method: str, path: str, data: bytes | None = None) -> Response:
        """Send one request; read at most LONGEST_ANSWER bytes of the answer."""
        async with self._session.request(
            method, self.address.url(path), data=data, allow_redirects=False, proxy=self._proxy
        ) as response:
            body = bytearray()
            async for piece in response.content.iter_chunked(1 << 16):
                body += piece
                if len(body) > LONGEST_ANSWER:
                    response.close()
                    cut = bytes(body[:LONGEST_ANSWER])
                    return Response(response.status, response.headers, cut, is_complete=False)
            return Response(response.status, response.headers, bytes(body))

    async def models(self) -> list[str]:
        """The models that the server lists; [] if it lists none.

        Raises ValueError if the server cannot be reached or refuses the key.
        """
        try:
            async with asyncio.timeout(CONNECT):
                response = await self.send("GET", "models")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            message = self._hide_secrets(str(error) or type(error).__name__)
            raise ValueError(f"model: no server answers at {self.address.base}: {message}") from None
        error = self._error(response)
        if response.status == 401:  # not 403: a key that may not list models may still be valid for captions
            raise ValueError(f"model: {self.about_the_key(error)}")
        if 300 <= response.status < 400:
            raise ValueError(f"model: {self._redirect_problem(response)}")
        return [self._hide_secrets(name) for name in models_of(response.body)] if response.status == 200 else []

    def about_the_key(self, error: object) -> str:
        """The message about the key, for a server that answers with status 401 or 403."""
        if not self.secrets:
            return (
                f"the server at {self.address.base} asks for a key, and there is none: set {KEY}, or give a --header:"
                f" {error}"
            )
        credentials = f"the key in {KEY}" if self.sends_key else "the headers given"
        return f"the server at {self.address.base} does not take {credentials}: {error}"

    async def complete(self, request: Mapping[str, Any], retries: Mapping[str, int] = RETRIES) -> list[Choice]:
        """Send a request, with retries if they may help; return its captions, in the server's order.

        If no text comes in any try, the captions are empty.
        Raises Refusal if the server does not serve the request, through the server's fault or the request's.
        Raises ConnectionError if it is certainly the server's fault, or --max-requests have been made.
        """
        data, failed, sent_before = json.dumps(request).encode(), 0, float("inf")
        while True:
            choices, trouble, sent = await self._try(data, request.get("n", 1), urgent=retries is FEW_RETRIES)
            if trouble is None:
                return choices
            if trouble.kind == "busy" and self.load.answered_at > sent_before:
                failed = 0  # the server answers other requests meanwhile, so it will answer this one
            sent_before = sent
            if failed >= retries[trouble.kind] or trouble.kind == "late" and self.load.is_silent:
                break
            if trouble.kind != "busy":
                await self._wait(trouble, failed)
            failed += 1
        if choices:
            return choices
        if trouble.kind == "busy":
            raise self.give_up(str(trouble.error))
        raise Refusal(str(trouble.error), trouble.error.status, trouble.error.words)

    def give_up(self, why: str, kind: type[load.Fault] = load.Fault) -> load.Fault:
        """Make all further requests in the open blocks fail for this reason; return the error to raise."""
        self.load.fault = kind(f"{self.address.base}: {why}")
        return self.load.fault.copy()

    async def _try(self, data: bytes, expected: int, urgent: bool) -> tuple[list[Choice], Trouble | None, float]:
        """Send a request once; return its choices, the trouble, and the time at which it was sent.

        Choices without any text are returned with a trouble, too.
        """
        choices: list[Choice] = []
        try:
            async with self.load.request(urgent) as active:
                self._count()
                response = await self.send("POST", "chat/completions", data)
        except load.Fault:
            raise
        except aiohttp.ClientConnectorError as error:
            trouble = Trouble("busy", self._failure(error))
        except TimeoutError:
            trouble = Trouble("late", Error(0, f"no answer in {load.TIMEOUT:.0f} s"))
        except (aiohttp.ClientError, OSError) as error:
            trouble = Trouble("broken", self._failure(error))
        else:
            choices, trouble = self._read(response, expected)
        if trouble is None:
            self.load.record_answer()
        elif trouble.kind in ("busy", "late") or trouble.error.status in LATE:
            self.load.record_overload(
                active,
                str(trouble.error),
                retry_after=trouble.retry_after,
                is_rate_limited=trouble.error.status == 429,
            )
        return choices, trouble, active.began

    def _read(self, response: Response, expected: int) -> tuple[list[Choice], Trouble | None]:
        """The choices of an answer, and what is wrong with it.

        expected: number of choices.
        """
        if response.status == 200 and response.is_complete:
            try:
                answer = read_json(response.body)
                choices = [self._without_secrets(choice) for choice in choices_of(answer)][:expected]
            except ValueError:
                pass  # it may be an error, with a status in its body
            else:
                self._record_prompt_tokens(answer)
                if len(choices) < expected:
                    return [], Trouble("odd", Error(200, f"{len(choices)} captions came for {expected}"))
                if not any(choice.text for choice in choices):
                    return choices, Trouble("odd", Error(200, f"no text came, finish_reason {choices[0].reason!r}"))
                return choices, None
        if not response.is_complete:
            error = Error(response.status, f"the answer is longer than {LONGEST_ANSWER >> 20} MB")
            return [], Trouble("odd", error)
        if 300 <= response.status < 400:
            return [], Trouble("refused", Error(response.status, self._redirect_problem(response)))
        error = self._error(response)
        retry_after = seconds_to_wait(response.headers, response.body[:10_000].decode("utf-8", "replace"))
        if error.status in BUSY and error.code not in SPENT and not TOO_LARGE.search(error.words):
            return [], Trouble("busy", error, retry_after)
        if error.status >= 500 or error.status in LATE:
            return [], Trouble("broken", error, retry_after)
        return [], Trouble("odd" if error.status == 200 else "refused", error)

    async def _wait(self, trouble: Trouble, failed: int) -> None:
        """Wait before a request is repeated; other requests wait, too, only if the server asks for a pause."""
        if trouble.retry_after:
            self.load.pause(str(trouble.error), 0, retry_after=trouble.retry_after)
            return
        wait = load.wait_of(failed)
        self.load.log_wait(str(trouble.error), wait)
        await asyncio.sleep(wait)

    def _count(self) -> None:
        """Count a request; raise Spent if --max-requests have been made."""
        limit = self.config.max_requests
        if limit is not None and self.made >= limit:
            raise self.give_up(
                f"--max-requests {limit:,}: all are made; the same command with a higher number continues", load.Spent
            )
        self.made += 1

    def _record_prompt_tokens(self, answer: Mapping[str, Any]) -> None:
        usage = answer.get("usage")
        if isinstance(usage, dict):
            count = usage.get("prompt_tokens")
            self.prompt_tokens = count if isinstance(count, int) else 0

    def _error(self, response: Response) -> Error:
        error = error_of(response.status, response.body)
        return error._replace(words=self._hide_secrets(error.words))

    def _failure(self, error: BaseException) -> Error:
        return Error(0, self._hide_secrets(f"{type(error).__name__} {error}".strip()))

    def _without_secrets(self, choice: Choice) -> Choice:
        return choice._replace(text=hide(choice.text, self.secrets), uncleaned=hide(choice.uncleaned, self.secrets))

    def _hide_secrets(self, text: str) -> str:
        return hide_all(text, self.secrets)

    def _redirect_problem(self, response: Response) -> str:
        """The message about a redirect, which names the other host only."""
        try:
            target = urlsplit(urljoin(self.address.base, response.headers.get("Location", "")))
            host = f"{target.scheme}://{target.hostname}"
        except ValueError:
            return f"{self.address.base} redirects requests to an address that cannot be read"
        return f"{self.address.base} redirects requests to {host}, to which no key is sent: use that address instead"


def proxy_of(address: Address) -> str | None:
    """The proxy that the environment names for the server; None for a server on this machine."""
    parts = urlsplit(address.base)
    proxies = {} if address.is_local or proxy_bypass(parts.netloc) else getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")
