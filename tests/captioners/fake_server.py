"""A fake caption server for tests, and what tests need to use it."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

from captioners.base import Request, SamplingConfig
from captioners.load import load_captioner

TWO = SamplingConfig(num_captions=2, seed=3)
WORDS = "a red green blue small large dog cat house tree on the grass under sky with two old men near water".split()


class FakeServer(ThreadingHTTPServer):
    """Answers with captions that depend on picture and seed; `spoil(request, picture)` may return another answer."""

    daemon_threads, request_queue_size = True, 128

    def __init__(self, *, takes_n=True, takes_logprobs=True, base="/v1"):
        super().__init__(("127.0.0.1", 0), Handler)
        self.takes_n, self.takes_logprobs, self.base = takes_n, takes_logprobs, base
        self.requests, self.keys, self.headers, self.spoil = [], set(), {}, lambda request, picture: None
        self.in_flight, self.most_in_flight, self.lock = 0, 0, threading.Lock()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def model(self) -> str:
        return f"openai:http://127.0.0.1:{self.server_port}#org/Fake-VLM"

    def seen(self, picture: bytes) -> list[dict]:
        return [request for request, shown_picture in self.requests if shown_picture == picture]

    def handle_error(self, *_):
        """Clients may close their connections."""

    def complete(self, request, picture):
        choices = []
        for index in range(request.get("n", 1) if self.takes_n else 1):
            digest = hashlib.sha256(f"{picture} {request.get('seed')} {index}".encode()).digest()
            words = [WORDS[byte % len(WORDS)] for byte in digest[:8]]
            choice = {
                "index": index,
                "message": {"role": "assistant", "content": f" {' '.join(words)}. "},
                "finish_reason": "length" if digest[8] % 4 == 0 else "stop",
            }
            if request.get("logprobs") and self.takes_logprobs:
                choice["logprobs"] = {"content": [{"token": word, "logprob": -len(word) / 7} for word in words]}
            choices.insert(0, choice)  # `index` says which is which, not their place
        return 200, {"object": "chat.completion", "choices": choices}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body, headers=()):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        listed = {"data": [{"id": "org/Fake-VLM"}, {"id": "org/other"}]}
        self.answer(
            *(self.server.spoil(None, None) or (200, listed))
            if self.path == f"{self.server.base}/models"
            else (404, {})
        )

    def do_POST(self):
        server = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = request["messages"][0]["content"]
        if isinstance(content, str):
            picture = content.encode()  # words alone stand for a picture
        else:
            picture = base64.b64decode(content[0]["image_url"]["url"].removeprefix("data:image/jpeg;base64,"))
        with server.lock:
            server.requests.append((request, picture))
            server.keys.add(self.headers["Authorization"])
            server.headers = dict(self.headers)
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
        answer = server.spoil(request, picture)
        with server.lock:
            server.in_flight -= 1
        if answer == "drop":
            self.close_connection = True
            return
        if self.path != f"{server.base}/chat/completions" or request["model"] != "org/Fake-VLM":
            answer = 404, {"object": "error", "message": f"The model `{request['model']}` does not exist."}
        self.answer(*(answer or server.complete(request, picture)))


def pictures(count, first=0):
    """Requests with fake encoded pictures, of which the fake server reads only the bytes."""
    return [
        Request(f"key/{number}", torch.frombuffer(bytearray(f"picture {number}".encode()), dtype=torch.uint8))
        for number in range(first, first + count)
    ]


def captions(model, sampling=TWO, requests=None, batch_size=4, **options):
    captioner = load_captioner(model)
    captioner.batch_size = batch_size
    return list(captioner.caption(pictures(6) if requests is None else requests, sampling, **options))


def texts(results):
    return {result.key: [caption.text for caption in result.captions] for result in results}
