"""Simulated servers, with a clock that jumps to the next event."""

import asyncio
import json
from collections import deque

from captioners.server import client


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only if nothing else can happen."""

    def __init__(self):
        super().__init__()
        self.now, really = 0.0, self._selector.select

        def select(timeout):
            events = really(timeout and 2e-4)  # other threads may have something to say first
            if timeout and not events:
                self.now += timeout
            return events

        self._selector.select = select

    def time(self):
        return self.now


class Simulated:
    """A server whose `serve` returns status, headers and body after some time."""

    def __init__(self, monkeypatch):
        monkeypatch.setattr(client.asyncio, "new_event_loop", VirtualLoop)
        monkeypatch.setattr(client.Connection, "send", self._send)
        self.asked, self.ended, self.in_flight, self.most_in_flight, self.times = 0, 0.0, 0, 0, []

    async def _send(self, method, path, data=None):
        if method == "GET":
            return client.Response(200, {}, b'{"data": [{"id": "m"}]}')
        self.asked, self.in_flight = self.asked + 1, self.in_flight + 1
        self.times.append(self.now)
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            status, headers, body = await self.serve(json.loads(data))
        finally:
            self.in_flight -= 1
            self.ended = self.now
        return client.Response(status, headers, json.dumps(body).encode())

    @property
    def now(self):
        return asyncio.get_running_loop().time()

    @staticmethod
    def captions(request):
        text = f"a picture of {request.get('seed')}"
        return (
            200,
            {},
            {"choices": [{"message": {"content": f"{text} and {index}"}} for index in range(request.get("n", 1))]},
        )


class OneAtATime(Simulated):
    """Six seconds per request, one after the other, like llama.cpp and Ollama; behind a proxy with a time-out."""

    def __init__(self, monkeypatch, patience=float("inf")):
        super().__init__(monkeypatch)
        self.free_at, self.patience = 0.0, patience

    async def serve(self, request):
        if self.free_at + 6 - self.now > self.patience:
            await asyncio.sleep(self.patience)
            return 504, {}, {"error": "gateway timeout"}
        self.free_at = max(self.free_at, self.now) + 6
        await asyncio.sleep(self.free_at - self.now)
        return self.captions(request)


class Limited(Simulated):
    """A limited number of requests per minute, one second each; it may say when to try again."""

    def __init__(self, monkeypatch, a_minute=20, says=False):
        super().__init__(monkeypatch)
        self.a_minute, self.says, self.taken, self.refused = a_minute, says, deque(), 0

    async def serve(self, request):
        while self.taken and self.taken[0] <= self.now - 60:
            self.taken.popleft()
        if len(self.taken) >= self.a_minute:
            self.refused += 1
            again = {"Retry-After": str(int(self.taken[0] + 61 - self.now))} if self.says else {}
            return 429, again, {"error": {"message": "Rate limit reached", "code": "rate_limit_exceeded"}}
        self.taken.append(self.now)
        await asyncio.sleep(1)
        return self.captions(request)
