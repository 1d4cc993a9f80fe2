"""Pictures, small copies of the caption sets in the exact form that their authors publish, and a local S3 server."""

import io
import itertools
import json
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

# If a shell starts the suite in the background, or with `nohup`, these signals are ignored, and the processes that
# tests start would inherit that.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory, worker_id):
    """A cache for the processes of the suite alone, in place of the user's."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder if worker_id == "master" else folder.parent  # which the workers share
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield


def picture(seed: int = 0, format: str = "JPEG", size: tuple[int, int] = (12, 8), **options) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture(name="picture")
def picture_fixture():
    return picture


@pytest.fixture
def images(tmp_path, picture):
    """Make a folder with pictures of these names."""
    folder = tmp_path / "images"

    def make(*names):
        for number, name in enumerate(names):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(picture(number))
        return folder

    return make


def write(path: Path, content) -> str:
    """Write the content as JSON, or as JSON lines if it is a list; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = content if isinstance(content, list) else None
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) if lines is not None else json.dumps(content))
    return str(path)


@pytest.fixture(name="write")
def write_fixture():
    return write


LICENCES = [
    {"url": f"http://creativecommons.org/licenses/{name}/2.0/", "id": number, "name": name}
    for number, name in enumerate(("by-nc-sa", "by-nc", "by-nc-nd", "by", "by-sa", "by-nd"), 1)
]
LICENCES += [
    {"url": "http://flickr.com/commons/usage/", "id": 7, "name": "No known copyright restrictions"},
    {"url": "http://www.usa.gov/copyright.shtml", "id": 8, "name": "United States Government Work"},
]


@pytest.fixture
def coco(tmp_path):
    return write(
        tmp_path / "annotations" / "captions_train2017.json",
        {
            "info": {"description": "COCO 2017 Dataset", "year": 2017},
            "licenses": LICENCES,
            "images": [
                {
                    "license": number,
                    "file_name": f"{number:012d}.jpg",
                    "coco_url": "http://x",
                    "height": 8,
                    "width": 12,
                    "date_captured": "2013-11-14",
                    "flickr_url": "http://y",
                    "id": number,
                }
                for number in range(1, 9)
            ],
            "annotations": [
                {"image_id": image, "id": 10 * image + which, "caption": f" picture {image} caption {which}\n"}
                for which in range(5)
                for image in range(8, 0, -1)
            ],
        },
    )


@pytest.fixture
def docci(tmp_path):
    rows = [
        {
            "example_id": f"{split}_{number:05d}",
            "split": split,
            "image_file": f"{split}_{number:05d}.jpg",
            "description": f"A long description of {split} {number}. It has two sentences.",
        }
        for number in range(3)
        for split in ("train", "test", "qual_dev", "qual_test")
    ]
    return write(tmp_path / "docci_descriptions.jsonlines", rows)


@pytest.fixture
def dci(tmp_path):
    """The folder of annotations of sa_1.jpg and sa_2.jpg, with bounds in both forms that DCI documents."""

    def mask(number, label, caption, bounds):
        return {
            "idx": number,
            "outer_mask": "iVBORw0K",
            "mask_quality": 0,
            "label": label,
            "caption": caption,
            "parent": -1,
            "requirements": [],
            "bounds": bounds,
            "area": 9,
        }

    def make(bounds=((0, 0), (9, 7))):
        folder = tmp_path / "dci"
        write(
            folder / "annot_b.json",
            {
                "image": "sa_2.jpg",
                "short_caption": "A street",
                "extra_caption": "",
                "mask_keys": [],
                "mask_data": {},
                "summaries": {},
                "negatives": {},
            },
        )
        masks = {
            "1": mask(1, "grass", "green and short.", bounds),
            "0": mask(0, "", "a brown dog", bounds),
            "2": mask(2, "sky", "", bounds),
        }
        write(
            folder / "annot_a.json",
            {
                "image": "sa_1.jpg",
                "short_caption": "A dog on\n grass.",
                "extra_caption": "It is sunny",
                "mask_keys": ["1", "0"],
                "mask_data": masks,
                "summaries": {"base": ["A dog."]},
                "negatives": {},
            },
        )
        return str(folder)

    return make


@pytest.fixture
def gbc_graph():
    def vertex(name, label, box, *descs):
        edges = ("left", "top", "right", "bottom", "confidence")
        return {
            "vertex_id": name,
            "bbox": dict(zip(edges, box)),
            "label": label,
            "in_edges": [],
            "out_edges": [],
            "descs": [{"text": text, "label": kind} for text, kind in descs],
        }

    return {
        "img_url": "https://example.org/a/b%20c.jpg?size=big",
        "original_caption": "alt",
        "vertices": [
            vertex(
                "",
                "image",
                (0.0, 0.0, 1.0, 1.0, None),
                ("Two horses. In snow.", "detail"),
                ("Two horses.", "short"),
                ("horse, snow", "bagofwords"),
            ),
            vertex("horse", "entity", (0.2, 0.3, 0.6, 0.9, 0.8), ("A brown horse.", "detail")),
            vertex("horse+snow", "relation", (0.0, 0.3, 1.0, 1.0, 0.8), ("The horse walks in the snow.", "relation")),
        ],
    }


