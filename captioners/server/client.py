"""Requests to an OpenAI-compatible server: their answers, bounded and checked, and another try where that may help."""

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
HAS_KEY = re.compile("authorization|(.*-)?api-key", re.IGNORECASE)  # headers in whose place ours would go
CONNECT = 30  # seconds
LONGEST_ANSWER = 8 << 20  # bytes; a hundred captions with the log-probabilities of their tokens
BUSY = (425, 429, 503, 529)  # never a picture's fault
LATE = (408, 504, 522, 524)  # as a time-out
SPENT = ("insufficient_quota", "billing_not_active", "billing_hard_limit_reached")  # of a 429 that no waiting ends
# How often a request is made again: where the server is busy or away, breaks, is not heard of, answers nothing, or refuses.
RETRIES = {"busy": 8, "broken": 8, "late": 2, "odd": 2, "refused": 0}
FEW_RETRIES = {
    "busy": 8,
    "broken": 2,
    "late": 0,
    "odd": 0,
    "refused": 0,
}  # of a blank picture, which asks what the server does


class Refusal(Exception):
    """A request was not served, however often it was made; with the words of the server. `status` 0: it said nothing."""

    def __init__(self, told: str, status: int, words: str = ""):
        super().__init__(told)
        self.status, self.words = status, words


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes
    whole: bool = True  # not cut at LONGEST_ANSWER


class Trouble(NamedTuple):
    """Why a request is not served: its kind, as in RETRIES, in words, and how long the server wants to be left alone."""

    kind: str
    error: Error
    asked: float = 0.0


