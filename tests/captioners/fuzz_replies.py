"""A server that sends malformed replies of all kinds; test_fuzz_replies.py runs this file as a script."""

import gzip
import json
import random
import socket
import threading
import unicodedata
from pathlib import Path

import aiohttp

from captioners.server import client
from captioners.server.address import read_address
from captioners.server.answers import models_of, seconds_to_wait
from captioners.server.client import Connection, Trouble
from tests.fuzzing import take

client.LONGEST_ANSWER = 1 << 20
KEY = "sk-0123456789abcdef"
WORDS = [
    "A dog.",
    "",
    " \n",
    "\0",
    "\ud83d",
    "\u2028",
    "A cat \x1b[2J",
    f"Bearer {KEY}",
    "<think>",
    "x" * 3000,
    "[[[",
    "<html><title>a</title>",
    '{"error": "b"}',
    "\ufeff",
    "try again in 9m99999s",
    "😀",
]


class Case:
    """The random choices of a case."""

    def __init__(self, number: int):
        self.rng = random.Random(number)

    def value(self, depth: int = 0):
        """A random JSON value."""
        deep: list = []
        for _ in range(self.rng.choice([3, 90, 700])):
            deep = self.rng.choice([[deep], {"error": deep}])
        scalars = [
            None,
            True,
            0,
            -1,
            10**400,
            1e308,
            float("nan"),
            float("-inf"),
            "stop",
            "length",
            *WORDS,
            [],
            {},
            deep,
        ]
        if depth > 3 or self.rng.random() < 0.5:
            return self.rng.choice(scalars)
        if self.rng.random() < 0.3:
            return [self.value(depth + 1) for _ in range(self.rng.randrange(4))]
        names = [
            "error",
            "message",
            "detail",
            "code",
            "choices",
            "index",
            "content",
            "text",
            "logprobs",
            "token_logprobs",
            "logprob",
            "finish_reason",
            "metadata",
            "raw",
            "loc",
            "usage",
            "completion_tokens",
            "data",
            "id",
            "type",
        ]
        return {name: self.value(depth + 1) for name in self.rng.sample(names, self.rng.randrange(6))}

    def completion(self) -> dict:
        """A chat completion in which some values are wrong."""
        choices = []
        for index in range(self.rng.choice([0, 1, 2, 2, 2, 50])):
            message = {"role": "assistant", "content": self.rng.choice(WORDS)}
            choice = {
                "index": index,
                "message": message,
                "finish_reason": "stop",
                "logprobs": {"content": [{"logprob": -1.0}]},
            }
            for part in (choice, message):
                if self.rng.random() < 0.3:
                    part[self.rng.choice([*part, "error"])] = self.value()
            choices.append(choice)
        return {"choices": choices, **({"usage": self.value()} if self.rng.random() < 0.3 else {})}

    def body(self) -> bytes:
        content = self.rng.choice([self.completion, self.completion, self.value])()
        text = json.dumps(content).encode("utf-8", "surrogatepass")
        others = [
            b"",
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b"3" * 100_000,
            b"\xff" * 50,
            text[:-1],
            text + b"x",
            gzip.compress(text),
            b"data: " + text + b"\n\n",
            b"<" * 10_000,
            b" " * (2 << 20),
            b'{"error": "' + b"\\\\" * 40_000 + b'"}',
            self.rng.randbytes(99),
        ]
        return self.rng.choice([text] * 14 + others)

    def reply(self) -> bytes:
        """A reply with status, headers and body, or something else."""
        body = self.body()
        status = self.rng.choice(
            [200, 200, 200, 200, 204, 301, 400, 401, 403, 404, 408, 413, 429, 500, 502, 503, 529, 599]
        )
        length = self.rng.choice([len(body)] * 8 + [0, len(body) // 2, len(body) + 9, 10**18])
        headers = [f"Content-Length: {length}"] * self.rng.choice([1, 1, 1, 1, 0, 2])
        more = [
            "Transfer-Encoding: chunked",
            "Content-Encoding: gzip",
            "Content-Encoding: br",
            "Content-Type: text/html; charset=utf-16",
            "Retry-After: "
            + self.rng.choice(["-1", "nan", "1e999", "Fri, 31 Dec 9999 23:59:59 GMT", "x", "9" * 5000]),
            "Location: http://elsewhere.example/" + "a" * 50,
            "X: " + "y" * 9000,
            "Connection: close",
            "\0: 1",
            "no header",
        ]
        headers += self.rng.sample(more, self.rng.choice([0, 0, 1, 3]))
        status_line = f"HTTP/1.1 {status} {self.rng.choice(['OK', '', 'é' * 20])}"
        head = "".join(f"{line}\r\n" for line in [status_line, *headers, ""])
        reply = head.encode() + body
        others = [
            b"",
            reply[: self.rng.randrange(len(reply))],
            b"\r\n\r\n",
            b"SSH-2.0-OpenSSH\r\n",
            body,
            self.rng.randbytes(200),
            b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5000,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nabc",
        ]
        return self.rng.choice([reply] * 9 + others)


class Server(threading.Thread):
    """Sends `reply` to every client, and closes the connection."""

    def __init__(self):
        super().__init__(daemon=True)
        self.reply, self.socket = b"", socket.create_server(("127.0.0.1", 0))
        self.start()

    def run(self):
        while True:
            connection, _ = self.socket.accept()
            with connection:
                try:
                    connection.recv(1 << 16)
                    connection.sendall(self.reply)
                except OSError:
                    pass


def is_plain(text: str) -> bool:
    """Whether a text has no control characters, no lone surrogates, and no marks that change the writing direction."""
    return not any(unicodedata.category(each) in ("Cc", "Cs") or "\u202a" <= each <= "\u202e" for each in text)


def check(number: int, folder: Path) -> None:
    """The reply must be read as captions, or as a trouble that can be shown and contains no secret."""
    server.reply = Case(number).reply()
    try:
        choices, trouble = connection._read(
            connection.submit(connection.send("POST", "chat/completions", b"{}")).result(30), 2
        )
    except (aiohttp.ClientError, OSError) as error:  # errors after which the client tries again
        choices, trouble = [], Trouble("broken", connection._failure(error))
    assert trouble is not None or len(choices) == 2 and any(choice.text for choice in choices)
    for text in [*(choice.text for choice in choices), *(choice.reason for choice in choices)]:
        assert text.encode() is not None and KEY not in text and "\x1b" not in text and "\0" not in text
    if trouble:
        message = str(trouble.error)
        assert len(message) < 300 and is_plain(message) and KEY not in message and 0 <= trouble.retry_after <= 600
    body = server.reply.partition(b"\r\n\r\n")[2]
    assert (
        all(map(is_plain, models_of(body))) and 0 <= seconds_to_wait({}, body[:9999].decode("utf-8", "replace")) <= 600
    )


if __name__ == "__main__":
    server = Server()
    connection = Connection(read_address(f"openai:http://127.0.0.1:{server.socket.getsockname()[1]}#a"))
    connection.secrets = [KEY]
    with connection:
        take(check)