@pytest.fixture
def recap_coco(tmp_path, picture):
    """Write a Parquet file with one row, and the picture in the column of this name."""

    def make(column="image_binary"):
        row = {
            "image_id": 42,
            "coco_url": "http://images.cocodataset.org/val2014/COCO_val2014_000000000042.jpg",
            "caption": "A dog.",
            "recaption": "A brown dog lies on a red rug.",
        }
        if column:
            row[column] = {"bytes": picture(0), "path": None}
        path = tmp_path / "train-00000-of-00001.parquet"
        pq.write_table(pa.Table.from_pylist([row]), path)
        return str(path)

    return make


# ---- a real S3 server on this machine that can be made to fail ------------------------------------------------------


BUCKETS = itertools.count(1000)


@dataclass
class S3:
    """A bucket for one test, and the failures of the server that the test asks for."""

    bucket: str
    faults: list[list] = field(default_factory=list)
    requests: list[tuple[str, str, str, str]] = field(default_factory=list)  # method, path, query, signer

    @property
    def root(self) -> str:
        return f"s3://{self.bucket}"

    def fail(self, method: str, name: str, kind: int | str, times: int = 10**9) -> None:
        """Make the next `times` answers to requests of this method for names that end with `name` fail.

        kind: an HTTP status, or "cut", "less" or "hang"
        """
        self.faults.append([method, name, kind, times])

    def count(self, method: str, name: str = "") -> int:
        return sum(done == method and path.endswith(name) for done, path, _, _ in self.requests)

    def put(self, name: str, data: bytes) -> str:
        from imagetext.stores import filesystem

        filesystem(self.root).pipe_file(f"{self.root}/{name}", data)
        return f"{self.root}/{name}"

    def fault(self, method: str, path: str) -> int | str | None:
        for fault in self.faults:
            if fault[0] == method and path.endswith(fault[1]) and fault[3]:
                fault[3] -= 1
                return fault[2]
        return None


@pytest.fixture(scope="session")
def s3_server():
    """A list whose only element is the present test's bucket; the environment has the server's address and keys."""
    pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    server, current = DomainDispatcherApplication(create_backend_app), []

    def spoilt(environ, start_response):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        signed = environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")[2].partition("/")[0]
        kind = None
        if current:
            current[0].requests.append((method, path, environ["QUERY_STRING"], signed))
            kind = current[0].fault(method, path)
        if kind is None:
            return server(environ, start_response)
        if isinstance(kind, int):
            start_response(f"{kind} fault", [("Content-Length", "0"), ("Connection", "close")])
            return [b""]
        answer = []
        body = b"".join(server(environ, lambda *status: answer.append(status)))
        status, headers = (
            answer[0][0],
            [header for header in answer[0][1] if not header[0].lower().startswith("x-amz-checksum")],
        )
        if kind == "hang":
            time.sleep(1.5)
        half = body[: len(body) // 2]
        length = len(half) if kind == "less" else len(body)
        start_response(
            status, [(name, str(length) if name.lower() == "content-length" else value) for name, value in headers]
        )
        return [half if kind in ("cut", "less") else body]

    class Quiet(WSGIRequestHandler):
        def log(self, *_):
            pass

    web = make_server("127.0.0.1", 0, spoilt, threaded=True, request_handler=Quiet)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{web.server_port}",
            "AWS_ACCESS_KEY_ID": "mine",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(name, value)
        patch.setattr(s3fs.S3FileSystem, "read_timeout", 1)
        yield current
    web.shutdown()


@pytest.fixture
def s3(s3_server, monkeypatch):
    """An empty bucket. Our own retries happen without waiting, and the libraries' retries are switched off."""
    from imagetext import stores

    monkeypatch.setattr(stores, "FIRST_WAIT", 0)
    bucket = S3(f"bucket-{next(BUCKETS)}")
    stores.filesystem(bucket.root).mkdir(bucket.bucket)
    s3_server[:] = [bucket]
    yield bucket
    s3_server.clear()


@pytest.fixture(autouse=True)
def _signals_stay_as_they_are():
    """Fail a test that leaves a signal handler behind, because that would disturb later tests in the same process."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    after = [signal.getsignal(number) for number in numbers]
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
    assert after == before
