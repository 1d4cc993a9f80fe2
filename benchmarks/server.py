"""Requests to a server: `python -m benchmarks.server --case words`; the last line is one JSON object.

`words`: instructions alone to a server on this machine that answers each in 50 ms, 64 under way at a time, by a captioner and by a plain
asyncio loop on the same client library: so many tasks that each send the next request, read its JSON, and keep its text. Either
takes the same requests and gives the same texts. The server is a process of its own; turns alternate, and the first of each warms up.
Told are requests a second, and the processor time that this process takes for each.
"""

import argparse
import asyncio
import itertools
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import aiohttp

from captioners.base import Request, SamplingConfig
from captioners.server.captioner import ServerCaptioner, load_server
from captioners.server.fields import fields_of

SECONDS, IN_FLIGHT, REQUESTS, TURNS = 0.05, 64, 3_200, 5
SAMPLING = SamplingConfig(num_captions=1)


class Answers(asyncio.Protocol):
    """A connection of the server, as little as HTTP/1.1 allows, so that the server is never what is waited for."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.received = transport, b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, end, body = self.received.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
        if end and len(body) >= (int(length[1]) if length else 0):
            self.received = b""
            if head.startswith(b"GET"):
                self.answer({"data": [{"id": "words"}]})
                return
            content = f"A caption of {json.loads(body)['messages'][0]['content']}"
            said = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
            asyncio.get_running_loop().call_later(SECONDS, self.answer, {"choices": [said]})

    def answer(self, said: dict) -> None:
        body = json.dumps(said).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)


async def serve() -> None:
    """A server that says what it was asked, 50 ms later; it prints its port."""
    server = await asyncio.get_running_loop().create_server(Answers, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def words() -> dict[str, float]:
    """Requests a second and milliseconds of processor time a request of either, medians, and the ratio of the rates."""
    requests = [Request(f"key/{number}", None, f"picture {number}") for number in range(REQUESTS)]
    server = subprocess.Popen([sys.executable, "-m", __spec__.name, "--serve"], stdout=subprocess.PIPE, text=True)
    try:
        base = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        captioner = load_server(f"openai:{base}#words")
        captioner.check(SAMPLING)
        sides: dict[str, Callable[[], list[str]]] = {
            "ours": lambda: ours(captioner, requests),
            "loop": lambda: asyncio.run(plain_loop(f"{base}/chat/completions", requests)),
        }
        rates: dict[str, list[float]] = {name: [] for name in sides}
        costs: dict[str, list[float]] = {name: [] for name in sides}  # ms of this process, all its threads
        for turn in range(TURNS + 1):
            for name, side in sides.items():
                began, spent = time.perf_counter(), time.process_time()
                texts = side()
                costs[name].append(1000 * (time.process_time() - spent) / REQUESTS)
                rates[name].append(REQUESTS / (time.perf_counter() - began))
                if texts != [f"A caption of picture {number}" for number in range(REQUESTS)]:
                    raise RuntimeError(f"{name}: these are not the captions of the requests")
            told = (f"{name} {of[-1]:.0f}/s, {costs[name][-1]:.3f} ms" for name, of in rates.items())
            print(f"turn {turn} of {TURNS}: " + "; ".join(told))
    finally:
        server.kill()
        server.wait()
    found = {name: statistics.median(of[1:]) for name, of in rates.items()}
    spent = {name: statistics.median(of[1:]) for name, of in costs.items()}
    return {
        "ratio": round(found["ours"] / found["loop"], 3),
        "ours": round(found["ours"]),
        "loop": round(found["loop"]),
        "ours_ms": round(spent["ours"], 3),
        "loop_ms": round(spent["loop"], 3),
    }


def ours(captioner: ServerCaptioner, requests: Sequence[Request]) -> list[str]:
    found = captioner.caption(requests, SAMPLING, batch_size=IN_FLIGHT)
    return [one.captions[0].text for one in found]


async def plain_loop(url: str, requests: Sequence[Request]) -> list[str]:
    """The texts, by tasks that send one request after another."""
    texts, waiting = [""] * len(requests), iter(enumerate(requests))

    async def work(session: aiohttp.ClientSession, waiting: Iterator[tuple[int, Request]]) -> None:
        for number, request in waiting:
            fields = fields_of("words", SAMPLING, request, seed=0, more={})
            async with session.post(url, json=fields) as response:
                said = await response.json()
            texts[number] = said["choices"][0]["message"]["content"]

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(work(session, of) for of in itertools.repeat(waiting, IN_FLIGHT)))
    return texts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=["words"], default="words")
    parser.add_argument("--serve", action="store_true", help="be the server")
    if parser.parse_args().serve:
        asyncio.run(serve())
    else:
        print(json.dumps(words()))