class Connection:
    """A `with` block of requests to a server, on an event loop in a thread of its own; blocks within others share it.

    Redirects are not followed, so that neither key nor pictures go to another host. `usage`: tokens of the last answer.
    """

    def __init__(self, address: Address, config: ServerConfig = ServerConfig()):
        self.address, self.config = address, config
        self.load = load.Load(address.base, config.requests_per_minute)
        self.made, self.usage, self._users = 0, (0, 0), 0
        key, given = os.environ.get(KEY, "").strip(), config.headers
        self.sends_key = bool(key) and not any(HAS_KEY.fullmatch(name) for name in given)
        self.headers = {
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
            **({"Authorization": f"Bearer {key}"} if self.sends_key else {}),
            **given,
        }
        self.secrets = sorted({key, *config.secrets} - {""}, key=len, reverse=True)

    def __enter__(self) -> "Connection":
        if not self._users:
            self.loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
            self._thread.start()
            self.submit(self._open()).result()
            # of iterators that nobody closes: a thread at work while Python ends can abort it
            atexit.register(self._end)
        self._users += 1
        self.load.fault = None
        return self

    def __exit__(self, *_: object) -> None:
        self._users -= 1
        if not self._users:
            self._end()

    def _end(self) -> None:
        """Drops what is in flight and ends the thread; done once."""
        atexit.unregister(self._end)
        if self.loop.is_closed():
            return
        self.submit(self._close()).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def submit(self, coroutine: Coroutine) -> Future:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    async def _open(self) -> None:
        self.load.open()
        self._proxy = proxy_of(self.address)
        self.one_check = asyncio.Lock()  # of what a blank picture gets
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

    async def send(self, method: str, path: str, data: bytes | None = None) -> Reply:
        """One request, and at most LONGEST_ANSWER bytes of what comes."""
        async with self._session.request(
            method, self.address.of(path), data=data, allow_redirects=False, proxy=self._proxy
        ) as response:
            body = bytearray()
            async for piece in response.content.iter_chunked(1 << 16):
                body += piece
                if len(body) > LONGEST_ANSWER:
                    response.close()
                    return Reply(response.status, response.headers, bytes(body[:LONGEST_ANSWER]), False)
            return Reply(response.status, response.headers, bytes(body))

    async def models(self) -> list[str]:
        """The models that the server names, none where it does not; ValueError where it cannot be had."""
        try:
            async with asyncio.timeout(CONNECT):
                reply = await self.send("GET", "models")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            told = self._hidden(str(error) or type(error).__name__)
            raise ValueError(f"model: no server answers at {self.address.base}: {told}") from None
        error = self._error(reply)
        if reply.status == 401:  # a key may be good for captions, and forbidden to list models: 403
            raise ValueError(f"model: {self.about_the_key(error)}")
        if 300 <= reply.status < 400:
            raise ValueError(f"model: {self._redirected(reply)}")
        return [self._hidden(name) for name in models_of(reply.body)] if reply.status == 200 else []

    def about_the_key(self, error: object) -> str:
        """The problem of the key, where the server answers 401 or 403."""
        ours = f"the key in {KEY}" if self.sends_key else "the headers given"
        if not self.secrets:
            return f"the server at {self.address.base} asks for a key, and there is none: set {KEY}, or give a --header: {error}"
        return f"the server at {self.address.base} does not take {ours}: {error}"

    async def complete(self, request: Mapping[str, Any], retries: Mapping[str, int] = RETRIES) -> list[Choice]:
        """The captions that come for a request, in their order; it is made again where another try may help.

        Where no text comes however often, they have none. Raises Refusal where the server does not serve the request, whether
        the fault is the server's or the picture's, ConnectionError where it surely is the server's, or --max-requests are made.
        """
        data, failed, before = json.dumps(request).encode(), 0, float("inf")
        while True:
            choices, trouble, sent = await self._try(data, request.get("n", 1), urgent=retries is FEW_RETRIES)
            if trouble is None:
                return choices
            if trouble.kind == "busy" and self.load.answered_at > before:
                failed = 0  # others are served, and so will this one be
            before = sent
            if failed >= retries[trouble.kind] or trouble.kind == "late" and self.load.is_silent:
                break
            if trouble.kind != "busy":
                await self._wait(trouble, failed)
            failed += 1
        if choices:
            return choices
        if trouble.kind == "busy":
            raise self.ended(str(trouble.error))
        raise Refusal(str(trouble.error), trouble.error.status, trouble.error.words)

    def ended(self, why: str, kind: type[load.Fault] = load.Fault) -> load.Fault:
        """Nobody asks any more in the blocks that are open, for this reason."""
        self.load.fault = kind(f"{self.address.base}: {why}")
        return self.load.fault.afresh()

    async def _try(self, data: bytes, expected: int, urgent: bool) -> tuple[list[Choice], Trouble | None, float]:
        """Choices, trouble and the time at which the request was sent; choices without any text are trouble, too."""
        choices: list[Choice] = []
        try:
            async with self.load.flight(urgent) as flight:
                self._count()
                reply = await self.send("POST", "chat/completions", data)
        except load.Fault:
            raise
        except aiohttp.ClientConnectorError as error:
            trouble = Trouble("busy", self._failure(error))
        except TimeoutError:
            trouble = Trouble("late", Error(0, f"no answer in {load.TIMEOUT:.0f} s"))
        except (aiohttp.ClientError, OSError) as error:
            trouble = Trouble("broken", self._failure(error))
        else:
            choices, trouble = self._read(reply, expected)
        if trouble is None:
            self.load.answered()
        elif trouble.kind in ("busy", "late") or trouble.error.status in LATE:
            self.load.burdened(flight, str(trouble.error), trouble.asked, trouble.error.status == 429)
        return choices, trouble, flight.began

    def _read(self, reply: Reply, expected: int) -> tuple[list[Choice], Trouble | None]:
        """The choices of an answer, or what is wrong with it."""
        if reply.status == 200 and reply.whole:
            try:
                said = read_json(reply.body)
                choices = [self._without_secrets(choice) for choice in choices_of(said)][:expected]
            except ValueError:
                pass  # an error, perhaps, with a status of its own
            else:
                self._note_usage(said)
                if len(choices) < expected:
                    return [], Trouble("odd", Error(200, f"{len(choices)} captions came for {expected}"))
                if not any(choice.text for choice in choices):
                    return choices, Trouble("odd", Error(200, f"no text came, finish_reason {choices[0].reason!r}"))
                return choices, None
        if not reply.whole:
            return [], Trouble("odd", Error(reply.status, f"the answer is longer than {LONGEST_ANSWER >> 20} MB"))
        if 300 <= reply.status < 400:
            return [], Trouble("refused", Error(reply.status, self._redirected(reply)))
        error = self._error(reply)
        asked = seconds_to_wait(reply.headers, reply.body[:10_000].decode("utf-8", "replace"))
        if error.status in BUSY and error.code not in SPENT:
            return [], Trouble("busy", error, asked)
        if error.status >= 500 or error.status in LATE:
            return [], Trouble("broken", error, asked)
        return [], Trouble("odd" if error.status == 200 else "refused", error)

    async def _wait(self, trouble: Trouble, failed: int) -> None:
        """Until the request is made again; the others go on, unless the server asks for a pause."""
        if trouble.asked:
            self.load.pause(str(trouble.error), 0, trouble.asked)
            return
        wait = load.wait_of(failed)
        self.load.tell(str(trouble.error), wait)
        await asyncio.sleep(wait)

    def _count(self) -> None:
        most = self.config.max_requests
        if most is not None and self.made >= most:
            raise self.ended(
                f"--max-requests {most:,} are made; the same command with more of them goes on", load.Spent
            )
        self.made += 1

    def _note_usage(self, said: Mapping[str, Any]) -> None:
        usage = said.get("usage")
        if isinstance(usage, dict):
            asked, answered = usage.get("prompt_tokens"), usage.get("completion_tokens")
            self.usage = asked if isinstance(asked, int) else 0, answered if isinstance(answered, int) else 0

    def _error(self, reply: Reply) -> Error:
        error = error_of(reply.status, reply.body)
        return error._replace(words=self._hidden(error.words))

    def _failure(self, error: BaseException) -> Error:
        return Error(0, self._hidden(f"{type(error).__name__} {error}".strip()))

    def _without_secrets(self, choice: Choice) -> Choice:
        return choice._replace(text=hide(choice.text, self.secrets), whole=hide(choice.whole, self.secrets))

    def _hidden(self, text: str) -> str:
        return hide_all(text, self.secrets)

    def _redirected(self, reply: Reply) -> str:
        try:
            to = urlsplit(urljoin(self.address.base, reply.headers.get("Location", "")))
            there = f"{to.scheme}://{to.hostname}"
        except ValueError:
            return f"{self.address.base} sends requests on to an address that cannot be read"
        return f"{self.address.base} sends requests on to {there}, where no key goes by itself: give that address"


def proxy_of(address: Address) -> str | None:
    """The proxy that the environment names for the server; none for one on this machine."""
    parts = urlsplit(address.base)
    proxies = {} if address.is_here or proxy_bypass(parts.netloc) else getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")
