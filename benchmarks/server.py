"""Requests to a server: `python -m benchmarks.server --case words`; the last line is one JSON object.

`words`: instructions alone to a server on this machine that answers each in 50 ms, 64 under way at a time, by a captioner and by a plain
asyncio loop on the same client library: so many tasks that each send the next request, read its JSON, and keep its text. Either
takes the same requests and gives the same texts. The server is a process of its own; turns alternate, and the first of each warms up.
"""

import argparse
import asyncio
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import aiohttp
from aiohttp import web

from captioners.base import Request, SamplingConfig
from captioners.server.captioner import ServerCaptioner, load_server
from captioners.server.fields import fields_of

SECONDS, IN_FLIGHT, REQUESTS, TURNS = 0.05, 64, 3_200, 5
SAMPLING = SamplingConfig(num_captions=1)


def serve() -> None:
    """A server that says what it was asked, 50 ms later; it prints its port."""

    async def complete(request: web.Request) -> web.Response:
        asked = await request.json()
        await asyncio.sleep(SECONDS)
        message = {"role": "assistant", "content": f"A caption of {asked['messages'][0]['content']}"}
        return web.json_response({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "words"}]})

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", complete)
        app.router.add_get("/v1/models", models)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()

    asyncio.run(run())


def words() -> dict[str, float]:
    """Requests a second of either, medians of the turns, and the ratio of ours to the loop's."""
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
        for turn in range(TURNS + 1):
            for name, side in sides.items():
                began = time.perf_counter()
                texts = side()
                rates[name].append(REQUESTS / (time.perf_counter() - began))
                if texts != [f"A caption of picture {number}" for number in range(REQUESTS)]:
                    raise RuntimeError(f"{name}: these are not the captions of the requests")
            print(f"turn {turn} of {TURNS}: " + ", ".join(f"{name} {of[-1]:.0f}/s" for name, of in rates.items()))
    finally:
        server.kill()
        server.wait()
    found = {name: statistics.median(of[1:]) for name, of in rates.items()}
    return {
        "ratio": round(found["ours"] / found["loop"], 3),
        "ours": round(found["ours"]),
        "loop": round(found["loop"]),
    }


def ours(captioner: ServerCaptioner, requests: Sequence[Request]) -> list[str]:
    found = captioner.caption(requests, SAMPLING, batch_size=IN_FLIGHT)
    return [one.captions[0].text for one in found]


async def plain_loop(url: str, requests: Sequence[Request]) -> list[str]:
    """The texts, by tasks that send one request after another."""
    texts, waiting = [""] * len(requests), iter(enumerate(requests))

    async def work(session: aiohttp.ClientSession, waiting: Iterator[tuple[int, Request]]) -> None:
        for number, request in waiting:
            fields = fields_of("words", SAMPLING, request, 0, {})
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
        serve()
    else:
        print(json.dumps(words()))
