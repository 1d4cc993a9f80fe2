"""A captioner without a model: its captions depend only on the picture, the key, the seed and the sampling."""

import hashlib
import io
import itertools
import tarfile
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import generate.captions.load
from captioners.base import Caption, Captioned, Request, SamplingConfig
from generate.captions.config import GenerateConfig


class FakeCaptioner:
    description = "a captioner of the tests"
    looks_at_pictures = needs_picture = True
    takes_instruction = needs_instruction = False

    def __init__(self, name: str = "fake", weights_sha256: str = "0" * 64):
        self.name, self.weights_sha256 = name, weights_sha256
        self.batch_size = 2
        self.batches: list[int] = []

    def preprocess(self, image: Image.Image) -> Tensor:
        assert image.mode == "RGB"
        return torch.from_numpy(np.array(image.resize((4, 4)))).permute(2, 0, 1)

    def bytes_per_picture(self, sampling: SamplingConfig) -> int:
        return 1000

    def check(self, sampling: SamplingConfig, *, similarity: bool = False) -> None:
        pass

    def caption(
        self,
        requests: Iterable[Request],
        sampling: SamplingConfig,
        *,
        column: str = "",
        first_index: int = 0,
        similarity: bool = False,
        batch_size: int | None = None,
    ) -> Iterator[Captioned]:
        requests = iter(requests)
        while batch := list(itertools.islice(requests, batch_size or self.batch_size)):
            self.batches.append(len(batch))
            for key, pixels, _ in batch:
                digest = hashlib.sha256(pixels.numpy().tobytes() + key.encode() + bytes([sampling.seed])).hexdigest()
                texts = [
                    f"{sampling.prefix}picture {digest[:6]} no. {first_index + i}"
                    for i in range(sampling.num_captions)
                ]
                similarities = (i / 7 if similarity else None for i in range(sampling.num_captions))
                yield Captioned(
                    key,
                    tuple(
                        Caption(text, -i / 3, i == 1, similarity=s)
                        for i, (text, s) in enumerate(zip(texts, similarities))
                    ),
                )


def jpeg(number: int) -> bytes:
    """Return a small picture with a different colour for each number."""
    encoded = io.BytesIO()
    Image.new("RGB", (12, 9), (number * 37 % 256, number * 91 % 256, number * 53 % 256)).save(encoded, "JPEG")
    return encoded.getvalue()


@pytest.fixture
def captioner(monkeypatch) -> FakeCaptioner:
    """A fake captioner, which is loaded for every model."""
    fake = FakeCaptioner()
    monkeypatch.setattr(generate.captions.load, "load_captioner", lambda name, pretrained, **_: fake)
    return fake


@pytest.fixture
def loaded(monkeypatch) -> list[FakeCaptioner]:
    """A list of the fake captioners loaded so far; each model loads a fake with its name."""
    fakes = []

    def load_captioner(name, pretrained, **options):
        fakes.append(FakeCaptioner(name))
        return fakes[-1]

    monkeypatch.setattr(generate.captions.load, "load_captioner", load_captioner)
    return fakes


@pytest.fixture
def make_captioner():
    """Make fake captioners with other names."""
    return FakeCaptioner


@pytest.fixture
def pictures():
    """Make pictures: `pictures(3)` is a list of three JPEGs."""
    return lambda count, first=0: [jpeg(number) for number in range(first, first + count)]


@pytest.fixture
def make_tar(tmp_path):
    """Write tar shards: `make_tar("00000", [jpeg, None, b"no picture"])`; None leaves the picture out."""

    def make(name: str, images: list[bytes | None], **members: bytes) -> str:
        path = tmp_path / "in" / f"{name}.tar"
        path.parent.mkdir(exist_ok=True)
        with tarfile.open(path, "w") as archive:
            for number, image in enumerate(images):
                files = {"txt": f"original {number}".encode(), **members} | ({} if image is None else {"jpg": image})
                for suffix, data in files.items():
                    member = tarfile.TarInfo(f"{name}_{number:03d}.{suffix.replace('__', '.')}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
        return str(path)

    return make


@pytest.fixture
def configure(tmp_path):
    """A configuration for the tar shards in `in`, changed as asked."""

    def make(**changes) -> GenerateConfig:
        return GenerateConfig(
            **{
                "input": [str(tmp_path / "in" / "*.tar")],
                "model": "fake",
                "output": tmp_path / "out",
                "device": "cpu",
                "batch_size": 2,
                "redraws": 0,
                "on_degenerate": "keep",
                **changes,
            }
        )

    return make


@pytest.fixture
def files():
    """Name and bytes of every file below a folder."""
    return lambda folder: {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }
