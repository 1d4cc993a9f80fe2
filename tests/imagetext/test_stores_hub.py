"""`hf://` against the part of the Hub's interface that reading needs, on this machine."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote

import pytest

from imagetext import stores
from imagetext.sources import read_samples
from imagetext.stores import ATTEMPTS, StoreError

ROOT = "hf://datasets/org/set"


class Hub(BaseHTTPRequestHandler):
    files: dict[str, bytes] = {}
    requests: list[tuple[str, str]] = []
    failing = 0  # of the next answers with a file's bytes

    def log_message(self, *_):
        pass

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def entry(self, path: str) -> dict | None:
        if path in self.files:
            return {
                "type": "file",
                "path": path,
                "size": len(self.files[path]),
                "oid": hashlib.sha1(self.files[path]).hexdigest(),
            }
        return (
            {"type": "directory", "path": path, "oid": "0"}
            if any(name.startswith(f"{path}/") for name in self.files)
            else None
        )

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        paths = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
        self.answer(json.dumps([info for info in map(self.entry, paths) if info]).encode())

    def do_GET(self):
        path, _, query = unquote(self.path).partition("?")
        self.requests.append((path, self.headers.get("Authorization", "")))
        if "/tree/" in path:
            folder = path.partition("/tree/")[2].partition("/")[2]
            below = [
                name.removeprefix(f"{folder}/") for name in self.files if not folder or name.startswith(f"{folder}/")
            ]
            below = below if "recursive=true" in query.lower() else sorted({name.partition("/")[0] for name in below})
            self.answer(json.dumps([self.entry(f"{folder}/{name}".lstrip("/")) for name in below]).encode())
        elif "/resolve/" in path:
            data = self.files.get(path.partition("/resolve/")[2].partition("/")[2])
            if Hub.failing or data is None:
                Hub.failing -= 1
                return self.answer(b"", 404 if data is None else 403)
            first, _, last = self.headers.get("Range", f"bytes=0-{len(data)}").removeprefix("bytes=").partition("-")
            self.answer(data[int(first) : int(last) + 1], 206 if "Range" in self.headers else 200, ETag='"x"')
        else:
            self.answer(json.dumps({"id": "org/set", "sha": "a" * 40}).encode())


@pytest.fixture
def hub(monkeypatch):
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    monkeypatch.setattr(stores, "FIRST_WAIT", 0)
    stores._filesystem.cache_clear()
    Hub.files, Hub.requests[:], Hub.failing = {}, [], 0
    yield Hub
    stores._filesystem.cache_clear()
    server.shutdown()


def test_the_hub_reads_as_this_machine_does(hub, tmp_path, picture, write_tar):
    for number in range(3):
        write_tar(tmp_path / f"0000{number}.tar", [("a.jpg", picture(number)), ("a.npz", b"n")])
        hub.files[f"in/0000{number}.tar"] = (tmp_path / f"0000{number}.tar").read_bytes()
    hub.files |= {"in/pics/a.jpg": picture(7), "in/pics/b.jpg": picture(8)}
    hub.files["t.jsonl"] = b'{"image": "in/pics/a.jpg"}\n{"image": "gone.jpg"}'
    for spec, name in (("in/*.tar", "*.tar"), ("in/{00000..00002}.tar", "{00000..00002}.tar")):
        local, remote = read_samples(f"{tmp_path}/{name}"), read_samples(f"{ROOT}/{spec}")
        assert [(shard.name, shard.stamp["size"]) for shard in local] == [
            (shard.name, shard.stamp["size"]) for shard in remote
        ]
        assert [(record.key, record.image, record.members) for shard in local for record in shard] == [
            (record.key, record.image, record.members) for shard in remote for record in shard
        ]
    assert [sample.image for sample in read_samples(f"{ROOT}/in/pics")[0]] == [picture(7), picture(8)]
    first, second = read_samples(f"{ROOT}/t.jsonl")[0]
    assert first.image == picture(7) and "missing picture file" in second.error
    assert {signed for path, signed in hub.requests if "set" in path} == {"Bearer hf_mine"}


def test_a_read_that_fails(hub, tmp_path, picture, write_tar):
    hub.files["0.tar"] = open(write_tar(tmp_path / "0.tar", [("a.jpg", picture())]), "rb").read()
    (shard,) = read_samples(f"{ROOT}/0.tar")
    hub.failing = ATTEMPTS - 1
    assert [sample.image for sample in shard] == [picture()]
    hub.failing = ATTEMPTS
    with pytest.raises(StoreError, match=f"{ROOT}/0.tar: "):
        list(shard)
    hub.files["0.tar"] = open(
        write_tar(tmp_path / "1.tar", [("b.jpg", picture(1)), ("c.jpg", picture(2))]), "rb"
    ).read()
    assert [sample.key for sample in shard] == ["b", "c"] and read_samples(f"{ROOT}/0.tar")[0].stamp != shard.stamp
