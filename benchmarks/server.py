"""Requests to a server: `python -m benchmarks.server --case words`. The last line of the output is a JSON object.

`words`: requests with instructions and without pictures, to a server on this machine that answers each after 50 ms; 64
requests run at a time. Our captioner is compared with a plain asyncio loop on the same client library: 64 tasks, each
of which sends the next request, reads its JSON and keeps its text. Both take the same requests and return the same
texts. The server is a process of its own. Turns alternate, and the first turn of each side warms up. The output has
requests per second, and the processor time of this process for each request.
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
    """A connection of the server, with as little of HTTP/1.1 as possible: the server must not be the bottleneck."""

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
            choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
            asyncio.get_running_loop().call_later(SECONDS, self.answer, {"choices": [choice]})

    def answer(self, message: dict) -> None:
        body = json.dumps(message).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)


async def serve() -> None:
    """Run a server that repeats each request's text after 50 ms; it prints its port."""
    server = await asyncio.get_running_loop().create_server(Answers, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def words() -> dict[str, float]:
    """Median requests per second and processor milliseconds per request of both sides, and the ratio of the rates."""
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
                began, processor_ms = time.perf_counter(), time.process_time()
                texts = side()
                costs[name].append(1000 * (time.process_time() - processor_ms) / REQUESTS)
                rates[name].append(REQUESTS / (time.perf_counter() - began))
                if texts != [f"A caption of picture {number}" for number in range(REQUESTS)]:
                    raise RuntimeError(f"{name}: these are not the captions of the requests")
            costs_of_turn = (f"{name} {values[-1]:.0f}/s, {costs[name][-1]:.3f} ms" for name, values in rates.items())
            print(f"turn {turn} of {TURNS}: " + "; ".join(costs_of_turn))
    finally:
        server.kill()
        server.wait()
    median_rate = {name: statistics.median(values[1:]) for name, values in rates.items()}
    processor_ms = {name: statistics.median(values[1:]) for name, values in costs.items()}
    return {
        "ratio": round(median_rate["ours"] / median_rate["loop"], 3),
        "ours": round(median_rate["ours"]),
        "loop": round(median_rate["loop"]),
        "ours_ms": round(processor_ms["ours"], 3),
        "loop_ms": round(processor_ms["loop"], 3),
    }


def ours(captioner: ServerCaptioner, requests: Sequence[Request]) -> list[str]:
    captioned = captioner.caption(requests, SAMPLING, batch_size=IN_FLIGHT)
    return [result.captions[0].text for result in captioned]


async def plain_loop(url: str, requests: Sequence[Request]) -> list[str]:
    """The texts, from tasks that each send one request after another."""
    texts, waiting = [""] * len(requests), iter(enumerate(requests))

    async def work(session: aiohttp.ClientSession, waiting: Iterator[tuple[int, Request]]) -> None:
        for number, request in waiting:
            fields = fields_of("words", SAMPLING, request, seed=0, more={})
            async with session.post(url, json=fields) as response:
                message = await response.json()
            texts[number] = message["choices"][0]["message"]["content"]

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(work(session, requests_left) for requests_left in itertools.repeat(waiting, IN_FLIGHT)))
    return texts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=["words"], default="words")
    parser.add_argument("--serve", action="store_true", help="run the server instead of the benchmark")
    if parser.parse_args().serve:
        asyncio.run(serve())
    else:
        print(json.dumps(words()))
